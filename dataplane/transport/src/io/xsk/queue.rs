//! One AF_XDP socket: a receive queue of an interface, its frames, and the rings that frames go round in.
//!
//! A frame is in one place at a time: in the fill ring or the kernel's hands, in the receive ring, lent to
//! whoever handles it, among the free ones, in the transmit ring, in the completion ring. The first half of the
//! frames is for receiving, the second for sending.

use super::{
    super::socket::set_option,
    packets,
    ring::{Descriptor, Region, Ring},
};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send,
        socket_with,
        sockopt::{
            set_xdp_rx_ring_size, set_xdp_tx_ring_size, set_xdp_umem_completion_ring_size,
            set_xdp_umem_fill_ring_size, set_xdp_umem_reg, xdp_mmap_offsets, xdp_statistics,
        },
        xdp::{
            SocketAddrXdp, SocketAddrXdpFlags, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING,
            XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING, XdpUmemReg, XdpUmemRegFlags,
        },
    },
};
use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};
use virga_ebpf::tables::NextHop;

/// Frames for receiving, and as many for sending; a power of two, and the size of every ring.
pub const FRAMES: u32 = 1_024;
/// Packets that one call of [`Inlet::receive`] hands over.
pub(super) const BATCH: usize = 64;
/// Bytes that the kernel keeps free before each received packet (`XDP_PACKET_HEADROOM`).
const HEADROOM_BYTES: u32 = 256;
/// Frames are of this size where the interface's packets fit, else of twice that: a page.
const FRAME_BYTES: u32 = 2_048;
/// Link header with two VLAN tags.
const LINK_BYTES: u32 = 22;
/// Calls that one wake-up makes at most: each takes some dozens of packets.
const KICKS_MAX: u32 = 64;

/// A queue, and how it shall be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// The interface.
    pub ifindex: u32,
    /// Its receive queue.
    pub queue: u32,
    /// Largest IP packet of the interface.
    pub mtu: u32,
    /// Whether packets are copied.
    pub copying: Copying,
}

/// How packets get from a socket's memory into the NIC, and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copying {
    /// By the processor: any driver does, and some of some kernels fail without.
    Always,
    /// By the NIC itself, and by the processor where the driver refuses that.
    Avoided,
    /// By the NIC itself: opening fails where the driver cannot.
    Never,
}

/// A socket on a queue; not yet in the XDP program's map.
#[derive(Debug)]
pub struct Queue {
    number: u32,
    copied: Option<String>,
    pub(super) ifindex: u32,
    pub(super) inlet: Inlet,
    pub(super) outflow: Outflow,
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inlet.socket.as_fd()
    }
}

impl Queue {
    /// Which of its interface's receive queues it is on.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Why its packets are copied; none where they are not.
    #[must_use]
    pub fn copied(&self) -> Option<&str> {
        self.copied.as_deref()
    }

    /// Opens a socket on a queue.
    ///
    /// # Errors
    /// When the kernel refuses: no AF_XDP, no right to it, no such queue, or it has a socket already.
    pub fn open(config: &QueueConfig) -> io::Result<Self> {
        let copy = SocketAddrXdpFlags::XDP_COPY;
        if config.copying == Copying::Always {
            return Self::open_as(config, copy, Some("by default".to_owned()));
        }
        match Self::open_as(config, SocketAddrXdpFlags::XDP_ZEROCOPY, None) {
            Err(error) if config.copying == Copying::Avoided => {
                let why = format!("the driver refuses zero-copy: {error}");
                Self::open_as(config, copy, Some(why))
            }
            opened => opened,
        }
    }

