//! `virga gen`: packets with mesh headers, through a socket, out of the kernel, or into a file.

use std::{
    io::{self, Write as _},
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use virga_ebpf::{
    header::{ChannelHash, NodeId, OriginHash, Subnet},
    workload::FLOWS_MAX,
};

use super::{Failure, print_json};
use crate::generate::{
    plan::Sizes,
    profile::Profile,
    socket::{self, Kind, Plan},
};

mod frames;

/// Packets a second through a socket, when nothing is said.
const SOCKET_RATE: u32 = 1_000;

/// Send packets with mesh headers, for tests and measurements
///
/// Without --xdp, --af-xdp, --pcap or --from-pcap they go through a UDP socket, at a moderate rate. With --xdp they come
/// out of the kernel's XDP transmit path, as fast as one CPU or several can (live test runs, Linux 5.18, root): any
/// interface whose driver can be a redirect target; the peer of a veth needs a native XDP program of its own (`virga sink`
/// is one). Where that cannot be had they go through AF_XDP sockets, which --af-xdp asks for: any interface has them.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// Outer target: the next hop's address and port.
    #[arg(
        long,
        value_name = "ADDRESS:PORT",
        required_unless_present = "from_pcap",
        conflicts_with = "from_pcap"
    )]
    to: Option<SocketAddr>,
    /// Outer source address; what the kernel would choose when not said.
    #[arg(long, value_name = "ADDRESS", conflicts_with = "from_pcap")]
    from: Option<IpAddr>,
    /// What to send; with --xdp or --pcap only plain and unauthorised.
    #[arg(
        long,
        value_enum,
        default_value = "plain",
        conflicts_with = "from_pcap"
    )]
    kind: Kind,
    /// The header's destination, as `virga id` prints node ids.
    #[arg(
        long,
        value_name = "HEX",
        value_parser = hex_u64,
        required_unless_present = "from_pcap",
        conflicts_with = "from_pcap"
    )]
    destination: Option<u64>,
    /// The header's origin; strangers have their own.
    #[arg(long, value_name = "HEX", value_parser = hex_u64, default_value = "0", conflicts_with = "from_pcap")]
    origin: u64,
    /// The header's channel hash.
    #[arg(long, value_name = "HEX", value_parser = hex_u16, default_value = "1", conflicts_with = "from_pcap")]
    channel: u16,
    /// Bytes after the header, through a socket.
    #[arg(
        long,
        default_value_t = 58,
        value_parser = clap::value_parser!(u16).range(16..=1_400),
        conflicts_with = "mode"
    )]
    payload: u16,
    /// Packets a second, all CPUs together [default: 1000 through a socket, else as many as can be].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1_000_000_000))]
    rate: Option<u32>,
    /// How long.
    #[arg(
        long,
        default_value_t = 1,
        value_parser = clap::value_parser!(u64).range(1..=3_600),
        conflicts_with = "count"
    )]
    seconds: u64,
    /// One JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    frames: FrameArguments,
}

/// What only frames have: those that do not go through a UDP socket. One of `mode` says where they go.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Frames (with --xdp, --af-xdp, --pcap or --from-pcap)")]
#[group(skip)]
#[command(group = clap::ArgGroup::new("mode").multiple(true).args(["xdp", "af_xdp", "pcap", "from_pcap"]))]
struct FrameArguments {
    /// Send out of the kernel, as fast as can be.
    #[arg(long, conflicts_with_all = ["af_xdp", "pcap", "from_pcap"])]
    xdp: bool,
    /// Send through AF_XDP sockets, each CPU through a queue of its own.
    #[arg(long, conflicts_with = "pcap")]
    af_xdp: bool,
    /// With --af-xdp: let the card read the frames out of this process's memory. Only where its profile in hw/nics lists that for
    /// this kernel.
    #[arg(long, requires = "af_xdp")]
    zero_copy: bool,
    /// Write the frames to a file instead of sending them.
    #[arg(long, value_name = "FILE", conflicts_with = "from_pcap")]
    pcap: Option<PathBuf>,
    /// With --pcap: write beside it what another generator needs to send it.
    #[arg(long, value_enum, requires = "pcap")]
    profile: Option<Profile>,
    /// Send the frames of a capture, in turn, as they are, from one CPU.
    #[arg(long, value_name = "FILE", requires = "interface")]
    from_pcap: Option<PathBuf>,
    /// Interface to send through; the kernel's route when not said.
    #[arg(long, requires = "mode")]
    interface: Option<String>,
    /// Link-layer source; the interface's when not said.
    #[arg(long, value_name = "MAC", value_parser = mac, requires = "mode", conflicts_with = "from_pcap")]
    from_mac: Option<[u8; 6]>,
    /// Link-layer target; the next hop's when not said.
    #[arg(long, value_name = "MAC", value_parser = mac, requires = "mode", conflicts_with = "from_pcap")]
    to_mac: Option<[u8; 6]>,
    /// VLAN tag.
    #[arg(
        long,
        default_value_t = 0,
        value_parser = clap::value_parser!(u16).range(0..=4_094),
        requires = "mode", conflicts_with = "from_pcap"
    )]
    vlan: u16,
    /// The header's subnet.
    #[arg(long, value_name = "HEX", value_parser = hex_u32, default_value = "0", requires = "mode", conflicts_with = "from_pcap")]
    subnet: u32,
    /// Bytes of each frame without its check sequence, or `imix`: seven of the smallest, four of 590, one of
    /// 1514 [default: the smallest].
    #[arg(long, value_name = "BYTES|imix", value_parser = size, requires = "mode", conflicts_with = "from_pcap")]
    size: Option<Sizes>,
    /// Flows: sessions, each in turn.
    #[arg(
        long,
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(FLOWS_MAX)),
        requires = "mode", conflicts_with = "from_pcap"
    )]
    flows: u32,
    /// Each flow goes to a destination of its own, counted up from --destination.
    #[arg(long, requires = "mode", conflicts_with = "from_pcap")]
    destinations: bool,
    /// Percentage of packets from origins that nobody knows, a new one each.
    #[arg(long, value_name = "PERCENT", value_parser = permille, default_value = "0", requires = "mode", conflicts_with = "from_pcap")]
    hostile: u16,
    /// Packets, instead of --seconds.
    #[arg(long, requires = "mode")]
    count: Option<u64>,
    /// How many CPUs to send from, each with its share of the flows.
    #[arg(
        long,
        default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=1_024),
        requires = "mode",
        conflicts_with_all = ["pcap", "from_pcap"]
    )]
    cores: u32,
    /// Write the time of sending into each packet, for a `virga sink` on this machine.
    #[arg(long, requires = "mode", conflicts_with_all = ["pcap", "from_pcap"])]
    stamp: bool,
}

