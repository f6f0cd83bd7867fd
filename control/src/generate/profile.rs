//! A capture as other generators take it: what TRex and DPDK's pktgen need besides the frames.

use std::fmt::Write as _;

use virga_ebpf::{
    header::{Header, offset},
    limits::{HEADER_BYTES, SEEN_SLOTS},
    sink::read,
};

/// The other generator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// TRex, stateless: a Python profile that counts the sequences up.
    Trex,
    /// Pktgen-DPDK: a command file that replays the capture.
    Dpdk,
}

/// Streams that TRex is given at most.
const TREX_STREAMS_MAX: usize = 10_000;
/// The field that keeps the checksum right counts down from less than this.
const BALANCE_MAX: u64 = 1 << 31;
/// What a field may change by without changing a UDP checksum.
const ONES_COMPLEMENT: u64 = 65_535;
/// Place of the balancing field in the payload: behind the time of sending.
const BALANCE_AT: usize = HEADER_BYTES + 8;
/// A capture sent again and again meets the duplicate filter, unless so many times its slots came between.
const TURNS_OF_FILTER: usize = 8;

/// Why there is no profile of a capture.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum ProfileError {
    #[error("frame {0} holds no mesh packet for port {1}")]
    NoMesh(usize, u16),
    #[error(
        "{0} frames: TRex is given one stream a frame, {TREX_STREAMS_MAX} at most: use --count"
    )]
    Streams(usize),
    #[error("{0} frames of one flow are more than a profile can count: use more --flows")]
    Rounds(u64),
}

impl Profile {
    /// How the profile's file ends.
    #[must_use]
    pub const fn extension(self) -> &'static str {
        match self {
            Self::Trex => "py",
            Self::Dpdk => "pkt",
        }
    }

    /// The profile's text, for the `count` frames that stand in the file of that name beside it.
    ///
    /// # Errors
    /// When the frames are not what the other generator can send.
    pub fn text(
        self,
        file: &str,
        count: usize,
        frames: impl Iterator<Item = Vec<u8>>,
        port: u16,
    ) -> Result<String, ProfileError> {
        match self {
            Self::Trex if count > TREX_STREAMS_MAX => Err(ProfileError::Streams(count)),
            Self::Trex => trex(file, frames, port),
            Self::Dpdk => Ok(dpdk(file, count)),
        }
    }
}

/// Every frame becomes a stream. Its sequence goes up by as many as the capture has rounds, so that no two
/// streams of a flow ever send the same one, and a field of the payload goes down by as much: the
/// UDP checksum stays right whatever the NIC can do. Both begin anew together: TRex wants ranges of whole steps.
fn trex(
    file: &str,
    frames: impl Iterator<Item = Vec<u8>>,
    port: u16,
) -> Result<String, ProfileError> {
    let mut rounds = 1;
    let mut mesh = 0;
    for (number, frame) in (1..).zip(frames) {
        let found = read(frame.as_slice(), port);
        let (header, at): (Header, usize) = found.ok_or(ProfileError::NoMesh(number, port))?;
        mesh = at;
        if !virga_ebpf::workload::is_stranger(header.origin_hash) {
            rounds = rounds.max((header.sequence & 0xffff_ffff) + 1);
        }
    }
    let unit = ONES_COMPLEMENT * rounds;
    let balance = BALANCE_MAX / unit * unit;
    if balance == 0 {
        return Err(ProfileError::Rounds(rounds));
    }
    let sequence_at = mesh + offset::SEQUENCE + 4;
    let balance_at = mesh + BALANCE_AT;
    Ok(format!(
        r#"# TRex stateless profile of {file}: in the console, `start -f {{this file}} -m 1mpps -p 0`.
# Every frame of the capture is a stream; rates are shared equally, so sizes and the mix are the capture's.
# A frame's sequence counts up and a field of its payload counts down by as much: no packet repeats an
# earlier one, and the UDP checksum stays right without help from the NIC.
import os
import struct

from trex_stl_lib.api import *

CAPTURE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "{file}")
STEP = {rounds}
BALANCE = {balance}


def frames():
    """The capture's frames: libpcap format, little-endian."""
    with open(CAPTURE, "rb") as capture:
        capture.read(24)
        while True:
            header = capture.read(16)
            if len(header) < 16:
                return
            yield capture.read(struct.unpack("<4I", header)[2])


def stream(frame):
    first = struct.unpack_from(">I", frame, {sequence_at})[0]
    vm = STLScVmRaw(
        [
            STLVmFlowVar(
                name="sequence", size=4, op="inc", step=STEP,
                init_value=first, min_value=first, max_value=first + BALANCE + STEP - 1,
            ),
            STLVmWrFlowVar(fv_name="sequence", pkt_offset={sequence_at}),
            STLVmFlowVar(
                name="balance", size=4, op="dec", step=STEP,
                init_value=BALANCE, min_value=0, max_value=BALANCE + STEP - 1,
            ),
            STLVmWrFlowVar(fv_name="balance", pkt_offset={balance_at}),
        ]
    )
    return STLStream(
        packet=STLPktBuilder(pkt_buffer=frame, vm=vm),
        mode=STLTXCont(pps=1),
        mac_src_override_by_pkt=True,
        mac_dst_override_mode=STLStreamDstMAC_PKT,
    )


class Mesh(object):
    def get_streams(self, direction=0, **kwargs):
        return [stream(frame) for frame in frames()]


def register():
    return Mesh()
"#
    ))
}

/// Pktgen's capture mode changes nothing in a frame: what is sent again is a duplicate for a second.
fn dpdk(file: &str, frames: usize) -> String {
    let enough = TURNS_OF_FILTER * SEEN_SLOTS as usize;
    let stem = file.strip_suffix(".pcap").unwrap_or(file);
    let mut text = format!(
        "# Pktgen-DPDK commands for {file}: one receiving and one sending core on port 0,\n\
         #   pktgen -l 0-2 -n 4 -- -P -m \"[1:2].0\" -s 0:{file} -f {stem}.pkt\n\
         # More sending cores would send the same frames again.\n"
    );
    let count = if frames < enough {
        let _infallible = write!(
            text,
            "# The capture is sent once: a forwarder takes what it sent within the last second for a duplicate.\n\
             # One of {enough} frames or more may be sent without end (`set 0 count 0`).\n"
        );
        frames
    } else {
        text += "# The capture is sent without end: it is longer than a forwarder's memory of duplicates.\n";
        0
    };
    let _infallible = write!(
        text,
        "set 0 count {count}\nset 0 rate 100\nenable 0 pcap\nclear 0 stats\nstart 0\n"
    );
    text
}
