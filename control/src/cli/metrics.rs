//! `virga metrics`: every series, with its unit and what it means.

use super::Failure;
use crate::metrics::page;
use std::io::{self, Write as _};

pub(super) fn run() -> Result<(), Failure> {
    Ok(io::stdout().lock().write_all(page::page().as_bytes())?)
}
