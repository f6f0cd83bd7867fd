//! What a node is owed: batches that another was to bring it and did not, or that wait until it may have them.

use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
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
    /// By the number of each.
    queue: BTreeMap<u64, Owed>,
    /// When which are given up.
    deadlines: BTreeSet<(u64, u64)>,
    /// Counts all that ever came.
    last: u64,
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
        self.last += 1;
        self.bytes += owed.batch.len();
        self.deadlines
            .extend(owed.deadline_ns.map(|at_ns| (at_ns, self.last)));
        self.queue.insert(self.last, owed);
    }

    /// The one that goes first.
    pub(super) fn first(&self) -> Option<&Owed> {
        self.queue.first_key_value().map(|(_, owed)| owed)
    }

    /// It has gone.
    pub(super) fn pop(&mut self) -> Option<Owed> {
        let (&number, _) = self.queue.first_key_value()?;
        self.remove(number)
    }

    /// One that nobody waits for any longer: it is owed no more.
    pub(super) fn expire(&mut self, now_ns: u64) -> Option<Owed> {
        let &(at_ns, number) = self.deadlines.first()?;
        (at_ns <= now_ns).then(|| self.remove(number)).flatten()
    }

    fn remove(&mut self, number: u64) -> Option<Owed> {
        let owed = self.queue.remove(&number)?;
        self.bytes -= owed.batch.len();
        if let Some(at_ns) = owed.deadline_ns {
            self.deadlines.remove(&(at_ns, number));
        }
        Some(owed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owed(bytes: usize, deadline_ns: Option<u64>) -> Owed {
        Owed {
            batch: vec![0; bytes].into(),
            deadline_ns,
            receipt: None,
        }
    }

    #[test]
    fn its_bytes_and_deadlines_are_those_of_what_is_in_it_whatever_comes_and_goes() {
        let mut debt = Debt::default();
        let mut random = 1_u32;
        for _ in 0..10_000 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let bytes = usize::try_from(random >> 8 & 0xfff).unwrap();
            let deadline_ns = Some(u64::from(random >> 20)).filter(|ns| ns % 2 == 0);
            match random >> 30 {
                0 => drop(debt.pop()),
                1 => drop(debt.expire(2_000)),
                _ => debt.push(owed(bytes, deadline_ns)),
            }
            let all = debt.queue.iter();
            let deadlines = all.clone().filter_map(|(&n, o)| Some((o.deadline_ns?, n)));
            assert!(deadlines.collect::<BTreeSet<_>>() == debt.deadlines);
            assert_eq!(debt.bytes(), all.map(|(_, o)| o.batch.len()).sum::<usize>());
            assert_eq!(debt.first().is_none(), debt.is_empty());
        }
    }

    #[test]
    fn what_nobody_waits_for_goes_and_all_else_stays_in_its_order() {
        let mut debt = Debt::default();
        for (bytes, deadline_ns) in [(1, None), (2, Some(9)), (3, Some(5)), (4, Some(7))] {
            debt.push(owed(bytes, deadline_ns));
        }
        let expired = std::iter::from_fn(|| debt.expire(7));
        assert_eq!(expired.map(|o| o.batch.len()).collect::<Vec<_>>(), [3, 4]);
        let left = std::iter::from_fn(|| debt.pop());
        assert_eq!(left.map(|o| o.batch.len()).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(debt.bytes(), 0);
    }
}
