//! Randomness from a seed: ids, ephemeral keys, jitter. Nothing here asks the system.
//!
//! Keyed BLAKE2s as a generator with fast key erasure: each draw replaces the key first, so that
//! a later look at the state says nothing about earlier draws.

use snow::{
    params::{CipherChoice, DHChoice, HashChoice},
    resolvers::{CryptoResolver, DefaultResolver},
    types::{Cipher, Dh, Hash, Random},
};
use virga_ebpf::hash::keyed;
use zeroize::Zeroize;

/// A seeded generator.
pub(crate) struct Generator {
    key: [u8; 32],
}

impl Drop for Generator {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl Generator {
    /// Draws depend on `seed` and `label` alone.
    pub(crate) fn new(seed: &[u8; 32], label: &[u8]) -> Self {
        Self {
            key: keyed(seed, &[b"virga random v1", label]),
        }
    }

    /// 32 fresh bytes.
    pub(crate) fn bytes_32(&mut self) -> [u8; 32] {
        let mut next = keyed(&self.key, &[b"key"]);
        let drawn = keyed(&self.key, &[b"draw"]);
        self.key.zeroize();
        self.key = next;
        next.zeroize();
        drawn
    }

    /// A fresh number.
    pub(crate) fn number(&mut self) -> u64 {
        let b = self.bytes_32();
        u64::from_be_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])
    }

    /// A fresh number below `bound`, or 0 when that is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        let wide = u128::from(self.number()) * u128::from(bound);
        u64::try_from(wide >> 64).unwrap_or(0)
    }
}

impl Random for Generator {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        for chunk in dest.chunks_mut(32) {
            let mut drawn = self.bytes_32();
            chunk.copy_from_slice(&drawn[..chunk.len()]);
            drawn.zeroize();
        }
        Ok(())
    }
}

/// Gives `snow` its usual primitives, and randomness from a seed drawn for one handshake.
pub(crate) struct SeededResolver {
    seed: [u8; 32],
}

impl SeededResolver {
    pub(crate) fn new(generator: &mut Generator) -> Self {
        Self {
            seed: generator.bytes_32(),
        }
    }
}

impl Drop for SeededResolver {
    fn drop(&mut self) {
        self.seed.zeroize();
    }
}

impl CryptoResolver for SeededResolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Generator::new(&self.seed, b"noise")))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        DefaultResolver.resolve_cipher(choice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same_and_another_does_not() {
        let mut a = Generator::new(&[1; 32], b"x");
        let mut b = Generator::new(&[1; 32], b"x");
        let mut c = Generator::new(&[1; 32], b"y");
        let first = a.bytes_32();
        assert_eq!(first, b.bytes_32());
        assert_ne!(first, c.bytes_32());
        assert_ne!(first, a.bytes_32());
    }

    #[test]
    fn below_is_below() {
        let mut g = Generator::new(&[2; 32], b"");
        assert_eq!(g.below(0), 0);
        let mut seen = [false; 5];
        for _ in 0..200 {
            seen[usize::try_from(g.below(5)).unwrap()] = true;
        }
        assert_eq!(seen, [true; 5]);
    }
}
