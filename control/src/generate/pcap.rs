//! Captures in the classic libpcap format (draft-ietf-opsawg-pcap): written with nanoseconds, read with
//! either precision and in either byte order.

use std::io::{self, Read, Write};

use virga_ebpf::workload::{CAPTURED_BYTES_MAX, CAPTURED_MAX};

const MAGIC_MICROSECONDS: u32 = 0xa1b2_c3d4;
const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;
/// First bytes of a pcapng file, the same in either byte order.
const MAGIC_PCAPNG: u32 = 0x0a0d_0d0a;
const LINK_ETHERNET: u32 = 1;
/// No frame is longer than this.
const SNAP_BYTES: u32 = 65_535;
const NS_PER_SECOND: u64 = 1_000_000_000;
/// Bytes of the file's header, and of each frame's.
const FILE_HEADER_BYTES: usize = 24;
const FRAME_HEADER_BYTES: usize = 16;

/// Why a capture cannot be read.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum PcapError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("no libpcap file: it begins with {0:08x}")]
    Magic(u32),
    #[error("a pcapng file; `editcap -F pcap IN OUT` or `tcpdump -r IN -w OUT` makes a pcap of it")]
    Pcapng,
    #[error("captured on link type {0}; only Ethernet (1) can be sent")]
    Link(u32),
    #[error("frame {0} was cut short when it was captured: capture with `-s 0`")]
    Cut(usize),
    #[error("frame {number} has {bytes} bytes; at most {CAPTURED_BYTES_MAX} can be sent")]
    TooLong { number: usize, bytes: usize },
    #[error("it ends within frame {0}")]
    Truncated(usize),
    #[error(
        "more than {CAPTURED_MAX} frames: `editcap -r IN OUT 1-{CAPTURED_MAX}` takes the first"
    )]
    TooMany,
}