    fn open_as(
        config: &QueueConfig,
        how: SocketAddrXdpFlags,
        copied: Option<String>,
    ) -> io::Result<Self> {
        let room = FRAME_BYTES - HEADROOM_BYTES - LINK_BYTES;
        let frame_bytes = FRAME_BYTES << u32::from(config.mtu > room);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::XDP, SocketType::RAW, flags, None)?;
        let frames = Arc::new(Region::anonymous(
            2 * FRAMES as usize * frame_bytes as usize,
        )?);
        let umem = XdpUmemReg {
            addr: frames.address(),
            len: frames.len() as u64,
            chunk_size: frame_bytes,
            headroom: 0,
            flags: XdpUmemRegFlags::empty(),
            tx_metadata_len: 0,
        };
        set_xdp_umem_reg(&socket, umem)?;
        set_xdp_umem_fill_ring_size(&socket, FRAMES)?;
        set_xdp_umem_completion_ring_size(&socket, FRAMES)?;
        set_xdp_rx_ring_size(&socket, FRAMES)?;
        set_xdp_tx_ring_size(&socket, FRAMES)?;
        let offsets = xdp_mmap_offsets(&socket)?;
        let fd = socket.as_fd();
        let mut fill = Ring::map(fd, XDP_UMEM_PGOFF_FILL_RING, &offsets.fr, FRAMES)?;
        let completed = Ring::map(fd, XDP_UMEM_PGOFF_COMPLETION_RING, &offsets.cr, FRAMES)?;
        let received = Ring::map(fd, XDP_PGOFF_RX_RING, &offsets.rx, FRAMES)?;
        let sent = Ring::map(fd, XDP_PGOFF_TX_RING, &offsets.tx, FRAMES)?;
        let frame = |n: u32| u64::from(n) * u64::from(frame_bytes);
        (0..FRAMES).map(frame).for_each(|at| fill.push(at));
        fill.publish();
        let how = how | SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
        bind(
            &socket,
            &SocketAddrXdp::new(how, config.ifindex, config.queue),
        )?;
        let socket = Arc::new(socket);
        Ok(Self {
            number: config.queue,
            copied,
            ifindex: config.ifindex,
            inlet: Inlet {
                socket: Arc::clone(&socket),
                frames: Arc::clone(&frames),
                fill,
                received,
                frame_bytes,
                ifindex: config.ifindex,
                wakeups: 0,
            },
            outflow: Outflow {
                socket,
                frames,
                sent,
                completed,
                free: (FRAMES..2 * FRAMES).map(frame).collect(),
                frame_bytes,
                is_pending: false,
                is_down: false,
                is_dead: false,
                is_stalled: false,
                wakeups: 0,
            },
        })
    }
}

impl Queue {
    /// Has each call on the socket poll the NIC, and the NIC wait for that instead of interrupting, as long as its
    /// `napi_defer_hard_irqs` and `gro_flush_timeout` say (Documentation/networking/napi.rst).
    pub(super) fn set_busy_poll(&self, us: u32) -> io::Result<()> {
        /// Packets that one poll takes (the kernel's own default is 8).
        const BUDGET: libc::c_int = 64;
        let us = libc::c_int::try_from(us).unwrap_or(libc::c_int::MAX);
        for (name, value) in [
            (libc::SO_PREFER_BUSY_POLL, 1),
            (libc::SO_BUSY_POLL, us),
            (libc::SO_BUSY_POLL_BUDGET, BUDGET),
        ] {
            set_option(self, libc::SOL_SOCKET, name, value)?;
        }
        Ok(())
    }
}

/// The receiving half.
#[derive(Debug)]
pub(super) struct Inlet {
    socket: Arc<OwnedFd>,
    frames: Arc<Region>,
    fill: Ring<u64>,
    received: Ring<Descriptor>,
    frame_bytes: u32,
    ifindex: u32,
    wakeups: u64,
}

impl AsFd for Inlet {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Inlet {
    /// Hands over what has arrived, a batch at most, and gives the frames back. How many packets, and of
    /// these how many could not be read.
    #[allow(unsafe_code)]
    pub(super) fn receive(
        &mut self,
        mut handle: impl FnMut(u32, SocketAddr, &mut [u8]),
    ) -> (usize, u64) {
        let (mut packets, mut unreadable) = (0, 0);
        while packets < BATCH
            && let Some(descriptor) = self.received.pop()
        {
            packets += 1;
            let start = descriptor.address;
            let from = usize::try_from(start).unwrap_or(usize::MAX);
            // SAFETY: what the kernel put into the receive ring it has given away, until the frame is in the
            // fill ring again, below.
            let packet = unsafe { self.frames.slice(from, descriptor.bytes as usize) };
            match packet.and_then(packets::payload) {
                Some((source, payload)) => handle(self.ifindex, source, payload),
                None => unreadable += 1,
            }
            // As many frames as the ring has entries go round in it: there is always room.
            self.fill.push(start - start % u64::from(self.frame_bytes));
        }
        if packets > 0 {
            self.received.release();
            self.fill.publish();
        }
        if self.fill.needs_wakeup() {
            self.wakeups += 1;
            let mut nothing = [0; 0];
            let _polled = recv(&*self.socket, &mut nothing[..], RecvFlags::DONTWAIT);
        }
        (packets, unreadable)
    }