fn hex_u64(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16).map_err(|e| format!("not up to 16 hex digits: {e}"))
}

fn hex_u32(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 16).map_err(|e| format!("not up to 8 hex digits: {e}"))
}

fn hex_u16(text: &str) -> Result<u16, String> {
    u16::from_str_radix(text, 16).map_err(|e| format!("not up to 4 hex digits: {e}"))
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|part| {
            u8::from_str_radix(part, 16)
                .ok()
                .filter(|_| part.len() <= 2)
        })
        .collect();
    let bytes: Option<[u8; 6]> = bytes.and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| "not six bytes like 02:00:00:00:00:01".to_owned())
}

fn size(text: &str) -> Result<Sizes, String> {
    if text == "imix" {
        return Ok(Sizes::Imix);
    }
    let bytes = text.parse();
    bytes
        .map(Sizes::Fixed)
        .map_err(|e| format!("neither a number of bytes nor `imix`: {e}"))
}

/// A percentage with up to one decimal place, in thousandths.
fn permille(text: &str) -> Result<u16, String> {
    let (whole, tenths) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str| text.parse::<u16>().ok();
    let value = match (digits(whole), digits(tenths), tenths.len()) {
        (Some(whole), Some(tenths), 1) if whole <= 100 => whole * 10 + tenths,
        _ => u16::MAX,
    };
    if value > 1_000 {
        return Err("not a percentage, such as 90 or 99.9".to_owned());
    }
    Ok(value)
}

/// Sends, then says how many.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let frames = &arguments.frames;
    if let Some(file) = &frames.from_pcap {
        return frames::replay(arguments, file);
    }
    // Both are required where there is no capture.
    let (Some(to), Some(destination)) = (arguments.to, arguments.destination) else {
        return Err(Failure::Usage("--to and --destination are missing".into()));
    };
    let destination = NodeId(destination);
    if let Some(file) = &frames.pcap {
        return frames::write(arguments, to, destination, file);
    }
    if frames.xdp || frames.af_xdp {
        return frames::send(arguments, to, destination);
    }
    send(arguments, to, destination)
}

/// Through a socket.
fn send(arguments: &Arguments, to: SocketAddr, destination: NodeId) -> Result<(), Failure> {
    let plan = Plan {
        from: arguments.from,
        to,
        kind: arguments.kind,
        destination,
        origin: OriginHash(arguments.origin),
        channel: ChannelHash(arguments.channel),
        payload_bytes: arguments.payload,
        rate: arguments.rate.unwrap_or(SOCKET_RATE),
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

impl Arguments {
    fn subnet(&self) -> Subnet {
        Subnet(self.frames.subnet)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_or_refused() {
        assert_eq!(permille("90"), Ok(900));
        assert_eq!(permille("99.9"), Ok(999));
        assert_eq!(permille("100.0"), Ok(1_000));
        for wrong in ["100.1", "101", "-1", "9.99", "half", "", "65000"] {
            assert!(permille(wrong).is_err(), "{wrong}");
        }
        assert_eq!(mac("02:00:00:00:0a:ff"), Ok([2, 0, 0, 0, 10, 255]));
        for wrong in [
            "02:00:00:00:0a",
            "02:00:00:00:0a:100",
            "",
            "02-00-00-00-0a-ff",
        ] {
            assert!(mac(wrong).is_err(), "{wrong}");
        }
        assert_eq!(size("imix"), Ok(Sizes::Imix));
        assert_eq!(size("256"), Ok(Sizes::Fixed(256)));
        assert!(size("65536").is_err());
    }
}
