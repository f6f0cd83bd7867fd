//! Packets as a pcapng file (draft-ietf-opsawg-pcapng), each with what became of it as its comment. Written here, as
//! it takes four of the format's many blocks.
//!
//! Frames of the NIC path have the link type Ethernet. What a worker saw has no outer headers, as the kernel keeps
//! them; it is written as Wireshark's exported PDU (link type 252), which says so, and where it came from.

use super::line::{Counts, Packet, Place};
use std::{
    collections::BTreeMap,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
};

const SECTION: u32 = 0x0a0d_0d0a;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;

const OPTION_COMMENT: u16 = 1;
/// Of a section: the program that wrote it. Of an interface: its name, what it is, and that its times are in ns.
const SECTION_USER: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const INTERFACE_DESCRIPTION: u16 = 3;
const INTERFACE_RESOLUTION: u16 = 9;
const NANOSECONDS: u8 = 9;
/// Of statistics: packets that came, and those that were not written.
const STATISTICS_CAME: u16 = 4;
const STATISTICS_MISSED: u16 = 5;

const LINK_ETHERNET: u16 = 1;
const LINK_EXPORTED: u16 = 252;
/// Wireshark's epan/exported_pdu.h.
const TAG_TABLE: u16 = 14;
const TAG_V4_SOURCE: u16 = 20;
const TAG_V6_SOURCE: u16 = 22;
const TAG_PORT_TYPE: u16 = 24;
const TAG_SOURCE_PORT: u16 = 25;
const TAG_TARGET_PORT: u16 = 26;
const TAG_TABLE_VALUE: u16 = 32;
const PORT_TYPE_UDP: u32 = 3;

/// A file that is written.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    /// The mesh's UDP port.
    port: u16,
    interfaces: BTreeMap<(Place, String), u32>,
}

impl<W: Write> Writer<W> {
    /// Begins a file, which says of itself what is to be known of all its packets.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn new(out: W, port: u16, comment: Option<&str>) -> io::Result<Self> {
        let mut writer = Self {
            out,
            port,
            interfaces: BTreeMap::new(),
        };
        let mut body = Vec::new();
        body.extend(BYTE_ORDER.to_le_bytes());
        body.extend(1_u16.to_le_bytes());
        body.extend(0_u16.to_le_bytes());
        // How long the section is, nobody knows yet.
        body.extend(u64::MAX.to_le_bytes());
        if let Some(comment) = comment {
            option(&mut body, OPTION_COMMENT, comment.as_bytes());
        }
        let program = concat!("virga ", env!("CARGO_PKG_VERSION"));
        option(&mut body, SECTION_USER, program.as_bytes());
        option(&mut body, 0, &[]);
        writer.block(SECTION, &body)?;
        Ok(writer)
    }

    /// A packet; `data` is what there is of it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn packet(&mut self, packet: &Packet, data: &[u8]) -> io::Result<()> {
        let interface = self.interface(packet)?;
        let (mut bytes, mut whole) = (data.to_vec(), packet.bytes);
        if packet.place == Place::Userspace {
            let tags = self.tags(packet.source);
            whole = whole.saturating_add(size(&tags)?);
            bytes = [tags, bytes].concat();
        }
        let mut body = Vec::with_capacity(bytes.len() + 128);
        body.extend(interface.to_le_bytes());
        body.extend(time(packet.unix_ns));
        body.extend(size(&bytes)?.to_le_bytes());
        body.extend(whole.to_le_bytes());
        body.extend(&bytes);
        pad(&mut body);
        option(&mut body, OPTION_COMMENT, comment(packet).as_bytes());
        option(&mut body, 0, &[]);
        self.block(PACKET, &body)
    }

    /// Ends the file: what came, and what is not in it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn end(&mut self, unix_ns: u64, counts: &Counts) -> io::Result<()> {
        // Of all interfaces together: said of the first.
        if !self.interfaces.is_empty() {
            let mut body = Vec::new();
            body.extend(0_u32.to_le_bytes());
            body.extend(time(unix_ns));
            option(&mut body, STATISTICS_CAME, &counts.matched.to_le_bytes());
            option(&mut body, STATISTICS_MISSED, &counts.missed().to_le_bytes());
            option(&mut body, 0, &[]);
            self.block(STATISTICS, &body)?;
        }
        self.flush()
    }

    /// Has what is written reach the file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// The number of a packet's interface; described where it is new.
    fn interface(&mut self, packet: &Packet) -> io::Result<u32> {
        let name = match &*packet.interface {
            "" => "socket",
            name => name,
        };
        let key = (packet.place, name.to_owned());
        if let Some(number) = self.interfaces.get(&key) {
            return Ok(*number);
        }
        let (link, what) = match packet.place {
            Place::Nic => (LINK_ETHERNET, "frames as the NIC path gets them"),
            Place::Userspace => (
                LINK_EXPORTED,
                "datagrams as a worker's socket gives them, without outer headers",
            ),
        };
        let mut body = Vec::new();
        body.extend(link.to_le_bytes());
        body.extend([0; 6]);
        option(&mut body, INTERFACE_NAME, name.as_bytes());
        option(&mut body, INTERFACE_DESCRIPTION, what.as_bytes());
        option(&mut body, INTERFACE_RESOLUTION, &[NANOSECONDS]);
        option(&mut body, 0, &[]);
        self.block(INTERFACE, &body)?;
        let number = self.interfaces.len();
        let number = u32::try_from(number).map_err(|_| io::ErrorKind::InvalidInput)?;
        self.interfaces.insert(key, number);
        Ok(number)
    }

    /// What Wireshark needs to know of a datagram in place of outer headers.
    fn tags(&self, source: Option<SocketAddr>) -> Vec<u8> {
        let mut tags = Vec::new();
        let mut tag = |tag: u16, value: &[u8]| {
            tags.extend(tag.to_be_bytes());
            let padded = value.len().next_multiple_of(4);
            tags.extend(u16::try_from(padded).unwrap_or(0).to_be_bytes());
            tags.extend(value);
            tags.resize(tags.len() + padded - value.len(), 0);
        };
        tag(TAG_TABLE, b"udp.port");
        tag(TAG_TABLE_VALUE, &u32::from(self.port).to_be_bytes());
        tag(TAG_PORT_TYPE, &PORT_TYPE_UDP.to_be_bytes());
        if let Some(source) = source {
            match source.ip().to_canonical() {
                IpAddr::V4(v4) => tag(TAG_V4_SOURCE, &v4.octets()),
                IpAddr::V6(v6) => tag(TAG_V6_SOURCE, &v6.octets()),
            }
            tag(TAG_SOURCE_PORT, &u32::from(source.port()).to_be_bytes());
        }
        tag(TAG_TARGET_PORT, &u32::from(self.port).to_be_bytes());
        tag(0, &[]);
        tags
    }

    fn block(&mut self, kind: u32, body: &[u8]) -> io::Result<()> {
        let bytes = size(body)?.saturating_add(12).to_le_bytes();
        self.out.write_all(&kind.to_le_bytes())?;
        self.out.write_all(&bytes)?;
        self.out.write_all(body)?;
        self.out.write_all(&bytes)
    }
}