    /// Packets that the kernel had no frame or no room in the ring for, or that did not fit a frame.
    pub(super) fn lost(&self) -> u64 {
        let Ok(statistics) = xdp_statistics(&*self.socket) else {
            return 0;
        };
        let full = statistics.rx_ring_full.unwrap_or(0);
        statistics.rx_dropped + full
    }

    /// Calls because the kernel waited for frames.
    pub(super) fn wakeups(&self) -> u64 {
        self.wakeups
    }
}

/// The sending half.
#[derive(Debug)]
pub(super) struct Outflow {
    socket: Arc<OwnedFd>,
    frames: Arc<Region>,
    sent: Ring<Descriptor>,
    completed: Ring<u64>,
    free: Vec<u64>,
    frame_bytes: u32,
    /// Something was queued since the kernel was called last.
    is_pending: bool,
    /// Its interface was down when the kernel was called last.
    is_down: bool,
    /// Its interface is gone.
    is_dead: bool,
    /// The kernel took nothing of what is in the ring when it was called last.
    is_stalled: bool,
    wakeups: u64,
}

/// Why a packet was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsent {
    /// All frames are on their way.
    Full,
    /// It does not fit the next hop's MTU, or a frame.
    TooBig,
    /// The interface is down.
    Down,
}

impl Outflow {
    /// Queues a packet to a next hop.
    pub(super) fn put(
        &mut self,
        next_hop: &NextHop,
        source_port: u16,
        payload: &[u8],
    ) -> Result<(), Unsent> {
        self.put_with(|frame| packets::write(frame, next_hop, source_port, payload))
    }

    /// Whether there is room for a packet, after a look at what has been sent.
    pub(super) fn has_room(&mut self) -> bool {
        let has_room = |outflow: &Self| !outflow.free.is_empty() && outflow.sent.free() > 0;
        if !has_room(self) {
            self.kick();
        }
        has_room(self)
    }

    /// Queues what is written into a frame, which holds what it held last; its bytes, `None` where it does not fit.
    #[allow(unsafe_code)]
    pub(super) fn put_with(
        &mut self,
        write: impl FnOnce(&mut [u8]) -> Option<u32>,
    ) -> Result<(), Unsent> {
        if self.is_down {
            return Err(Unsent::Down);
        }
        if !self.has_room() {
            return Err(Unsent::Full);
        }
        let address = self.free.pop().ok_or(Unsent::Full)?;
        let from = usize::try_from(address).unwrap_or(usize::MAX);
        // SAFETY: a free frame is nobody else's.
        let frame = unsafe { self.frames.slice(from, self.frame_bytes as usize) };
        let written = frame.and_then(write);
        let Some(bytes) = written.filter(|bytes| *bytes <= self.frame_bytes) else {
            self.free.push(address);
            return Err(Unsent::TooBig);
        };
        self.sent.push(Descriptor {
            address,
            bytes,
            options: 0,
        });
        self.is_pending = true;
        Ok(())
    }

    /// Has the kernel take what is queued, and takes back the frames of what was sent.
    pub(super) fn kick(&mut self) {
        self.is_stalled = false;
        if self.is_pending {
            self.sent.publish();
            self.wake_kernel();
            self.is_pending = self.sent.free() < FRAMES || self.is_down;
        }
        while let Some(address) = self.completed.pop() {
            self.free.push(address);
        }
        self.completed.release();
    }