/// Writes frames, `interval_ns` apart by their time stamps, from time 0 on.
///
/// # Errors
/// When the file cannot be written.
pub fn write(
    mut out: impl Write,
    frames: impl Iterator<Item = Vec<u8>>,
    interval_ns: u64,
) -> io::Result<()> {
    let mut header = Vec::with_capacity(FILE_HEADER_BYTES);
    header.extend(MAGIC_NANOSECONDS.to_le_bytes());
    header.extend(2_u16.to_le_bytes());
    header.extend(4_u16.to_le_bytes());
    for word in [0, 0, SNAP_BYTES, LINK_ETHERNET] {
        header.extend(u32::to_le_bytes(word));
    }
    out.write_all(&header)?;
    for (number, frame) in (0_u64..).zip(frames) {
        let at_ns = number.wrapping_mul(interval_ns);
        let second = u32::try_from(at_ns / NS_PER_SECOND).unwrap_or(u32::MAX);
        let ns = u32::try_from(at_ns % NS_PER_SECOND).unwrap_or(0);
        let bytes = u32::try_from(frame.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        for word in [second, ns, bytes, bytes] {
            out.write_all(&word.to_le_bytes())?;
        }
        out.write_all(&frame)?;
    }
    out.flush()
}

/// Reads all frames of a capture.
///
/// # Errors
/// When it is none, or holds what cannot be sent.
pub fn read(mut from: impl Read) -> Result<Vec<Vec<u8>>, PcapError> {
    let mut header = [0; FILE_HEADER_BYTES];
    from.read_exact(&mut header)?;
    let magic = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let word: fn([u8; 4]) -> u32 = match (magic, magic.swap_bytes()) {
        (MAGIC_MICROSECONDS | MAGIC_NANOSECONDS, _) => u32::from_le_bytes,
        (_, MAGIC_MICROSECONDS | MAGIC_NANOSECONDS) => u32::from_be_bytes,
        (MAGIC_PCAPNG, _) => return Err(PcapError::Pcapng),
        _ => return Err(PcapError::Magic(magic)),
    };
    let at = |bytes: &[u8], from: usize| {
        word([
            bytes[from],
            bytes[from + 1],
            bytes[from + 2],
            bytes[from + 3],
        ])
    };
    // The upper bits say whether frames end in their check sequence.
    let link = at(&header, 20) & 0x0fff_ffff;
    if link != LINK_ETHERNET {
        return Err(PcapError::Link(link));
    }
    let mut frames = Vec::new();
    loop {
        let number = frames.len() + 1;
        let mut header = [0; FRAME_HEADER_BYTES];
        match fill(&mut from, &mut header)? {
            0 => return Ok(frames),
            FRAME_HEADER_BYTES => {}
            _ => return Err(PcapError::Truncated(number)),
        }
        let (bytes, whole) = (at(&header, 8) as usize, at(&header, 12) as usize);
        if bytes > CAPTURED_BYTES_MAX {
            return Err(PcapError::TooLong { number, bytes });
        }
        if bytes < whole {
            return Err(PcapError::Cut(number));
        }
        if frames.len() >= CAPTURED_MAX as usize {
            return Err(PcapError::TooMany);
        }
        let mut frame = vec![0; bytes];
        if fill(&mut from, &mut frame)? != bytes {
            return Err(PcapError::Truncated(number));
        }
        frames.push(frame);
    }
}

/// Reads until the buffer is full or the file ends; how many bytes that were.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(frames: &[Vec<u8>]) -> Vec<u8> {
        let mut file = Vec::new();
        write(&mut file, frames.iter().cloned(), 400_000_000).unwrap();
        file
    }

    fn frames() -> Vec<Vec<u8>> {
        (1..=4).map(|n| vec![n; 60 + usize::from(n)]).collect()
    }

    #[test]
    fn what_is_written_is_as_the_format_says_and_can_be_read() {
        let file = written(&frames());
        let header = "4d3cb2a1 0200 0400 00000000 00000000 ffff0000 01000000";
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        assert_eq!(hex(&file[..24]), header.replace(' ', ""));
        // The fourth frame: 1.2 s after the first.
        let at = 24 + 3 * 16 + 61 + 62 + 63;
        let frame_header = "01000000 00c2eb0b 40000000 40000000";
        assert_eq!(hex(&file[at..at + 16]), frame_header.replace(' ', ""));
        assert_eq!(file.len(), at + 16 + 64);
        assert_eq!(read(file.as_slice()).unwrap(), frames());
    }

    #[test]
    fn either_byte_order_and_precision_is_read() {
        let mut file = Vec::new();
        file.extend(MAGIC_MICROSECONDS.to_be_bytes());
        file.extend([0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0]);
        file.extend([0, 0, 0xff, 0xff, 0xf0, 0, 0, 1]);
        for frame in frames() {
            let bytes = u32::try_from(frame.len()).unwrap();
            for word in [7, 999_999, bytes, bytes] {
                file.extend(u32::to_be_bytes(word));
            }
            file.extend(frame);
        }
        assert_eq!(read(file.as_slice()).unwrap(), frames());
    }

    #[test]
    fn what_is_no_capture_or_cannot_be_sent_is_refused_with_the_reason() {
        let refused = |file: &[u8]| read(file).unwrap_err().to_string();
        let file = written(&frames());
        for cut in (1..file.len()).filter(|cut| ![24, 24 + 77, 24 + 155, 24 + 234].contains(cut)) {
            assert!(read(&file[..cut]).is_err(), "cut at {cut}");
        }
        assert!(refused(&file[..24 + 77 + 3]).contains("within frame 2"));
        assert!(refused(&[0x0a, 0x0d, 0x0d, 0x0a].repeat(8)).contains("editcap"));
        assert!(refused(&[0; 24]).contains("no libpcap file"));
        let changed = |at: usize, value: u8| {
            let mut file = file.clone();
            file[at] = value;
            file
        };
        assert!(refused(&changed(20, 113)).contains("link type 113"));
        assert!(refused(&changed(24 + 12, 99)).contains("frame 1 was cut short"));
        assert!(refused(&changed(24 + 10, 1)).contains("frame 1 has 65597 bytes"));
        assert!(read(&file[..0]).is_err());
    }
}
