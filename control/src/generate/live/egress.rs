//! The interface that frames leave through: whether it can take them, and what it counts of them.
//!
//! The kernel frees what an interface cannot take without an error and without counting it anywhere, so it is
//! looked at before.

use std::{fs, io};

use super::LiveError;
use crate::doctor::interface::{self, InterfaceFacts, XdpFeatures};

/// What a frame may have beyond the MTU: an Ethernet header and a VLAN tag (`xdp_ok_fwd_dev` of the kernel).
const LINK_BYTES: u32 = 14 + 4;

/// Looks whether an interface takes redirected frames of up to `frame_bytes_max` bytes now.
///
/// # Errors
/// When it does not, or does not exist.
pub fn check(interface: &str, frame_bytes_max: u32) -> Result<(), LiveError> {
    judge_target(&check_sending(interface, frame_bytes_max)?)
}

/// Looks whether an interface sends frames of up to `frame_bytes_max` bytes now, redirected or not; what is known of it.
///
/// # Errors
/// When it does not, or does not exist.
pub(in crate::generate) fn check_sending(
    interface: &str,
    frame_bytes_max: u32,
) -> Result<InterfaceFacts, LiveError> {
    let facts = interface::facts(interface)
        .map_err(|e| LiveError::Facts(interface.to_owned(), Box::new(e)))?;
    judge(&facts, frame_bytes_max)?;
    Ok(facts)
}

fn judge(facts: &InterfaceFacts, frame_bytes_max: u32) -> Result<(), LiveError> {
    let name = facts.name.clone();
    let takes_max = facts.mtu.saturating_add(LINK_BYTES);
    if !facts.is_up {
        return Err(LiveError::Down(name));
    }
    if !facts.has_carrier {
        return Err(LiveError::NoCarrier(name));
    }
    if frame_bytes_max > takes_max {
        return Err(LiveError::TooBig {
            bytes: frame_bytes_max,
            mtu: facts.mtu,
            takes_max,
            interface: name,
        });
    }
    Ok(())
}

fn judge_target(facts: &InterfaceFacts) -> Result<(), LiveError> {
    match facts.xdp_features {
        Some(features) if !features.contains(XdpFeatures::TARGET) => {
            Err(LiveError::NoTarget(facts.name.clone()))
        }
        _ => Ok(()),
    }
}

/// What an interface of this thread's namespace says of its sending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::generate) struct Transmitted {
    /// Packets sent.
    pub(in crate::generate) packets: u64,
    /// Packets dropped instead.
    pub(in crate::generate) dropped: u64,
}

/// Reads it.
pub(in crate::generate) fn transmitted(interface: &str) -> Result<Transmitted, LiveError> {
    let table = fs::read_to_string("/proc/thread-self/net/dev").map_err(LiveError::Counters)?;
    let counted = columns(&table, interface);
    counted.ok_or_else(|| LiveError::Counters(io::ErrorKind::NotFound.into()))
}

fn columns(table: &str, interface: &str) -> Option<Transmitted> {
    let line = table
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'))?;
    // Eight columns of what came in, then bytes, packets, errors and drops of what went out.
    let columns: Vec<&str> = line.split_whitespace().collect();
    let column = |at: usize| columns.get(at)?.parse().ok();
    Some(Transmitted {
        packets: column(9)?,
        dropped: column(11)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_interface_cannot_take_is_refused_in_words() {
        let facts = InterfaceFacts {
            is_up: true,
            has_carrier: true,
            mtu: 1_500,
            xdp_features: Some(XdpFeatures(0b111)),
            ..interface::facts("lo").unwrap()
        };
        let said = |facts: &InterfaceFacts, bytes| judge(facts, bytes).unwrap_err().to_string();
        assert!(judge(&facts, 1_518).is_ok());
        assert!(said(&facts, 1_519).contains("at most 1518"));
        let unlisted = InterfaceFacts {
            xdp_features: None,
            ..facts.clone()
        };
        assert!(judge_target(&unlisted).is_ok());
        let no_target = InterfaceFacts {
            xdp_features: Some(XdpFeatures(0b011)),
            ..facts.clone()
        };
        let told = judge_target(&no_target).unwrap_err().to_string();
        assert!(told.contains("no redirected frames"));
        let no_carrier = InterfaceFacts {
            has_carrier: false,
            ..facts.clone()
        };
        assert!(said(&no_carrier, 122).contains("no carrier"));
        let down = InterfaceFacts {
            is_up: false,
            ..facts
        };
        assert!(said(&down, 122).contains("is down"));
    }

    #[test]
    fn counters_are_those_of_the_interface() {
        let table = "Inter-|   Receive                                                |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo\n   \
            em1: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  m1:1 2 3 4 5 6 7 8 9 20 11 22 13 14 15 16\n";
        let counted = Transmitted {
            packets: 20,
            dropped: 22,
        };
        assert_eq!(columns(table, "m1"), Some(counted));
        assert_eq!(columns(table, "m"), None);
    }
}
