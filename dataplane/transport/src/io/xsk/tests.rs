//! The driver over rings that no kernel serves: the tests are the kernel, and give it room when they like.

use super::*;
use crate::io::driver::Sent;
use std::time::{Duration, Instant};
use virga_ebpf::tables::Address;

const MS: u64 = 1_000_000;
const IFINDEX: u32 = 7;
const TO: &str = "10.1.2.3:4783";
const FRAMES: usize = queue::FRAMES as usize;

fn to() -> SocketAddr {
    TO.parse().unwrap()
}

/// A driver with one queue, which leads to [`TO`].
fn alone() -> (Xsk, Arc<Wake>) {
    let socket = Socket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let wake = Arc::new(Wake::new().unwrap());
    let mut xsk = Xsk::open(socket, Arc::clone(&wake), None);
    assert_eq!(xsk.add(vec![Queue::alone(IFINDEX)]).count(), 0);
    xsk.set_next_hops(vec![NextHop {
        target: Address::from(to().ip()),
        port: to().port(),
        ifindex: IFINDEX,
        mtu: 1_500,
        flags: NextHop::ALIVE,
        ..NextHop::default()
    }]);
    (xsk, wake)
}

fn outflow(xsk: &mut Xsk) -> &mut Outflow {
    &mut xsk.links.outflows[0].1
}

fn figure(xsk: &Xsk, name: &str) -> u64 {
    let figures = xsk.figures();
    figures.iter().find(|(label, _)| *label == name).unwrap().1
}

/// Fills the ring; the last run of those is not taken any more.
fn fill(xsk: &mut Xsk) {
    for _ in 0..=FRAMES {
        xsk.room().unwrap().extend_from_slice(&[7; 100]);
        xsk.commit(to(), 100);
    }
    assert!(xsk.room().is_none());
    assert!(!xsk.flush());
    assert_eq!(figure(xsk, "xsk_sent"), FRAMES as u64);
    assert!(xsk.sent().would_block > 0);
}

/// The kernel's socket has room all the time: a wait that asks for that returns at once, and the worker's
/// turns have no end.
#[test]
fn a_full_ring_is_slept_for() {
    let (mut xsk, wake) = alone();
    fill(&mut xsk);
    let begun = Instant::now();
    assert_eq!(xsk.wait(Some(50 * MS)).unwrap(), Ready::default());
    assert!(begun.elapsed() >= Duration::from_millis(50));
    // Taken out of the ring, but not sent yet: their frames are not back.
    let taken = outflow(&mut xsk).serve(FRAMES);
    assert_eq!(taken.len(), FRAMES);
    let begun = Instant::now();
    assert_eq!(xsk.wait(Some(50 * MS)).unwrap(), Ready::default());
    assert!(begun.elapsed() >= Duration::from_millis(50));
    assert!(xsk.room().is_none());
    // Whoever rings or sends is heard all the same.
    wake.ring();
    assert!(xsk.wait(None).unwrap().woken);
    let own = xsk.socket().address();
    let other = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    other.send_to(b"x", own).unwrap();
    let ready = xsk.wait(None).unwrap();
    assert!(ready.readable && !ready.writable, "{ready:?}");
    assert!(!xsk.receive(|_, run| assert_eq!(run.bytes, b"x")));
    // One that is back ends the wait, and carries what waited.
    outflow(&mut xsk).complete(&taken[..1]);
    assert!(xsk.wait(None).unwrap().writable);
    assert!(xsk.flush());
    assert_eq!(figure(&xsk, "xsk_sent"), FRAMES as u64 + 1);
    assert_eq!(figure(&xsk, "waits"), 5);
}

#[test]
fn what_was_to_be_sent_on_is_given_back_by_a_full_ring() {
    let (mut xsk, _wake) = alone();
    fill(&mut xsk);
    let run = [3; 250];
    let sent = xsk.outlet().send(to(), &run, 100);
    assert_eq!(sent, Sent::Blocked { from: 0 });
    let taken = outflow(&mut xsk).serve(2);
    outflow(&mut xsk).complete(&taken);
    // The run that waited takes the one, two more find the other.
    assert!(xsk.flush());
    assert_eq!(
        xsk.outlet().send(to(), &run, 100),
        Sent::Blocked { from: 100 }
    );
}

/// A ring is full and its interface goes down: what waits is counted as lost, and nobody waits for it.
#[test]
fn a_full_ring_of_an_interface_that_is_down_holds_nothing_up() {
    let (mut xsk, _wake) = alone();
    fill(&mut xsk);
    outflow(&mut xsk).ask(true);
    outflow(&mut xsk).take_down();
    let lost = |xsk: &Xsk| xsk.sent().errors().map(|(_, count)| count).sum::<u64>();
    assert_eq!(lost(&xsk), 0);
    assert!(xsk.flush());
    assert_eq!(lost(&xsk), 1);
}

/// A kernel that has no room for what is in the ring is asked once a look, not as often as a call may take.
#[test]
fn a_kernel_that_takes_nothing_is_called_once_and_again_after_a_while() {
    let (mut xsk, _wake) = alone();
    xsk.room().unwrap().extend_from_slice(&[7; 100]);
    // A UDP socket without a peer takes nothing, either.
    outflow(&mut xsk).ask(true);
    xsk.commit(to(), 100);
    assert!(xsk.flush());
    assert_eq!(figure(&xsk, "xsk_wakeups"), 1);
    assert!(outflow(&mut xsk).is_stalled());
    // Nothing but the kernel's room could end this wait: it is looked for meanwhile, and not without a pause.
    assert_eq!(xsk.wait(Some(20 * MS)).unwrap(), Ready::default());
    let asked = figure(&xsk, "xsk_wakeups");
    assert!(
        (2..=1 + 20 * MS / LOOK_AGAIN_NS).contains(&asked),
        "{asked}"
    );
    let taken = outflow(&mut xsk).serve(1);
    outflow(&mut xsk).complete(&taken);
    xsk.links.kick();
    assert!(!xsk.links.is_stalled());
}

/// Both rings say whether the kernel waits to be called.
#[test]
fn the_kernel_is_called_for_frames_where_it_asks_for_that() {
    let (mut xsk, _wake) = alone();
    assert!(!xsk.receive(|_, run| panic!("{run:?}")));
    assert_eq!(figure(&xsk, "xsk_wakeups"), 0);
    xsk.inlets[0].ask(true);
    assert!(!xsk.receive(|_, run| panic!("{run:?}")));
    assert_eq!(figure(&xsk, "xsk_wakeups"), 1);
    xsk.inlets[0].ask(false);
    assert!(!xsk.receive(|_, run| panic!("{run:?}")));
    assert_eq!(figure(&xsk, "xsk_wakeups"), 1);
}

/// A driver that sends by itself asks for no call that could tell that the link is up again.
#[test]
fn an_interface_that_came_up_again_is_sent_to() {
    let (mut xsk, _wake) = alone();
    outflow(&mut xsk).take_down();
    let put = |xsk: &mut Xsk| outflow(xsk).put_with(|_| Some(60));
    assert_eq!(put(&mut xsk), Err(Unsent::Down));
    xsk.links.kick();
    assert_eq!(put(&mut xsk), Ok(()));
    assert_eq!(figure(&xsk, "xsk_wakeups"), 0);
}
