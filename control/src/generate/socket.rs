//! Through a UDP socket, at a rate that a socket can keep: what an authorised member, a stranger, or a
//! broken or hostile sender puts on the wire.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use virga_ebpf::{
    header::{ChannelHash, Flags, Header, NodeId, OriginHash, SessionId, StreamId},
    limits::HEADER_BYTES,
    workload,
};

/// A sealed payload is at least its AEAD tag.
const PAYLOAD_BYTES_MIN: u16 = 16;
/// Packets are sent in bursts this far apart at most.
const TICK: Duration = Duration::from_millis(1);
/// Bursts that a late sender makes up for; what is later than that is not sent.
const BURSTS_MAX: u64 = 20;

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Well-formed packets with the given origin and channel.
    Plain,
    /// Well-formed packets of origins that nobody knows, a new one each.
    Unauthorised,
    /// Handshake packets, which skip guard and duplicate check.
    Handshake,
    /// Wrong magic, version, priority and length, and headers cut short, in turn.
    Malformed,
}

/// A run of the generator.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Outer source address; any of this host's when not said.
    pub from: Option<IpAddr>,
    /// Outer target.
    pub to: SocketAddr,
    /// What is sent.
    pub kind: Kind,
    /// The header's destination.
    pub destination: NodeId,
    /// The header's origin; strangers have their own.
    pub origin: OriginHash,
    /// The header's channel.
    pub channel: ChannelHash,
    /// Bytes after the header.
    pub payload_bytes: u16,
    /// Packets a second.
    pub rate: u32,
    /// How long.
    pub duration: Duration,
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Packets that the socket took.
    pub sent: u64,
    /// Packets that it did not.
    pub refused: u64,
}

/// Sends until the plan's time is over.
///
/// # Errors
/// When no socket can be had, or the target cannot be connected to.
pub fn run(plan: &Plan) -> io::Result<Report> {
    let any = match plan.to {
        SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((plan.from.unwrap_or(any), 0))?;
    socket.connect(plan.to)?;
    // Two runs within a second are no duplicates.
    let number = u64::from(getrandom::u32().map_err(io::Error::other)?) << 32;
    let mut report = Report::default();
    let start = Instant::now();
    let mut packet = Vec::with_capacity(HEADER_BYTES + usize::from(plan.payload_bytes));
    let mut n = 0;
    while start.elapsed() < plan.duration {
        let due = u64::from(plan.rate) * u64::try_from(start.elapsed().as_micros()).unwrap_or(0)
            / 1_000_000;
        let burst_max = u64::from(plan.rate) / 1_000 * BURSTS_MAX + BURSTS_MAX;
        n = n.max(due.saturating_sub(burst_max));
        while n < due {
            write_packet(plan, number, n, &mut packet);
            match socket.send(&packet) {
                Ok(_) => report.sent += 1,
                Err(_) => report.refused += 1,
            }
            n += 1;
        }
        std::thread::sleep(TICK);
    }
    Ok(report)
}

/// The `n`th packet of a plan, in the run whose sequences have that upper half.
fn write_packet(plan: &Plan, run: u64, n: u64, packet: &mut Vec<u8>) {
    let flags = if plan.kind == Kind::Handshake {
        Flags::HANDSHAKE
    } else {
        Flags::NONE
    };
    let mut header = Header {
        flags,
        destination: plan.destination,
        origin_hash: if plan.kind == Kind::Unauthorised {
            workload::stranger(n)
        } else {
            plan.origin
        },
        channel_hash: plan.channel,
        session_id: SessionId(workload::SESSION_MARK),
        stream_id: StreamId(1),
        payload_len: plan.payload_bytes.max(PAYLOAD_BYTES_MIN),
        event_count: 1,
        sequence: run | n & 0xffff_ffff,
        ..Header::default()
    };
    let mut bytes = HEADER_BYTES + usize::from(header.payload_len);
    if plan.kind == Kind::Malformed {
        match n % 5 {
            0 => header.magic ^= 1,
            1 => header.version += 1,
            2 => header.priority = 8,
            3 => header.payload_len += 1,
            _ => bytes = HEADER_BYTES - 1,
        }
    }
    packet.clear();
    packet.extend(header.encode());
    packet.resize(bytes, 0);
}

#[cfg(test)]
mod tests {
    use virga_ebpf::{decide::check, reason::Reason, sink};

    use super::*;

    fn plan(kind: Kind, to: SocketAddr) -> Plan {
        Plan {
            from: None,
            to,
            kind,
            destination: NodeId(1),
            origin: OriginHash(2),
            channel: ChannelHash(3),
            payload_bytes: 58,
            rate: 10_000,
            duration: Duration::from_millis(50),
        }
    }

    fn judged(kind: Kind, n: u64) -> Result<(), Reason> {
        let mut packet = Vec::new();
        let plan = plan(kind, "127.0.0.1:9".parse().unwrap());
        write_packet(&plan, 7 << 32, n, &mut packet);
        let header = packet
            .first_chunk()
            .map(Header::decode)
            .ok_or(Reason::Truncated)?;
        check(&header, u32::try_from(packet.len()).unwrap())
    }

    #[test]
    fn malformed_packets_are_malformed_in_each_way_and_others_are_not() {
        let reasons: Vec<Reason> = (0..5)
            .map(|n| judged(Kind::Malformed, n).unwrap_err())
            .collect();
        use Reason::{Length, Magic, Priority, Truncated, Version};
        assert_eq!(reasons, [Magic, Version, Priority, Length, Truncated]);
        assert_eq!(judged(Kind::Plain, 0), Ok(()));
        assert_eq!(judged(Kind::Unauthorised, 0), Ok(()));
    }

    #[test]
    fn packets_arrive() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = receiver.local_addr().unwrap();
        // On a busy machine a run's time may pass before it sends anything.
        let has_sent = (0..10).any(|_| run(&plan(Kind::Plain, to)).unwrap().sent > 0);
        assert!(has_sent, "ten runs sent nothing");
        let mut buffer = [0; 2048];
        assert_eq!(receiver.recv(&mut buffer).unwrap(), HEADER_BYTES + 58);
    }

    #[test]
    fn the_sink_knows_strangers_and_sessions_and_no_run_repeats_another() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        receiver.set_nonblocking(true).unwrap();
        let to = receiver.local_addr().unwrap();
        let mut buffer = [0; 2048];
        let mut last = |kind| {
            // On a busy machine a run's time may pass before it sends anything.
            for _ in 0..10 {
                run(&plan(kind, to)).unwrap();
                let mut header = None;
                // All that the receiver's buffer had room for.
                while receiver.recv(&mut buffer).is_ok() {
                    header = buffer.first_chunk().map(Header::decode);
                }
                if let Some(header) = header {
                    return header;
                }
            }
            panic!("ten runs sent nothing");
        };
        let (plain, again) = (last(Kind::Plain), last(Kind::Plain));
        assert_eq!(sink::kind(&plain), sink::Kind::Authorised(0));
        assert_ne!(plain.sequence, again.sequence);
        let stranger = last(Kind::Unauthorised);
        assert_eq!(sink::kind(&stranger), sink::Kind::Stranger);
    }
}
