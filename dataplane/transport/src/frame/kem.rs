//! Halves of ML-KEM keys and ciphertexts.

use super::{
    Frame, FrameError, KEM,
    coding::{Reader, write_length},
};
use crate::hybrid::PARTS;

pub(super) fn write_kem(out: &mut Vec<u8>, part: u8, bytes: &[u8]) {
    out.extend_from_slice(&[KEM, part]);
    write_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

pub(super) fn read_kem<'a>(r: &mut Reader<'a>, at: usize) -> Result<Option<Frame<'a>>, FrameError> {
    match r.byte() {
        Some(part) if part >= PARTS => Err(FrameError::Field { at, field: "part" }),
        Some(part) => Ok(r.sized().map(|bytes| Frame::Kem { part, bytes })),
        None => Ok(None),
    }
}
