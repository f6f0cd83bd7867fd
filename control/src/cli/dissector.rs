//! `virga dissector`: what shows mesh headers in Wireshark.

use super::Failure;
use crate::dissector;
use std::io::{self, Write as _};
use virga_ebpf::limits::UDP_PORT;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// UDP port of the mesh.
    #[arg(long, default_value_t = UDP_PORT)]
    port: u16,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let lua = dissector::lua(arguments.port);
    Ok(io::stdout().lock().write_all(lua.as_bytes())?)
}
