//! Numbers and lengths: written, and read without ever passing the end.

/// Largest number that a variable-length field holds.
pub(crate) const VARINT_MAX: u64 = (1 << 62) - 1;

pub(super) fn write_numbers(out: &mut Vec<u8>, kind: u8, numbers: &[u64]) {
    out.push(kind);
    for &number in numbers {
        write_varint(out, number);
    }
}

pub(super) fn write_length(out: &mut Vec<u8>, length: usize) {
    let length = u16::try_from(length).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_be_bytes());
}

/// Bytes that `number` takes.
pub(crate) const fn varint_bytes(number: u64) -> usize {
    match number {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        _ => 8,
    }
}

pub(super) fn write_varint(out: &mut Vec<u8>, number: u64) {
    let wide = number.min(VARINT_MAX).to_be_bytes();
    let bytes = varint_bytes(number);
    let start = out.len();
    out.extend_from_slice(&wide[8 - bytes..]);
    let prefix = match bytes {
        1 => 0,
        2 => 0x40,
        4 => 0x80,
        _ => 0xc0,
    };
    out[start] |= prefix;
}

/// Reads forward, never past the end.
#[derive(Clone, Debug)]
pub(super) struct Reader<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let bytes = self.bytes.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(bytes)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    /// One length byte, and that many bytes.
    pub(super) fn short(&mut self) -> Option<&'a [u8]> {
        let length = self.byte()?;
        self.take(length.into())
    }

    /// Two length bytes, and that many bytes.
    pub(super) fn sized(&mut self) -> Option<&'a [u8]> {
        let length = u16::from_be_bytes(self.array()?);
        self.take(length.into())
    }

    pub(super) fn varint(&mut self) -> Option<u64> {
        let first = self.byte()?;
        let rest = self.take((1usize << (first >> 6)) - 1)?;
        Some(
            rest.iter()
                .fold(u64::from(first & 0x3f), |n, &b| n << 8 | u64::from(b)),
        )
    }
}
