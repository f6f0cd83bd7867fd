//! Which interfaces can be attached to, and when a node starts without one of them.

use super::{
    NicError, Update,
    kernel::{Facts, Interface},
    links,
};
use crate::config::ForwardingMode;

/// A configured interface, where it is there and sees whole frames.
///
/// # Errors
/// [`NicError::NoInterface`] and [`NicError::Vlan`].
pub(super) fn attachable<'a>(facts: &'a Facts, name: &str) -> Result<&'a Interface, NicError> {
    let Some(interface) = facts.interface(name) else {
        return Err(NicError::NoInterface(name.to_owned()));
    };
    // The tables name the interface below, and the program there sees the frames with their tag.
    match interface
        .vlan
        .map(|(below, _)| facts.interfaces.get(&below))
    {
        None => Ok(interface),
        Some(below) => Err(NicError::Vlan {
            interface: name.to_owned(),
            below: below.map_or("the interface".to_owned(), |i| i.name.clone()),
        }),
    }
}

/// Whether a starting node goes on with what it got: `is_forwarding` when the program runs on an
/// interface, `had_links` when an earlier daemon left links.
///
/// # Errors
/// The error that is in the way.
pub(super) fn judge(
    mode: ForwardingMode,
    is_forwarding: bool,
    had_links: bool,
    mut update: Update,
) -> Result<Update, NicError> {
    let missing = &mut update.missing;
    let is_absent = |e: &NicError| matches!(e, NicError::NoInterface(_));
    let goes_on = missing.is_empty()
        || match (is_forwarding, had_links) {
            (true, true) => true,
            (true, false) | (false, true) => missing.iter().all(is_passing),
            (false, false) => mode == ForwardingMode::Auto && missing.iter().all(is_absent),
        };
    if goes_on {
        return Ok(update);
    }
    let lasting = missing.iter().position(|e| !is_passing(e));
    Err(missing.swap_remove(lasting.unwrap_or(0)))
}

/// Whether trying again later may help without anybody changing the configuration or the interface.
fn is_passing(error: &NicError) -> bool {
    match error {
        NicError::NoInterface(_) => true,
        NicError::Attach { source, .. } => matches!(
            links::errno(source),
            Some(
                libc::EBUSY
                    | libc::EEXIST
                    | libc::ENODEV
                    | libc::ENOLINK
                    | libc::ENETDOWN
                    | libc::ENOMEM
                    | libc::ENOBUFS
                    | libc::EAGAIN
                    | libc::EINTR
            )
        ),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use aya::{programs::ProgramError, sys::SyscallError};

    use super::*;

    fn interface(name: &str, ifindex: u32, vlan: Option<(u32, u16)>) -> Interface {
        Interface {
            name: name.to_owned(),
            ifindex,
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1_500,
            is_up: true,
            peer_here: None,
            vlan,
            xdp_program: None,
        }
    }

    #[test]
    fn a_vlan_device_is_refused_and_the_interface_below_it_named() {
        let mut facts = Facts::default();
        for one in [
            interface("eth0", 2, None),
            interface("eth0.5", 3, Some((2, 5))),
        ] {
            facts.interfaces.insert(one.ifindex, one);
        }
        assert_eq!(attachable(&facts, "eth0").unwrap().ifindex, 2);
        let refused = attachable(&facts, "eth0.5").unwrap_err().to_string();
        assert!(refused.contains("name eth0 under"), "{refused}");
        assert!(matches!(
            attachable(&facts, "eth1"),
            Err(NicError::NoInterface(name)) if name == "eth1"
        ));
    }

    fn absent() -> NicError {
        NicError::NoInterface("eth1".into())
    }

    fn refused(errno: i32) -> NicError {
        let io_error = std::io::Error::from_raw_os_error(errno);
        let call = "bpf_link_create";
        NicError::Attach {
            interface: "eth1".into(),
            mode: "native",
            fix: String::new(),
            source: Box::new(ProgramError::SyscallError(SyscallError { call, io_error })),
        }
    }

    #[test]
    fn a_node_starts_without_an_interface_where_that_may_come() {
        use ForwardingMode::{Auto, Native};
        let starts = |mode, is_forwarding, had_links, missing| {
            let update = Update {
                attached: Vec::new(),
                missing,
            };
            judge(mode, is_forwarding, had_links, update).is_ok()
        };
        let busy = || refused(libc::EBUSY);
        let unsupported = || refused(libc::EOPNOTSUPP);
        for mode in [Auto, Native] {
            assert!(starts(mode, true, false, vec![]));
            assert!(starts(mode, true, false, vec![absent(), busy()]));
            assert!(starts(mode, false, true, vec![absent()]));
            assert!(starts(mode, false, true, vec![busy()]));
            // What works already is not given up for one that never will.
            assert!(starts(mode, true, true, vec![unsupported()]));
            assert!(!starts(mode, true, false, vec![absent(), unsupported()]));
            assert!(!starts(mode, false, true, vec![unsupported()]));
            assert!(!starts(mode, false, false, vec![busy()]));
        }
        assert!(starts(Auto, false, false, vec![absent()]));
        assert!(!starts(Native, false, false, vec![absent()]));
    }

    #[test]
    fn the_error_that_lasts_is_the_one_told() {
        let update = Update {
            attached: Vec::new(),
            missing: vec![absent(), refused(libc::EOPNOTSUPP)],
        };
        let told = judge(ForwardingMode::Native, false, false, update).unwrap_err();
        assert!(matches!(told, NicError::Attach { .. }), "{told}");
    }
}
