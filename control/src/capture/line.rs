//! What a capture tells, a line of JSON each.

use super::asked::{label, verdict};
use crate::{config::Config, hex};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, net::SocketAddr};
use virga_ebpf::{
    header::{ChannelHash, Header, MAGIC, OriginHash},
    limits::HEADER_BYTES,
    sample::{SampleHead, Tally},
};

/// Where a packet was decided upon.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// The program on the NIC.
    Nic,
    /// A worker, over its socket.
    Userspace,
}

impl Place {
    /// As a request spells it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nic => "nic",
            Self::Userspace => "userspace",
        }
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Line {
    /// From now on packets are told.
    Begun(Begun),
    /// One.
    Packet(Box<Packet>),
    /// What was told and what was not, so far; again and again.
    Counts(Counts),
    /// It is over, and this is all.
    Ended(Ended),
}

/// What a capture can see.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begun {
    /// Interfaces whose packets the NIC path tells.
    pub nic: Vec<String>,
    /// Whether workers tell theirs.
    pub userspace: bool,
    /// Why the NIC path, which is there, tells nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nic_refused: Option<String>,
    /// The mesh's UDP port.
    pub port: u16,
}

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// When it was decided upon, in nanoseconds since 1970.
    pub unix_ns: u64,
    /// Where.
    pub place: Place,
    /// The interface that it came in by; nothing where the system does not say.
    pub interface: String,
    /// Its index.
    pub ifindex: u32,
    /// `forward`, `local`, `echo`, `drop` or `pass`.
    pub verdict: String,
    /// The name of what it counts at: of a drop, the reason.
    pub reason: String,
    /// Bytes of the whole frame; in user space, of the datagram.
    pub bytes: u32,
    /// It stands for so many.
    pub one_in: u32,
    /// CPU, or worker.
    pub cpu: u32,
    /// Where it came from, where no outer headers are told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SocketAddr>,
    /// What its header says, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<Fields>,
    /// Its first bytes, in hex.
    pub data: String,
}

/// Whose packet it is, by its header; nobody has proven it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fields {
    /// What headers call its entity, in hex.
    pub origin: String,
    /// What the configuration calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin_name: Option<String>,
    /// The channel's hash, in hex.
    pub channel: String,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channel_name: Option<String>,
    /// The node that it is for, in hex.
    pub destination: String,
    /// The session, in hex.
    pub session: String,
    /// The stream.
    pub stream: u32,
    /// Its number in the session.
    pub sequence: u64,
}

/// How many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Packets that were asked for.
    pub matched: u64,
    /// Of those, told;
    pub told: u64,
    /// passed over, as one in so many was asked for;
    pub passed_over: u64,
    /// missed: above the rate,
    pub over_rate: u64,
    /// without room on their way to the daemon,
    pub no_room: u64,
    /// or because whoever asked did not read them in time.
    pub unread: u64,
}

impl Counts {
    /// Packets that should have been told and were not.
    #[must_use]
    pub const fn missed(&self) -> u64 {
        self.over_rate + self.no_room + self.unread
    }

    /// Both places together.
    pub(super) const fn of(nic: Tally, userspace: Tally) -> Self {
        let both = nic.and(userspace);
        Self {
            matched: both.matched,
            told: 0,
            passed_over: both.passed_over,
            over_rate: both.over_rate,
            no_room: both.no_room,
            unread: 0,
        }
    }
}

/// Why a capture is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The reason.
    pub why: String,
    /// What there was.
    pub counts: Counts,
}

/// What gives numbers names.
#[derive(Clone, Debug, Default)]
pub struct Names {
    pub(super) interfaces: BTreeMap<u32, String>,
    origins: BTreeMap<OriginHash, String>,
    channels: BTreeMap<u16, String>,
}

impl Names {
    /// By a configuration and the kernel's interfaces.
    #[must_use]
    pub fn new(config: &Config, interfaces: BTreeMap<u32, String>) -> Self {
        let named = config.entities.iter();
        let named = named.map(|named| (named.entity.origin, named.name.clone()));
        let own = (config.node.origin, config.node.name.clone());
        let channels = config.channels.iter();
        Self {
            interfaces,
            origins: named.chain([own]).collect(),
            channels: channels
                .map(|channel| (channel.hash.0, channel.name.to_string()))
                .collect(),
        }
    }

    fn fields(&self, header: &Header) -> Fields {
        let ChannelHash(hash) = header.channel_hash;
        Fields {
            origin: header.origin_hash.to_string(),
            origin_name: self.origins.get(&header.origin_hash).cloned(),
            channel: header.channel_hash.to_string(),
            channel_name: self.channels.get(&hash).cloned(),
            destination: header.destination.to_string(),
            session: header.session_id.to_string(),
            stream: header.stream_id.0,
            sequence: header.sequence,
        }
    }

    /// A sample as a line has it: `bytes` of its frame may be told, and its mesh header begins at `mesh`.
    pub(super) fn packet(
        &self,
        (place, source): (Place, Option<SocketAddr>),
        head: &SampleHead,
        unix_ns: u64,
        (bytes, mesh): (&[u8], Option<usize>),
    ) -> Packet {
        let header = mesh
            .and_then(|at| bytes.get(at..)?.first_chunk::<HEADER_BYTES>())
            .map(Header::decode)
            .filter(|header| header.magic == MAGIC);
        let interface = self.interfaces.get(&head.ifindex);
        Packet {
            unix_ns,
            place,
            interface: interface.cloned().unwrap_or_default(),
            ifindex: head.ifindex,
            verdict: verdict(head.counter).to_owned(),
            reason: label(head.counter).to_owned(),
            bytes: head.frame_bytes,
            one_in: head.one_in,
            cpu: head.cpu,
            source,
            header: header.map(|header| self.fields(&header)),
            data: hex::encode_bytes(bytes),
        }
    }
}
