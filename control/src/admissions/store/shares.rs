//! Who has how much of the room: both kinds of evidence half of it where both are asked for, and each issuer of statements
//! the same share of these.
//!
//! As more issuers are named, shares shrink. What is over one's share then stays until it ends, and nothing is added to it.
//! Were a statement let go sooner, an earlier one that somebody shows would count again, with what the later one had
//! narrowed or taken back. Were a token let go, its holder would lose a right that was given for longer, neighbours would
//! tell of the token again, and each forwarder would pick others.

use super::{Kind, Store, vouched::Size};
use crate::admissions::wire::Piece;

/// Whether shares hold for what is taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shares {
    Kept,
    /// It was taken in before: it may be over a share that has shrunk since.
    Passed,
}

impl Store {
    /// Takes in what was held when this node last ran, in whatever order. Of that no share cuts off anything, as none did
    /// while it ran: there is room for all of it.
    pub fn recall(&mut self, pieces: impl IntoIterator<Item = Piece>, now_s: u64) {
        self.shares = Shares::Passed;
        for piece in pieces {
            // What has ended since is left out.
            let _held = self.take(&piece, now_s);
        }
        self.shares = Shares::Kept;
    }

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
        match self.shares {
            Shares::Kept if self.issuers_of(other) > 0 => self.most.count / 2,
            Shares::Kept | Shares::Passed => self.most.count,
        }
    }

    /// How much is taken at most of the statements of one issuer.
    pub(super) fn share(&self) -> Size {
        let issuers = match self.shares {
            Shares::Kept => self.issuers_of(Kind::Statement).max(1),
            Shares::Passed => 1,
        };
        Size {
            count: self.room(Kind::Statement) / issuers,
            bytes: self.most.bytes / issuers,
        }
    }
}
