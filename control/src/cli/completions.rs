//! `virga completions`: what has a shell complete the command's words, made of the command's own definition.

use super::{Cli, Failure};
use clap::CommandFactory as _;
use std::io::{self, Write as _};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The shell.
    shell: clap_complete::Shell,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "virga", &mut text);
    Ok(io::stdout().lock().write_all(&text)?)
}
