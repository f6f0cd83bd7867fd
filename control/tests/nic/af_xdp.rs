//! Packets for this node go to the AF_XDP socket of their interface and queue, and to the kernel's stack where
//! there is none.

use std::{
    os::fd::OwnedFd,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::net::{
    AddressFamily, SocketType, bind, socket, sockopt,
    xdp::{SocketAddrXdp, SocketAddrXdpFlags, XdpUmemReg, XdpUmemRegFlags},
};
use virga_ebpf::{limits::XSK_PORTS, reason::Outcome, tables::XskPort};
use virga_transport::io::xsk::queue::{Copying, Queue, QueueConfig};

use crate::{
    fixtures,
    paths::{Fate, Kernel, Memory, NEVER_NS},
    shaking,
    world::{self, INGRESS},
};

/// Actions (linux/bpf.h).
const PASS: u32 = 2;
const REDIRECT: u32 = 4;
/// The socket's place; its interface's other queues come before it.
const PLACE: u32 = 7;
/// Test runs come in by it.
const QUEUE: u32 = 0;

const PAGE_BYTES: usize = 4096;

#[derive(Clone)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES]);

/// Whoever has this has the loopback device's only queue.
fn alone() -> MutexGuard<'static, ()> {
    static QUEUE: Mutex<()> = Mutex::new(());
    QUEUE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A socket on the loopback device's only queue; frames would lie in the pages.
fn bound() -> (OwnedFd, Vec<Page>) {
    let pages = vec![Page([0; PAGE_BYTES]); 4];
    let xsk = socket(AddressFamily::XDP, SocketType::RAW, None).unwrap();
    let umem = XdpUmemReg {
        addr: pages.as_ptr().addr() as u64,
        len: (pages.len() * PAGE_BYTES) as u64,
        chunk_size: 4096,
        headroom: 0,
        flags: XdpUmemRegFlags::empty(),
        tx_metadata_len: 0,
    };
    sockopt::set_xdp_umem_reg(&xsk, umem).unwrap();
    sockopt::set_xdp_umem_fill_ring_size(&xsk, 4).unwrap();
    sockopt::set_xdp_umem_completion_ring_size(&xsk, 4).unwrap();
    sockopt::set_xdp_rx_ring_size(&xsk, 4).unwrap();
    let at = SocketAddrXdp::new(SocketAddrXdpFlags::XDP_COPY, INGRESS, QUEUE);
    // The kernel takes its time to close one that was there.
    let mut tries = 0..500;
    while let Err(error) = bind(&xsk, &at) {
        assert!(tries.next().is_some(), "{error}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    (xsk, pages)
}

/// The action, and how many packets each way for this node was counted for.
fn delivered(kernel: &mut Kernel, frame: &[u8]) -> (u32, [u64; 2]) {
    let counted = |kernel: &Kernel| {
        let counters = kernel.counters();
        [Outcome::Local, Outcome::Xsk].map(|o| counters[o.counter() as usize].packets)
    };
    let before = counted(kernel);
    let action = kernel.action(frame);
    let after = counted(kernel);
    (action, [after[0] - before[0], after[1] - before[1]])
}

#[test]
fn local_packets_go_to_the_socket_of_their_queue_or_to_the_stack() {
    const STACK: (u32, [u64; 2]) = (PASS, [1, 0]);
    const SOCKET: (u32, [u64; 2]) = (REDIRECT, [0, 1]);
    let _alone = alone();
    let image = world::image();
    let memory = Memory::new(&image);
    let Some(mut kernel) = Kernel::new(&image) else {
        return;
    };
    kernel.set_handshake_bucket(shaking(&memory), NEVER_NS);
    kernel.watch();
    let table = fixtures::table(&memory);
    let local = table.iter().find(|f| f.fate == Fate::Local).unwrap();
    let local = local.frames.last().unwrap().build();
    assert_eq!(delivered(&mut kernel, &local), STACK, "nothing is set up");
    let port = XskPort {
        ifindex: INGRESS,
        first: PLACE,
        queues: 1,
        reserved: 0,
    };
    kernel.maps().set_xsk_port(&port).unwrap();
    assert_eq!(delivered(&mut kernel, &local), STACK, "there is no socket");
    let (xsk, pages) = bound();
    kernel.maps().set_xsk(PLACE, &xsk).unwrap();
    // Whatever is not for this node goes where it went.
    for fixture in &table {
        let (last, before) = fixture.frames.split_last().unwrap();
        for frame in before {
            kernel.action(&frame.build());
        }
        match fixture.fate {
            Fate::Local => {
                let way = delivered(&mut kernel, &last.build());
                assert_eq!(way, SOCKET, "{}", fixture.name);
            }
            fate => assert_eq!(kernel.run(&last.build()).0, fate, "{}", fixture.name),
        }
    }
    let elsewhere = XskPort {
        ifindex: INGRESS + XSK_PORTS,
        ..port
    };
    for (port, why) in [
        (XskPort { queues: 0, ..port }, "AF_XDP is off"),
        (XskPort { first: 8, ..port }, "the place has no socket"),
        (elsewhere, "another interface has the entry"),
    ] {
        kernel.maps().set_xsk_port(&port).unwrap();
        assert_eq!(delivered(&mut kernel, &local), STACK, "{why}");
    }
    kernel.maps().set_xsk_port(&port).unwrap();
    assert_eq!(delivered(&mut kernel, &local), SOCKET);
    drop(xsk);
    drop(pages);
    // The kernel takes a closed socket out when it gets to it.
    let is_out = (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        delivered(&mut kernel, &local) == STACK
    });
    assert!(is_out, "the socket has closed");
}

#[test]
fn a_driver_that_refuses_zero_copy_copies_and_says_why() {
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: needs root");
    }
    let _alone = alone();
    // The loopback device knows of no such thing.
    let asked = open(Copying::Avoided);
    let why = asked.copied().unwrap();
    assert!(why.contains("refuses zero-copy"), "{why}");
    drop(asked);
    let unasked = open(Copying::Always);
    assert_eq!(unasked.copied(), Some("by default"));
}

/// A queue of the loopback device; the kernel takes its time to close one that was there.
fn open(copying: Copying) -> Queue {
    let config = QueueConfig {
        ifindex: INGRESS,
        queue: QUEUE,
        mtu: 1_500,
        copying,
    };
    let mut tries = 0..500;
    loop {
        match Queue::open(&config) {
            Ok(queue) => return queue,
            Err(error) => assert!(tries.next().is_some(), "{error}"),
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
