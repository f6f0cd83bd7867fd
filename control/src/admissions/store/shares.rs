//! Who has how much of the room: both kinds of evidence half of it where both are asked for, and each issuer of statements
//! the same share of these.
//!
//! As more issuers are named, shares shrink. What one has over its share then stays until it ends: were a statement let go
//! sooner, an earlier one that somebody shows would count again, with what the later one had narrowed or taken back.

use super::{Kind, Store, vouched::Size};

impl Store {
    /// How many there are of a kind.
    fn issuers_of(&self, kind: Kind) -> usize {
        self.issuers
            .range((kind, [0; 32])..=(kind, [u8::MAX; 32]))
            .count()
    }

    /// How much is held of a kind at most: all, or half of it where both are asked for.
    pub(super) fn room(&self, kind: Kind) -> usize {
        let other = match kind {
            Kind::Token => Kind::Statement,
            Kind::Statement => Kind::Token,
        };
        match self.issuers_of(other) {
            0 => self.most.count,
            _ => self.most.count / 2,
        }
    }

    /// How much is taken at most of the statements of one issuer.
    pub(super) fn share(&self) -> Size {
        let issuers = self.issuers_of(Kind::Statement).max(1);
        Size {
            count: self.room(Kind::Statement) / issuers,
            bytes: self.most.bytes / issuers,
        }
    }
}
