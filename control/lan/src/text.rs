//! A record as strings of a TXT record.
//!
//! ```text
//! r0=, r1=, …   the record in base64 (RFC 4648, section 5, without padding), 200 characters each
//! ```

use crate::limits::MESSAGE_BYTES_MAX;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use simple_dns::rdata::TXT;
use virga_discovery::{Record, record::RECORD_BYTES_MAX};

/// Characters of one part: a string of a TXT record has 255 bytes, with its key.
const PART: usize = 200;
/// Parts at most.
const PARTS_MAX: usize = (RECORD_BYTES_MAX * 4).div_ceil(3).div_ceil(PART);

const _: () = assert!(PARTS_MAX < 10, "a part's number is one digit");
const _: () = assert!(RECORD_BYTES_MAX * 2 < MESSAGE_BYTES_MAX / 4);

/// The strings of a record; none where it has more than one may have.
#[must_use]
pub fn write(record: &[u8]) -> Option<TXT<'static>> {
    let text = URL_SAFE_NO_PAD.encode(record);
    let parts = text.as_bytes().chunks(PART).enumerate();
    parts
        .take(PARTS_MAX + 1)
        .try_fold(TXT::new(), |text, (number, part)| {
            text.with_attribute(&format!("r{number}"), Some(part)).ok()
        })
        .filter(|_| record.len() <= RECORD_BYTES_MAX)
}

/// The record that strings are of; none where they are of no record. What else they say is for others.
#[must_use]
pub fn read(text: &TXT<'_>) -> Option<Record> {
    let mut parts: [Option<&[u8]>; PARTS_MAX] = [None; PARTS_MAX];
    for (key, value) in text.iter_raw() {
        let [b'r' | b'R', digit @ b'0'..=b'9'] = key else {
            continue;
        };
        let part = parts.get_mut(usize::from(digit - b'0'))?;
        // The first one counts (RFC 6763, section 6.4).
        *part = part.or(value);
    }
    let said = parts.iter().map_while(|part| *part);
    let encoded = said.collect::<Vec<_>>().concat();
    Record::parse(&URL_SAFE_NO_PAD.decode(encoded).ok()?)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use virga_discovery::Claim;

    /// A record that nobody has signed, of a node whose key is all that number.
    pub(crate) fn record(number: u8, sequence: u64) -> Record {
        let address = |n: u8| std::net::SocketAddr::from(([10, 0, n, number], 4783));
        let claim = Claim {
            node_key: [number; 32],
            entity_key: [2; 32],
            network: [3; 32],
            subnet: virga_ebpf::header::Subnet(0),
            instance: 1,
            sequence,
            issued_s: 3,
            lifetime_s: 4,
            name: format!("edge-{number}"),
            addresses: (0..virga_discovery::limits::ADDRESSES_MAX)
                .map(|n| address(u8::try_from(n).unwrap()))
                .collect(),
        };
        Record::issue(&claim, |_| [5; 64]).unwrap()
    }

    #[test]
    fn a_record_is_read_from_its_parts_and_from_no_others() {
        let written = record(1, 2);
        let text = write(written.bytes()).unwrap();
        let parts: Vec<_> = text.iter_raw().collect();
        assert!(parts.len() > 1 && parts.len() <= PARTS_MAX);
        assert_eq!(read(&text), Some(written.clone()));
        let other = text.clone().with_string("note=for people").unwrap();
        assert_eq!(read(&other), Some(written.clone()));

        let of = |parts: &[(&str, &[u8])]| {
            let empty = TXT::new();
            let text = parts.iter().fold(empty, |text, (key, value)| {
                text.with_attribute(key, Some(value)).unwrap()
            });
            read(&text)
        };
        let [first, second] = [0, 1].map(|n| parts[n].1.unwrap());
        let rest: Vec<u8> = parts[1..]
            .iter()
            .flat_map(|part| part.1.unwrap())
            .copied()
            .collect();
        let (start, end) = rest.split_at(rest.len() / 2);
        assert_eq!(
            of(&[("R2", end), ("r1", start), ("r0", first)]),
            Some(written.clone())
        );
        assert_eq!(
            of(&[("r0", first), ("r0", b"!"), ("r1", start), ("r2", end)]),
            Some(written)
        );
        assert_eq!(of(&[("r0", first), ("r2", second)]), None);
        assert_eq!(of(&[("r0", first), ("r1", b"!")]), None);
        assert_eq!(of(&[("r9", first)]), None);
        assert_eq!(of(&[]), None);
        assert!(write(&[0; RECORD_BYTES_MAX + 1]).is_none());
    }
}
