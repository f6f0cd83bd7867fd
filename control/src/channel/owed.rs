//! What a node is owed: batches that another was to bring it and did not, or that wait until it may have them.

use bytes::Bytes;
use std::collections::VecDeque;
use virga_transport::Receipt;

/// A batch that a node is owed.
#[derive(Debug)]
pub(crate) struct Owed {
    pub(super) batch: Bytes,
    pub(super) deadline_ns: Option<u64>,
    pub(super) receipt: Option<Receipt>,
}

/// All that one node is owed, in the order in which it gets them, and how many bytes these are.
#[derive(Debug, Default)]
pub(crate) struct Debt {
    queue: VecDeque<Owed>,
    bytes: usize,
}

impl Debt {
    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Bytes of all batches.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn push(&mut self, owed: Owed) {
        self.bytes += owed.batch.len();
        self.queue.push_back(owed);
    }

    /// The one that goes first.
    pub(super) fn first(&self) -> Option<&Owed> {
        self.queue.front()
    }

    /// It has gone.
    pub(super) fn pop(&mut self) -> Option<Owed> {
        let owed = self.queue.pop_front()?;
        self.bytes -= owed.batch.len();
        Some(owed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owed(bytes: usize) -> Owed {
        Owed {
            batch: vec![0; bytes].into(),
            deadline_ns: None,
            receipt: None,
        }
    }

    fn sum(debt: &Debt) -> usize {
        debt.queue.iter().map(|owed| owed.batch.len()).sum()
    }

    #[test]
    fn its_bytes_are_those_of_what_is_in_it_whatever_comes_and_goes() {
        let mut debt = Debt::default();
        let mut random = 1_u32;
        for _ in 0..10_000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            match random >> 31 {
                0 => drop(debt.pop()),
                _ => debt.push(owed(usize::try_from(random >> 8 & 0xfff).unwrap())),
            }
            assert_eq!(debt.bytes(), sum(&debt));
            assert_eq!(debt.first().is_none(), debt.is_empty());
        }
    }
}