    fn wake_kernel(&mut self) {
        for _ in 0..KICKS_MAX {
            if !self.sent.needs_wakeup() {
                // The driver sends by itself: its link is up.
                self.is_down = false;
                return;
            }
            self.wakeups += 1;
            let room = self.sent.free();
            let sent = send(&*self.socket, &[], SendFlags::DONTWAIT);
            // What is in the ring waits for the interface to come up: each turn asks again.
            self.is_down = sent == Err(Errno::NETDOWN);
            let took_nothing = self.sent.free() == room && room < FRAMES;
            match sent {
                // It has more in the ring than it takes in one call.
                Err(Errno::AGAIN) if !took_nothing => {}
                Err(Errno::NXIO | Errno::NODEV | Errno::BADF) => {
                    self.is_dead = true;
                    return;
                }
                // Nothing more is to be sent, or there is no room behind the ring: a later call goes on from there.
                Ok(_) => return,
                Err(_) => break,
            }
        }
        // A call that failed may have taken some of them.
        self.is_stalled = self.sent.free() < FRAMES && !self.is_down;
    }

    /// Whether the kernel had no room for what is in the ring: it has to be called again.
    pub(super) fn is_stalled(&self) -> bool {
        self.is_stalled
    }

    /// Packets that have not been sent yet.
    pub(super) fn on_the_way(&self) -> usize {
        FRAMES as usize - self.free.len()
    }

    /// Whether its interface was down when the kernel was called last.
    pub(super) fn is_down(&self) -> bool {
        self.is_down
    }

    /// Whether its interface is gone.
    pub(super) fn is_dead(&self) -> bool {
        self.is_dead
    }

    /// Calls because the kernel waited to be told of packets.
    pub(super) fn wakeups(&self) -> u64 {
        self.wakeups
    }
}

#[cfg(test)]
impl Queue {
    /// A queue whose rings no kernel serves.
    pub(super) fn alone(ifindex: u32) -> Self {
        let frame = |n: u32| u64::from(n) * u64::from(FRAME_BYTES);
        let frames = Region::anonymous(2 * (FRAMES * FRAME_BYTES) as usize).unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (frames, socket) = (Arc::new(frames), Arc::new(OwnedFd::from(socket)));
        let mut fill = Ring::alone(FRAMES).unwrap();
        (0..FRAMES).map(frame).for_each(|at| fill.push(at));
        fill.publish();
        Self {
            number: 0,
            copied: None,
            ifindex,
            inlet: Inlet {
                socket: Arc::clone(&socket),
                frames: Arc::clone(&frames),
                fill,
                received: Ring::alone(FRAMES).unwrap(),
                frame_bytes: FRAME_BYTES,
                ifindex,
                wakeups: 0,
            },
            outflow: Outflow {
                socket,
                frames,
                sent: Ring::alone(FRAMES).unwrap(),
                completed: Ring::alone(FRAMES).unwrap(),
                free: (FRAMES..2 * FRAMES).map(frame).collect(),
                frame_bytes: FRAME_BYTES,
                is_pending: false,
                is_down: false,
                is_dead: false,
                is_stalled: false,
                wakeups: 0,
            },
        }
    }
}

#[cfg(test)]
impl Outflow {
    /// As the kernel: takes packets out of the transmit ring, `count` at most; where their frames are.
    pub(super) fn serve(&mut self, count: usize) -> Vec<u64> {
        let taken = self.sent.take(count).into_iter();
        taken.map(|descriptor| descriptor.address).collect()
    }

    /// As the kernel: gives frames back.
    pub(super) fn complete(&mut self, frames: &[u64]) {
        for frame in frames {
            self.completed.give(*frame);
        }
    }

    /// As the kernel: whether it waits to be called.
    pub(super) fn ask(&mut self, asks: bool) {
        self.sent.ask(asks);
    }

    /// As the kernel: the interface is down.
    pub(super) fn take_down(&mut self) {
        (self.is_down, self.is_pending) = (true, true);
    }
}

#[cfg(test)]
impl Inlet {
    /// As the kernel: whether it waits for frames.
    pub(super) fn ask(&mut self, asks: bool) {
        self.fill.ask(asks);
    }
}