/// What became of a packet: verdict, reason, place, and how many it stands for.
#[must_use]
pub fn comment(packet: &Packet) -> String {
    let place = packet.place.name();
    let mut text = format!("{} {}, {place}", packet.verdict, packet.reason);
    if packet.one_in > 1 {
        text += &format!(", one of {}", packet.one_in);
    }
    text
}

fn size<T>(of: &[T]) -> io::Result<u32> {
    u32::try_from(of.len()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// A time stamp: the upper half first.
fn time(unix_ns: u64) -> [u8; 8] {
    unix_ns.rotate_right(32).to_le_bytes()
}

fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    body.extend(code.to_le_bytes());
    body.extend(u16::try_from(value.len()).unwrap_or(0).to_le_bytes());
    body.extend(value);
    pad(body);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet() -> Packet {
        Packet {
            unix_ns: 0x0102_0304_0506_0708,
            place: Place::Nic,
            interface: "eth0".into(),
            ifindex: 2,
            verdict: "drop".into(),
            reason: "magic".into(),
            bytes: 60,
            one_in: 3,
            cpu: 0,
            source: None,
            header: None,
            data: String::new(),
        }
    }

    /// The blocks of a file: kind and body.
    fn blocks(mut file: &[u8]) -> Vec<(u32, &[u8])> {
        let word = |bytes: &[u8]| u32::from_le_bytes(*bytes.first_chunk().unwrap());
        let mut blocks = Vec::new();
        while !file.is_empty() {
            let bytes = word(&file[4..]) as usize;
            assert!(bytes.is_multiple_of(4));
            assert_eq!(word(&file[bytes - 4..]) as usize, bytes);
            blocks.push((word(file), &file[8..bytes - 4]));
            file = &file[bytes..];
        }
        blocks
    }

    #[test]
    fn a_file_is_a_section_with_each_interface_once_and_the_statistics_last() {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, 4783, Some("of workers alone")).unwrap();
        let userspace = Packet {
            place: Place::Userspace,
            source: Some("10.0.0.2:5000".parse().unwrap()),
            ..packet()
        };
        for (packet, data) in [
            (packet(), &[7; 5][..]),
            (userspace, &[8; 3]),
            (packet(), &[]),
        ] {
            writer.packet(&packet, data).unwrap();
        }
        let counts = Counts {
            matched: 9,
            over_rate: 4,
            ..Counts::default()
        };
        writer.end(5, &counts).unwrap();
        let blocks = blocks(&file);
        let kinds: Vec<u32> = blocks.iter().map(|(kind, _)| *kind).collect();
        let expected = [
            SECTION, INTERFACE, PACKET, INTERFACE, PACKET, PACKET, STATISTICS,
        ];
        assert_eq!(kinds, expected);
        let (_, section) = blocks[0];
        let said = b"\x01\0\x10\0of workers alone";
        assert!(section[16..].starts_with(said));
        let (_, first) = blocks[2];
        assert_eq!(
            first[4..12],
            [4, 3, 2, 1, 8, 7, 6, 5],
            "the upper half first"
        );
        assert_eq!(first[12..16], 5_u32.to_le_bytes());
        assert_eq!(first[16..20], 60_u32.to_le_bytes());
        assert_eq!(first[20..28], [7, 7, 7, 7, 7, 0, 0, 0]);
        let comment = b"drop magic, nic, one of 3";
        assert!(first.windows(comment.len()).any(|w| w == comment));
        let (_, statistics) = blocks[6];
        assert_eq!(statistics[16..24], 9_u64.to_le_bytes());
        assert_eq!(statistics[28..36], 4_u64.to_le_bytes());
    }
}
