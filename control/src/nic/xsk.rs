//! AF_XDP sockets on the queues of the interfaces that forward.
//!
//! Each gets a place in the program's map of sockets. A socket is the worker's; the map holds no reference
//! that outlives it, so when the daemon ends, however it does, packets for this node take the way through
//! the kernel's stack again.

use std::io;

use virga_ebpf::{
    limits::{XSK_PORTS, XSKS_MAX},
    tables::{NextHop, XskPort},
};
use virga_transport::io::xsk::{
    QUEUES_MAX,
    queue::{Copying, Queue, QueueConfig},
};

use super::{Nic, NicError, PASS, kernel::Facts};
use crate::{cause, config::ZeroCopy, doctor, hw};

/// Places that an interface's queues have in the map of sockets.
const PLACES: u32 = 16;

const _: () = assert!(PLACES as usize == QUEUES_MAX && XSKS_MAX.is_multiple_of(PLACES));

/// What became of the interfaces that had no sockets.
#[derive(Debug, Default)]
pub struct Opened {
    /// Sockets for the worker to run.
    pub queues: Vec<Queue>,
    /// By interface, for whoever operates the node.
    pub told: Vec<(String, String)>,
}

/// An interface that sockets were opened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Port {
    ifindex: u32,
    /// Which sixteen places are its.
    slot: u32,
    queues: usize,
}

/// How an interface's packets come, and where that is not as asked, why.
fn copying(zero_copy: ZeroCopy, interface: &str) -> (Copying, Option<String>) {
    if zero_copy == ZeroCopy::Off {
        return (Copying::Always, None);
    }
    let driver = doctor::interface::driver(interface).unwrap_or_default();
    match hw::may_not_copy(&driver, hw::Kernel::running()) {
        Ok(()) => (Copying::Avoided, None),
        Err(why) => (Copying::Always, Some(why)),
    }
}

impl Nic {
    /// Opens sockets on the queues of forwarding interfaces that have none yet, as many as a worker runs;
    /// what cannot be opened is told and not tried again while the interface stays. With `zero_copy`
    /// packets are not copied where the driver is known to do without.
    ///
    /// # Errors
    /// When a map refuses.
    pub fn open_sockets(&mut self, facts: &Facts, zero_copy: ZeroCopy) -> Result<Opened, NicError> {
        self.ports
            .retain(|port| facts.interfaces.contains_key(&port.ifindex));
        let mut opened = Opened::default();
        for one in self.attached() {
            let is_known = self.ports.iter().any(|p| p.ifindex == one.ifindex);
            if one.program == PASS || is_known {
                continue;
            }
            let Some(interface) = facts.interfaces.get(&one.ifindex) else {
                continue;
            };
            let (queues, told) = match self.place(one.ifindex) {
                Ok(slot) => {
                    let (copying, why) = copying(zero_copy, &one.interface);
                    let port = (one.ifindex, interface.mtu, copying);
                    let (queues, mut told) = self.open_on(slot, port)?;
                    if let Some(why) = why.filter(|_| !queues.is_empty()) {
                        told = format!("{told}; copied: {why}");
                    }
                    (queues, told)
                }
                Err(why) => (Vec::new(), why),
            };
            opened.queues.extend(queues);
            opened.told.push((one.interface, told));
        }
        Ok(opened)
    }

    /// Sixteen places for an interface, or why there are none: the program tells interfaces apart by the
    /// low bits of their indices.
    fn place(&self, ifindex: u32) -> Result<u32, String> {
        let entry = XskPort::entry(ifindex);
        let same = |port: &&Port| XskPort::entry(port.ifindex) == entry;
        if let Some(other) = self.ports.iter().find(same) {
            return Err(format!(
                "none: interface {} has queues, and its index equals this one's {ifindex} modulo {XSK_PORTS}; \
                 the kernel's socket carries its packets",
                other.ifindex
            ));
        }
        let mut slots = 0..XSKS_MAX / PLACES;
        slots
            .find(|slot| self.ports.iter().all(|p| p.slot != *slot))
            .ok_or_else(|| "none: other interfaces have all places".to_owned())
    }

    fn open_on(
        &mut self,
        slot: u32,
        (ifindex, mtu, copying): (u32, u32, Copying),
    ) -> Result<(Vec<Queue>, String), NicError> {
        let running: usize = self.ports.iter().map(|p| p.queues).sum();
        let room = u32::try_from(QUEUES_MAX.saturating_sub(running)).unwrap_or(0);
        let first = slot * PLACES;
        let (mut queues, mut end) = (Vec::new(), String::from("more have no room"));
        for queue in 0..room.min(PLACES) {
            let config = QueueConfig {
                ifindex,
                queue,
                mtu,
                copying,
            };
            match Queue::open(&config) {
                Ok(opened) => {
                    self.maps.set_xsk(first + queue, &opened)?;
                    queues.push(opened);
                }
                Err(error) => {
                    end = describe(queue, &error);
                    break;
                }
            }
        }
        let count = queues.len();
        self.maps.set_xsk_port(&XskPort {
            ifindex,
            first,
            queues: u32::try_from(count).unwrap_or(0),
            reserved: 0,
        })?;
        self.ports.push(Port {
            ifindex,
            slot,
            queues: count,
        });
        let mut told = format!("{count} queues, {end}");
        if let (Copying::Avoided, Some(queue)) = (copying, queues.first()) {
            told += &queue.copied().map_or_else(
                || "; zero-copy".to_owned(),
                |why| format!("; copied: {why}"),
            );
        }
        Ok((queues, told))
    }

    /// Next hops as the tables hold them.
    #[must_use]
    pub fn next_hops(&self) -> Vec<NextHop> {
        self.publisher.next_hops().collect()
    }
}

/// Why a queue has no socket, and what to do about it.
pub(crate) fn describe(queue: u32, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EINVAL) if queue > 0 => "all that it has".to_owned(),
        Some(libc::EAFNOSUPPORT) => "this kernel has no AF_XDP (CONFIG_XDP_SOCKETS)".to_owned(),
        Some(libc::EBUSY) => format!("queue {queue} is another program's AF_XDP socket's"),
        Some(libc::ENOBUFS | libc::ENOMEM) => {
            format!("{error}: raise the limit on locked memory (LimitMEMLOCK)")
        }
        _ if cause::is_not_permitted(error) => format!("{error}; {}", cause::NIC_RIGHTS),
        _ => format!("queue {queue} refuses: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_copied_unless_asked_and_listed() {
        assert_eq!(copying(ZeroCopy::Off, "lo"), (Copying::Always, None));
        let (how, why) = copying(ZeroCopy::Listed, "lo");
        assert!(how == Copying::Always && why.is_some());
    }
}
