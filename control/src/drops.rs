//! What a node drops: where, why and how often, and what to do about it.

mod advice;
pub mod page;

use crate::api::status::{Count, Status};
use serde::Serialize;
use std::collections::BTreeMap;

/// What a channel's own count is called, which its reasons say more of.
pub const NOT_DELIVERED: &str = "not_delivered";

/// Where something is dropped, in the order in which a packet meets them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// The program on the NIC.
    Nic,
    /// The same decision, over the socket.
    Userspace,
    /// Between the NIC and the sessions, or the sessions and the NIC.
    Sockets,
    /// Connections that carry packets where UDP does not get through.
    Carriers,
    /// Sessions and handshakes.
    Sessions,
    /// Channels and their subscribers.
    Channels,
    /// Logs of channels that are kept.
    Logs,
}

impl Place {
    /// As it is printed.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nic => "nic",
            Self::Userspace => "userspace",
            Self::Sockets => "sockets",
            Self::Carriers => "carriers",
            Self::Sessions => "sessions",
            Self::Channels => "channels",
            Self::Logs => "logs",
        }
    }
}

/// What is counted together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Kind {
    /// Where.
    pub place: Place,
    /// Why, by the counter's label.
    pub reason: String,
    /// Of which channel, where that is counted by channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
}

impl Kind {
    /// What the reason means; nothing for one that only another version of the daemon knows.
    #[must_use]
    pub fn meaning(&self) -> &'static str {
        meaning(self.place, &self.reason)
    }

    /// What to do about it, where that can be said.
    #[must_use]
    pub fn fix(&self) -> Option<&'static str> {
        advice::fix(self.place, &self.reason)
    }
}

/// What a reason means at its place; nothing for one that only another version of the daemon knows.
#[must_use]
pub fn meaning(place: Place, reason: &str) -> &'static str {
    advice::meaning(place, reason).unwrap_or("")
}

/// How often, by kind, from the daemon's start on; what never happened is left out.
#[must_use]
pub fn counts(status: &Status) -> BTreeMap<Kind, u64> {
    let mut counts = BTreeMap::new();
    let mut note = |place, reason: &str, channel: Option<&String>, count| {
        let kind = Kind {
            place,
            reason: reason.to_owned(),
            channel: channel.cloned(),
        };
        if count > 0 {
            counts.insert(kind, count);
        }
    };
    let packets = |counts: &BTreeMap<String, Count>| -> Vec<(String, u64)> {
        let each = counts.iter();
        each.map(|(reason, count)| (reason.clone(), count.packets))
            .collect()
    };
    if let Some(nic) = &status.forwarding.nic {
        for (reason, count) in packets(&nic.drops) {
            note(Place::Nic, &reason, None, count);
        }
    }
    for (reason, count) in packets(&status.userspace.drops) {
        note(Place::Userspace, &reason, None, count);
    }
    for (reason, count) in status.lost() {
        note(Place::Sockets, &reason, None, count);
    }
    for (reason, count) in &status.fallback.dropped {
        note(Place::Carriers, reason, None, *count);
    }
    for (reason, count) in &status.transport.drops {
        note(Place::Sessions, reason, None, *count);
    }
    for (reason, count) in &status.channel_reasons {
        note(Place::Channels, reason, None, *count);
    }
    for channel in &status.channels {
        let name = Some(&channel.name);
        note(Place::Channels, NOT_DELIVERED, name, channel.dropped);
    }
    for log in &status.logs {
        note(Place::Logs, "lost", Some(&log.channel), log.lost);
    }
    counts
}

/// What came since `before`; what has fallen began anew with another daemon.
#[must_use]
pub fn since(before: &BTreeMap<Kind, u64>, now: &BTreeMap<Kind, u64>) -> BTreeMap<Kind, u64> {
    let new = now.iter().map(|(kind, &count)| {
        let known = before.get(kind).copied().unwrap_or(0);
        let new = count.checked_sub(known).unwrap_or(count);
        (kind.clone(), new)
    });
    new.filter(|(_, new)| *new > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use virga_ebpf::reason::Reason;

    fn status() -> Status {
        let mut status = Status::default();
        let count = Count {
            packets: 3,
            bytes: 300,
        };
        let drops = [
            ("magic".to_owned(), count),
            ("rate".to_owned(), Count::default()),
        ];
        status.userspace.drops = drops.into();
        status.transport.drops = [("forged".to_owned(), 2)].into();
        status
    }

    #[test]
    fn what_grew_is_told_and_what_fell_began_anew() {
        let mut status = status();
        let before = counts(&status);
        assert_eq!(before.len(), 2, "what never happened is left out");
        assert!(since(&before, &before).is_empty());
        status.transport.drops = [("forged".to_owned(), 5)].into();
        status.worker.hand_over_full = 1;
        let new = since(&before, &counts(&status));
        let told: Vec<_> = new
            .iter()
            .map(|(kind, new)| (kind.place, &*kind.reason, *new))
            .collect();
        let expected = [
            (Place::Sockets, "hand_over_full", 1),
            (Place::Sessions, "forged", 3),
        ];
        assert_eq!(told, expected);
        // Another daemon: 1 since it began.
        status.transport.drops = [("forged".to_owned(), 1)].into();
        let new = since(&before, &counts(&status));
        assert!(
            new.iter()
                .any(|(kind, new)| kind.reason == "forged" && *new == 1)
        );
    }

    #[test]
    fn every_reason_has_a_meaning_and_the_likeliest_have_a_fix() {
        for reason in Reason::ALL {
            for place in [Place::Nic, Place::Userspace] {
                assert!(!meaning(place, reason.name()).is_empty());
                assert!(advice::fix(place, reason.name()).is_some());
            }
        }
        for reason in virga_transport::DropReason::ALL {
            assert!(!meaning(Place::Sessions, reason.name()).is_empty());
        }
        for reason in crate::channel::reason::Reason::ALL {
            assert!(!meaning(Place::Channels, reason.name()).is_empty());
        }
        for reason in Status::default().lost().keys() {
            assert!(!meaning(Place::Sockets, reason).is_empty());
            assert!(advice::fix(Place::Sockets, reason).is_some());
        }
        assert_eq!(meaning(Place::Nic, "of another version"), "");
        assert_eq!(advice::fix(Place::Sessions, "of another version"), None);
    }
}
