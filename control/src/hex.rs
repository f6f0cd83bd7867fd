//! 32-byte keys as 64 hex digits, with errors that say which character is wrong.

use std::fmt::Write as _;

/// Why a text is no key; for messages.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HexError {
    /// Not 64 characters.
    #[error("has {characters} characters where a 32-byte key has 64 hex digits")]
    Length {
        /// How many it has.
        characters: usize,
    },
    /// A character that is no hex digit.
    #[error("has {character:?} as character {position}, which is not a hex digit")]
    Digit {
        /// What stands there.
        character: char,
        /// Where, counted from 1.
        position: usize,
    },
}

/// Reads exactly 64 hex digits of either case.
///
/// # Errors
/// [`HexError`], naming the first thing that is wrong.
pub fn decode(text: &str) -> Result<[u8; 32], HexError> {
    let bad = text
        .chars()
        .enumerate()
        .find(|(_, c)| !c.is_ascii_hexdigit());
    if let Some((index, character)) = bad {
        let position = index + 1;
        return Err(HexError::Digit {
            character,
            position,
        });
    }
    let digits: &[u8; 64] = text.as_bytes().try_into().map_err(|_| HexError::Length {
        characters: text.len(),
    })?;
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0]) << 4 | digit(pair[1]);
    }
    Ok(key)
}

/// Reads exactly 32 hex digits of either case; none where it is anything else.
#[must_use]
pub fn decode_id(text: &str) -> Option<[u8; 16]> {
    let digits: &[u8; 32] = text.as_bytes().try_into().ok()?;
    let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
    is_hex.then(|| std::array::from_fn(|at| digit(digits[2 * at]) << 4 | digit(digits[2 * at + 1])))
}

/// 64 lower-case hex digits.
#[must_use]
pub fn encode(key: &[u8; 32]) -> String {
    encode_bytes(key)
}

/// Two lower-case hex digits a byte.
#[must_use]
pub fn encode_bytes(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Reads two hex digits a byte; none where there is anything else.
#[must_use]
pub fn decode_bytes(text: &str) -> Option<Vec<u8>> {
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
        return None;
    };
    let is_hex = |pair: &[u8; 2]| pair.iter().all(u8::is_ascii_hexdigit);
    let byte = |pair: &[u8; 2]| is_hex(pair).then(|| digit(pair[0]) << 4 | digit(pair[1]));
    pairs.iter().map(byte).collect()
}

const fn digit(character: u8) -> u8 {
    match character {
        b'0'..=b'9' => character - b'0',
        b'a'..=b'f' => character - b'a' + 10,
        _ => character - b'A' + 10,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_is_the_inverse_of_encode_in_either_case() {
        let key: [u8; 32] = std::array::from_fn(|i| u8::try_from(i * 8 + 7).unwrap());
        let text = encode(&key);
        assert_eq!(decode(&text).unwrap(), key);
        assert_eq!(decode(&text.to_uppercase()).unwrap(), key);
    }

    #[test]
    fn an_id_has_32_digits() {
        let id: [u8; 16] = std::array::from_fn(|i| u8::try_from(i * 17).unwrap());
        let text = encode_bytes(&id);
        assert_eq!(decode_id(&text), Some(id));
        assert_eq!(decode_id(&text.to_uppercase()), Some(id));
        for wrong in [&text[1..], &format!("{text}0"), &text.replace('f', "g")] {
            assert_eq!(decode_id(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn bytes_are_read_as_they_were_written_and_nothing_else_is() {
        assert_eq!(
            decode_bytes(&encode_bytes(b"\x00\xfe ")),
            Some(b"\x00\xfe ".to_vec())
        );
        assert_eq!(decode_bytes(""), Some(Vec::new()));
        assert_eq!((decode_bytes("abc"), decode_bytes("+1")), (None, None));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let short = HexError::Length { characters: 63 };
        assert_eq!(decode(&"a".repeat(63)), Err(short));
        let digit = HexError::Digit {
            character: 'g',
            position: 4,
        };
        assert_eq!(decode(&format!("aaag{}", "0".repeat(60))), Err(digit));
        let wide = HexError::Digit {
            character: 'é',
            position: 64,
        };
        assert_eq!(decode(&format!("{}é", "0".repeat(63))), Err(wide));
        assert_eq!(decode(""), Err(HexError::Length { characters: 0 }));
    }
}
