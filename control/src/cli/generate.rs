//! `virga gen`: packets with mesh headers at a chosen rate.

use std::{
    io::{self, Write as _},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use virga_ebpf::header::{ChannelHash, NodeId, OriginHash};

use super::{Failure, print_json};
use crate::generate::socket::{self, Kind, Plan};

/// The command's arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Outer target: the next hop's address and port.
    #[arg(long, value_name = "ADDRESS:PORT")]
    to: SocketAddr,
    /// Outer source address; any of this host's when not said.
    #[arg(long, value_name = "ADDRESS")]
    from: Option<IpAddr>,
    /// What to send.
    #[arg(long, value_enum, default_value = "plain")]
    kind: Kind,
    /// The header's destination, as `virga id` prints node ids.
    #[arg(long, value_name = "HEX", value_parser = hex_u64)]
    destination: u64,
    /// The header's origin; strangers have their own.
    #[arg(long, value_name = "HEX", value_parser = hex_u64, default_value = "0")]
    origin: u64,
    /// The header's channel hash.
    #[arg(long, value_name = "HEX", value_parser = hex_u16, default_value = "1")]
    channel: u16,
    /// Bytes after the header.
    #[arg(long, default_value_t = 58, value_parser = clap::value_parser!(u16).range(16..=1_400))]
    payload: u16,
    /// Packets a second.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    rate: u32,
    /// How long.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

fn hex_u64(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16).map_err(|e| format!("not up to 16 hex digits: {e}"))
}

fn hex_u16(text: &str) -> Result<u16, String> {
    u16::from_str_radix(text, 16).map_err(|e| format!("not up to 4 hex digits: {e}"))
}

/// Sends, then says how many.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let plan = Plan {
        from: arguments.from,
        to: arguments.to,
        kind: arguments.kind,
        destination: NodeId(arguments.destination),
        origin: OriginHash(arguments.origin),
        channel: ChannelHash(arguments.channel),
        payload_bytes: arguments.payload,
        rate: arguments.rate,
        duration: Duration::from_secs(arguments.seconds),
    };
    let report = socket::run(&plan)?;
    if arguments.json {
        return print_json(&report);
    }
    let words = format!(
        "{} packets sent, {} refused by the socket",
        report.sent, report.refused
    );
    Ok(writeln!(io::stdout(), "{words}")?)
}
