//! The exact set, built anew beside the live one and flipped to; of the lines there, those are written that differ.

extern crate std;
use std::{mem::take, vec::Vec};

use super::{PublishError, Publisher, Store};
use crate::{
    image::Image,
    limits::{PAIR_LINES_MAX, PAIRS_MAX},
    pair_set::{all_of, build, half_of, live},
    tables::Pair,
};

/// The pairs of the live exact set: those that are authorised, and those that are denied by a filter's number.
///
/// # Errors
/// When the tables cannot be read.
pub fn held_pairs<S: Store>(store: &S) -> Result<Vec<Pair>, S::Error> {
    let (half, lines) = half_of(store.settings()?.pairs);
    let lines = store.pair_lines(from(half), lines)?;
    Ok(all_of(&lines).collect())
}

/// The first line of a set.
fn from(half: usize) -> u32 {
    if half == 0 { 0 } else { PAIR_LINES_MAX }
}

impl Publisher {
    /// Whether the exact set changed.
    pub(super) fn apply_pairs<S: Store>(
        &mut self,
        store: &mut S,
        image: &Image,
    ) -> Result<bool, PublishError<S::Error>> {
        let is_same = self.pairs == image.pairs;
        if is_same && !self.set_due {
            return Ok(false);
        }
        if !is_same {
            self.bump_due |= !self.pairs.is_subset(&image.pairs);
            self.pairs.clone_from(&image.pairs);
            // Should this fail half-way, the guard is built with the next image.
            self.guard = None;
        }
        self.write_set(store)?;
        Ok(!is_same)
    }

    /// Builds the exact set of what is admitted and denied now, and flips to it. That is a write of its own: no verdict
    /// by the old set is cached in the generation that follows.
    pub(super) fn write_set<S: Store>(
        &mut self,
        store: &mut S,
    ) -> Result<(), PublishError<S::Error>> {
        self.set_due = true;
        let key = self.settings.pair_key;
        let pairs = self.pairs.iter().chain(&self.denied);
        let count = self.pairs.len() + self.denied.len();
        let set = build(key, count, pairs).ok_or(PublishError::Full("pairs", PAIRS_MAX))?;
        let (stored, _) = half_of(self.stored.pairs);
        let half = 1 - stored;
        // Until it is written whole, nobody knows what is there.
        let known = take(&mut self.sets[half]);
        for (n, line) in set.iter().enumerate() {
            if known.get(n) != Some(line) {
                let n = u32::try_from(n).unwrap_or(PAIR_LINES_MAX - 1);
                store.set_pair_line(from(half) + n, line)?;
            }
        }
        (self.settings.pairs, self.stored.pairs) = (live(half, &set), live(half, &set));
        self.stored.pair_key = key;
        self.sets[half] = set;
        store.set_settings(&self.stored)?;
        self.set_due = false;
        Ok(())
    }
}
