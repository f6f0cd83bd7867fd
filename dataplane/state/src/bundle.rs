//! A signed batch with its events, as one message.
//!
//! ```text
//! batch, see `batch` | of each event: bytes of its payload 4 | payload
//! ```

use crate::{
    batch::{Batch, BatchError},
    format::u32_at,
};
use std::ops::Range;

/// Bytes before an event's payload.
pub const LENGTH_BYTES: usize = 4;

/// The bytes of a message.
#[must_use]
pub fn encode(batch: &Batch, payloads: &[&[u8]]) -> Vec<u8> {
    let mut out = batch.encode();
    for payload in payloads {
        // The events of a batch have a message's bytes at most.
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        out.extend(length.to_be_bytes());
        out.extend_from_slice(payload);
    }
    out
}

/// Reads a message: its batch, and where in it each event's payload is. Nothing is believed yet: see
/// [`Batch::verify`].
///
/// # Errors
/// See [`BatchError`].
pub fn parse(message: &[u8]) -> Result<(Batch, Vec<Range<usize>>), BatchError> {
    let (batch, mut rest) = Batch::parse_first(message)?;
    let mut payloads = Vec::with_capacity(batch.count());
    for _ in 0..batch.count() {
        let (length, behind) = rest
            .split_at_checked(LENGTH_BYTES)
            .ok_or(BatchError::Short)?;
        let length = u32_at(length, 0) as usize;
        let (_, behind) = behind.split_at_checked(length).ok_or(BatchError::Short)?;
        let end = message.len() - behind.len();
        payloads.push(end - length..end);
        rest = behind;
    }
    match rest.len() {
        0 => Ok((batch, payloads)),
        trailing => Err(BatchError::Trailing(trailing)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LogName, feed::FeedEnd};
    use ed25519_dalek::SigningKey;

    #[test]
    fn a_message_is_read_as_it_was_written_and_no_cut_of_it_is() {
        let key = SigningKey::from_bytes(&[1; 32]);
        let channel = LogName::parse("a").unwrap();
        let mut feed = FeedEnd::new(channel, key.verifying_key().to_bytes());
        let payloads = [&b"one"[..], b"", b"three"];
        let batch = feed.sign(&key, Vec::new(), payloads.into_iter()).unwrap();
        let message = encode(&batch, &payloads);
        let (read, ranges) = parse(&message).unwrap();
        assert_eq!(read, batch);
        let found: Vec<&[u8]> = ranges.into_iter().map(|range| &message[range]).collect();
        assert_eq!(found, payloads);
        for end in 0..message.len() {
            assert!(parse(&message[..end]).is_err(), "cut at {end}");
        }
        let longer = [&message[..], b"x"].concat();
        assert_eq!(parse(&longer), Err(BatchError::Trailing(1)));
    }
}
