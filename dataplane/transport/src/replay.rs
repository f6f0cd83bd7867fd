//! Which sequences were opened already: a bitmap behind the newest one (RFC 6479).

use crate::limits::REPLAY_WINDOW_PACKETS;

const BITS: u64 = 64;
/// One word more than the window, so that a word can be cleared before its bits count.
#[allow(clippy::cast_possible_truncation)] // a constant of two digits
const WORDS: usize = (REPLAY_WINDOW_PACKETS / BITS + 1) as usize;

/// What is known of a sequence before its packet is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Never opened, and near enough to tell.
    New,
    /// Opened before.
    Replayed,
    /// Too far behind to tell.
    TooOld,
}

/// The window. `check` changes nothing; `mark` only follows a successful open.
#[derive(Clone, Debug)]
pub(crate) struct ReplayWindow {
    /// One past the newest sequence marked.
    end: u64,
    words: [u64; WORDS],
}

impl ReplayWindow {
    pub(crate) const fn new() -> Self {
        Self {
            end: 0,
            words: [0; WORDS],
        }
    }

    /// Whether `sequence` may still be opened.
    pub(crate) fn check(&self, sequence: u64) -> Seen {
        if sequence >= self.end {
            return Seen::New;
        }
        if self.end - sequence > REPLAY_WINDOW_PACKETS {
            return Seen::TooOld;
        }
        let (word, bit) = place(sequence);
        if self.words[word] & bit == 0 {
            Seen::New
        } else {
            Seen::Replayed
        }
    }

    /// Whether no newer one was marked.
    pub(crate) const fn is_newest(&self, sequence: u64) -> bool {
        sequence + 1 == self.end
    }

    /// Remembers `sequence`, which [`ReplayWindow::check`] called new. Any jump forward is legal.
    pub(crate) fn mark(&mut self, sequence: u64) {
        if sequence >= self.end {
            let newest_word = self.end.saturating_sub(1) / BITS;
            let words_ahead = (sequence / BITS - newest_word).min(WORDS as u64);
            for ahead in 1..=words_ahead {
                let (word, _) = place((newest_word + ahead) * BITS);
                self.words[word] = 0;
            }
            if words_ahead == WORDS as u64 {
                self.words = [0; WORDS];
            }
            self.end = sequence + 1;
        }
        let (word, bit) = place(sequence);
        self.words[word] |= bit;
    }
}

fn place(sequence: u64) -> (usize, u64) {
    let word = usize::try_from(sequence / BITS % WORDS as u64).unwrap_or(0);
    (word, 1 << (sequence % BITS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn any_jump_forward_is_legal_and_forgets_what_is_behind() {
        let mut w = ReplayWindow::new();
        w.mark(0);
        assert_eq!(w.check(0), Seen::Replayed);
        let far = u64::MAX / 2;
        assert_eq!(w.check(far), Seen::New);
        w.mark(far);
        assert_eq!(w.check(0), Seen::TooOld);
        assert_eq!(w.check(far), Seen::Replayed);
        assert_eq!(w.check(far - REPLAY_WINDOW_PACKETS + 1), Seen::New);
        assert_eq!(w.check(far - REPLAY_WINDOW_PACKETS), Seen::TooOld);
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set(
            steps in prop::collection::vec(
                prop_oneof![8 => -200i64..200, 1 => 3_000i64..10_000, 1 => -5_000i64..0], 1..300),
        ) {
            let mut w = ReplayWindow::new();
            let mut opened = BTreeSet::new();
            let mut at = 0i64;
            for step in steps {
                at = (at + step).max(0);
                let sequence = u64::try_from(at).unwrap();
                let newest = opened.last().copied();
                let expected = match newest {
                    Some(n) if sequence + REPLAY_WINDOW_PACKETS <= n => Seen::TooOld,
                    _ if opened.contains(&sequence) => Seen::Replayed,
                    _ => Seen::New,
                };
                prop_assert_eq!(w.check(sequence), expected);
                if expected == Seen::New {
                    w.mark(sequence);
                    opened.insert(sequence);
                }
            }
        }
    }
}
