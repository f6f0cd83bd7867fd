//! `virga gen`: packets with mesh headers at a chosen rate.

use std::{net::SocketAddr, time::Duration};

use virga_ebpf::header::{ChannelHash, NodeId, OriginHash};

use super::client::{ClientError, failed};
use crate::generate::{Kind, Plan, run};

/// The command's arguments.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Outer target: the next hop's address and port.
    #[arg(long, value_name = "ADDRESS:PORT")]
    to: SocketAddr,
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

impl Arguments {
    /// Sends, then says how many.
    ///
    /// # Errors
    /// When no socket can be had, or the target cannot be reached.
    pub fn run(&self) -> Result<(), ClientError> {
        let plan = Plan {
            to: self.to,
            kind: self.kind,
            destination: NodeId(self.destination),
            origin: OriginHash(self.origin),
            channel: ChannelHash(self.channel),
            payload_bytes: self.payload,
            rate: self.rate,
            duration: Duration::from_secs(self.seconds),
        };
        let report = run(&plan).map_err(failed("send packets"))?;
        if self.json {
            println!(
                "{}",
                serde_json::json!({ "sent": report.sent, "refused": report.refused })
            );
        } else {
            println!(
                "{} packets sent, {} refused by the socket",
                report.sent, report.refused
            );
        }
        Ok(())
    }
}
