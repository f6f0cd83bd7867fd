//! Frames built field by field, with checksums computed in full: what the NIC path's incremental
//! updates are held against.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use virga_ebpf::header::Header;

/// An IPv6 extension header: its type and its whole bytes but the first (next header).
pub type Extension = (u8, Vec<u8>);

/// How the UDP checksum is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    Right,
    Zero,
    Wrong,
}

/// A frame's fields.
#[derive(Clone, Debug)]
pub struct Spec {
    /// EtherType and TCI of each VLAN tag.
    pub tags: Vec<(u16, u16)>,
    pub ethertype: Option<u16>,
    pub macs: [u8; 12],
    pub source: IpAddr,
    pub target: IpAddr,
    pub traffic_class: u8,
    /// IPv4: option bytes, a multiple of 4.
    pub options: Vec<u8>,
    /// IPv4: flags and fragment offset.
    pub fragment: u16,
    /// IPv6: in order.
    pub extensions: Vec<Extension>,
    pub protocol: u8,
    pub source_port: u16,
    pub target_port: u16,
    pub header: Header,
    pub payload: Vec<u8>,
    pub checksum: Checksum,
    pub ip_length_delta: i16,
    pub udp_length_delta: i16,
    /// Bytes after the IP packet, as Ethernet padding would be.
    pub trailing: usize,
    /// Bytes cut off the end.
    pub cut: usize,
    pub ip_hop_limit: u8,
}

impl Spec {
    /// A well-formed frame; `payload_len` as the payload says.
    pub fn new(source: &str, target: &str, header: Header, payload_bytes: usize) -> Self {
        let payload: Vec<u8> = (0..payload_bytes)
            .map(|i| u8::try_from(i * 7 % 251).unwrap())
            .collect();
        Self {
            tags: Vec::new(),
            ethertype: None,
            macs: [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2],
            source: source.parse().unwrap(),
            target: target.parse().unwrap(),
            traffic_class: 0,
            options: Vec::new(),
            fragment: 0x4000,
            extensions: Vec::new(),
            protocol: 17,
            source_port: 50_000,
            target_port: 4783,
            header: Header {
                payload_len: u16::try_from(payload_bytes).unwrap(),
                ..header
            },
            payload,
            checksum: Checksum::Right,
            ip_length_delta: 0,
            udp_length_delta: 0,
            trailing: 0,
            cut: 0,
            ip_hop_limit: 64,
        }
    }

    /// The frame's bytes.
    pub fn build(&self) -> Vec<u8> {
        let mut frame = self.macs.to_vec();
        for (ethertype, tci) in &self.tags {
            frame.extend(ethertype.to_be_bytes());
            frame.extend(tci.to_be_bytes());
        }
        let ethertype = self.ethertype.unwrap_or(match self.source {
            IpAddr::V4(_) => 0x0800,
            IpAddr::V6(_) => 0x86dd,
        });
        frame.extend(ethertype.to_be_bytes());
        let udp = self.udp();
        match (self.source, self.target) {
            (IpAddr::V4(s), IpAddr::V4(t)) => self.ipv4(&mut frame, s, t, &udp),
            (IpAddr::V6(s), IpAddr::V6(t)) => self.ipv6(&mut frame, s, t, &udp),
            _ => panic!("source and target are of one family"),
        }
        frame.resize(frame.len() + self.trailing, 0);
        frame.truncate(frame.len() - self.cut.min(frame.len() - 14));
        frame
    }

    fn udp(&self) -> Vec<u8> {
        let length = u16::try_from(8 + 64 + self.payload.len()).unwrap();
        let length = length.wrapping_add_signed(self.udp_length_delta);
        let mut udp = self.source_port.to_be_bytes().to_vec();
        udp.extend(self.target_port.to_be_bytes());
        udp.extend(length.to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(self.header.encode());
        udp.extend(&self.payload);
        let checksum = match self.checksum {
            Checksum::Zero => 0,
            Checksum::Right => self.udp_checksum(&udp),
            Checksum::Wrong => !self.udp_checksum(&udp) | 1,
        };
        udp[6..8].copy_from_slice(&checksum.to_be_bytes());
        udp
    }

    /// RFC 768 with the pseudo-header of RFC 791 or RFC 8200; 0 is sent as 0xFFFF.
    fn udp_checksum(&self, udp: &[u8]) -> u16 {
        let mut pseudo = Vec::new();
        match (self.source, self.target) {
            (IpAddr::V4(s), IpAddr::V4(t)) => {
                pseudo.extend(s.octets());
                pseudo.extend(t.octets());
            }
            (IpAddr::V6(s), IpAddr::V6(t)) => {
                pseudo.extend(s.octets());
                pseudo.extend(t.octets());
            }
            _ => panic!("source and target are of one family"),
        }
        pseudo.extend([0, 17]);
        pseudo.extend(u16::try_from(udp.len()).unwrap().to_be_bytes());
        pseudo.extend(udp);
        match internet_checksum(&pseudo) {
            0 => 0xffff,
            sum => sum,
        }
    }

    fn ipv4(&self, frame: &mut Vec<u8>, s: Ipv4Addr, t: Ipv4Addr, udp: &[u8]) {
        let header_bytes = 20 + self.options.len();
        let total = u16::try_from(header_bytes + udp.len()).unwrap();
        let total = total.wrapping_add_signed(self.ip_length_delta);
        let mut ip = vec![
            0x40 | u8::try_from(header_bytes / 4).unwrap(),
            self.traffic_class,
        ];
        ip.extend(total.to_be_bytes());
        ip.extend([0, 0]);
        ip.extend(self.fragment.to_be_bytes());
        ip.extend([self.ip_hop_limit, self.protocol, 0, 0]);
        ip.extend(s.octets());
        ip.extend(t.octets());
        ip.extend(&self.options);
        let sum = internet_checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        frame.extend(ip);
        frame.extend(udp);
    }

    fn ipv6(&self, frame: &mut Vec<u8>, s: Ipv6Addr, t: Ipv6Addr, udp: &[u8]) {
        let mut rest = Vec::new();
        for (i, (_, bytes)) in self.extensions.iter().enumerate() {
            rest.push(
                self.extensions
                    .get(i + 1)
                    .map_or(self.protocol, |next| next.0),
            );
            rest.extend(bytes);
        }
        rest.extend(udp);
        let payload = u16::try_from(rest.len())
            .unwrap()
            .wrapping_add_signed(self.ip_length_delta);
        frame.extend([
            0x60 | self.traffic_class >> 4,
            self.traffic_class << 4,
            0,
            0,
        ]);
        frame.extend(payload.to_be_bytes());
        frame.push(
            self.extensions
                .first()
                .map_or(self.protocol, |first| first.0),
        );
        frame.push(self.ip_hop_limit);
        frame.extend(s.octets());
        frame.extend(t.octets());
        frame.extend(rest);
    }

    /// The same frame, changed.
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }
}

/// RFC 1071.
pub fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)])))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}
