//! The unit: an event, and what it says of its causes.

use virga_ebpf::header::OriginHash;

/// Bytes of a causal link.
pub const LINK_BYTES: usize = 24;

/// Where an event stands among the events of its entity, and what that entity had seen.
///
/// ```text
///  0      8 entity     whose event it is
///  8      8 observed   key of the frontier that the entity had newly observed; 0: none
/// 16      8 parent     number of the entity's event before it in its feed; 0: none, or not signed
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Whose event it is.
    pub entity: OriginHash,
    /// What the entity had observed.
    pub observed: u64,
    /// The entity's event before it.
    pub parent: u64,
}

impl Link {
    pub(crate) fn encode(&self) -> [u8; LINK_BYTES] {
        let mut out = [0; LINK_BYTES];
        let (entity, rest) = out.split_at_mut(8);
        let (observed, parent) = rest.split_at_mut(8);
        entity.copy_from_slice(&self.entity.0.to_be_bytes());
        observed.copy_from_slice(&self.observed.to_be_bytes());
        parent.copy_from_slice(&self.parent.to_be_bytes());
        out
    }

    pub(crate) fn parse(bytes: &[u8; LINK_BYTES]) -> Self {
        Self {
            entity: OriginHash(crate::format::u64_at(bytes, 0)),
            observed: crate::format::u64_at(bytes, 8),
            parent: crate::format::u64_at(bytes, 16),
        }
    }
}

/// An event as the log has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Its place in the log: 0, 1, 2 …
    pub offset: u64,
    /// When the log got it, in nanoseconds since 1970; never less than the event's before it.
    pub time_unix_ns: u64,
    /// Its causes.
    pub link: Link,
    /// What it says.
    pub payload: &'a [u8],
}
