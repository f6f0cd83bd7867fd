//! The ring itself: what is asked of the kernel, and what it answers.

use super::{
    super::wake::timespec, BUFFER_BYTES, BUFFERS, Batching, ErrorKind, IoCounters, Ready, SOCKET,
    Sent, Socket, WAKE, Wake, buffers::GROUP, message, sends::Sends,
};
use io_uring::{
    IoUring, cqueue, opcode, squeue,
    types::{CancelBuilder, Fixed, SubmitArgs, Timespec},
};
use std::{collections::VecDeque, io, mem, net::SocketAddr, sync::Arc};

/// Which request a completion answers: the high byte of its user data.
const RECEIVE: u64 = 1 << 56;
const SEND: u64 = 2 << 56;
const WOKEN: u64 = 3 << 56;
const ROOM: u64 = 4 << 56;
const KIND: u64 = 0xFF << 56;
/// Rounds of one flush: more are needed only where runs go segment by segment.
const FLUSH_ROUNDS: usize = 256;
/// How long the kernel gets to end the requests of a ring that closes, and as long again, so many
/// times, for each of their completions.
const CANCEL_NS_MAX: u32 = 50_000_000;
const LAST_ROUNDS: usize = 8;
/// Calls in a row that may find the kernel without memory, this long apart.
const NO_MEMORY_MAX: u32 = 3_000;
const NO_MEMORY_PAUSE_NS: u64 = 1_000_000;

/// A buffer that the kernel has filled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived {
    pub(super) buffer: u16,
    pub(super) bytes: usize,
}

/// What this driver counts beside.
#[derive(Debug, Default)]
struct Figures {
    enters: u64,
    completions: u64,
    receives_armed: u64,
    buffers_exhausted: u64,
    wakes: u64,
    full: u64,
    no_memory: u64,
}

/// The half that sends, and all that both halves share.
pub struct Ring {
    // Closed before anything that its requests point to is freed.
    uring: IoUring,
    socket: Socket,
    wake: Arc<Wake>,
    batching: Option<Batching>,
    /// Says how much room a received datagram's address and control messages get.
    header: Box<libc::msghdr>,
    sends: Sends,
    /// At most one for each buffer.
    arrived: VecDeque<Arrived>,
    /// Buffers that the kernel may have; it has found none since this was asked.
    buffers: u16,
    is_short: bool,
    is_receiving: bool,
    is_listening: bool,
    is_watching: bool,
    is_woken: bool,
    failure: Option<io::Error>,
    /// Calls in a row that found the kernel without memory.
    no_memory: u32,
    figures: Figures,
    pub(super) received: IoCounters,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("socket", &self.socket)
            .field("sends", &self.sends)
            .field("arrived", &self.arrived.len())
            .field("figures", &self.figures)
            .finish_non_exhaustive()
    }
}

impl Ring {
    pub(super) fn new(
        uring: IoUring,
        socket: Socket,
        wake: Arc<Wake>,
        batching: Option<Batching>,
        buffers: u16,
    ) -> Self {
        // SAFETY: a msghdr is integers and pointers, for which all zeroes are valid.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        header.msg_namelen = u32::try_from(message::NAME_BYTES).unwrap_or(0);
        header.msg_controllen = message::CONTROL_BYTES;
        let mut ring = Self {
            uring,
            socket,
            wake,
            batching,
            header: Box::new(header),
            sends: Sends::new(),
            arrived: VecDeque::with_capacity(usize::from(BUFFERS)),
            buffers,
            is_short: false,
            is_receiving: false,
            is_listening: false,
            is_watching: false,
            is_woken: false,
            failure: None,
            no_memory: 0,
            figures: Figures::default(),
            received: IoCounters::default(),
        };
        ring.arm();
        ring
    }

    /// Takes in what has completed; asks the kernel only where it says that it has work to do.
    pub(super) fn collect(&mut self) {
        self.reap();
        if self.arrived.is_empty() {
            self.arm();
            self.enter_if_due();
        }
    }

    /// Whether the kernel found no buffer to fill; asked once.
    pub(super) fn take_shortage(&mut self) -> bool {
        mem::take(&mut self.is_short)
    }

    /// How many buffers there are now.
    pub(super) fn set_buffers(&mut self, buffers: u16) {
        self.buffers = buffers;
    }

    pub(super) fn next_arrived(&mut self) -> Option<Arrived> {
        self.arrived.pop_front()
    }

    pub(super) fn has_arrived(&self) -> bool {
        !self.arrived.is_empty()
    }

    pub(super) fn room(&mut self) -> Option<&mut Vec<u8>> {
        if !self.sends.has_room() {
            self.flush();
        }
        self.sends.has_room().then(|| self.sends.buffer())
    }

    pub(super) fn commit(&mut self, to: SocketAddr, segment_bytes: usize) {
        self.sends.commit(to, segment_bytes, &self.socket);
        if self.sends.is_due() {
            self.flush();
        }
    }

    /// Copies a run and queues it.
    pub(in crate::io) fn send(&mut self, to: SocketAddr, run: &[u8], segment_bytes: usize) -> Sent {
        let Some(buffer) = self.room() else {
            return Sent::Blocked { from: 0 };
        };
        buffer.extend_from_slice(run);
        self.commit(to, segment_bytes);
        Sent::Done
    }

    pub(super) fn flush(&mut self) -> bool {
        for _ in 0..FLUSH_ROUNDS {
            self.push_sends();
            if self.sends.is_empty() || self.sends.is_full() {
                break;
            }
            self.enter(0, None);
            self.reap();
            if self.sends.is_asked() {
                break;
            }
        }
        self.sends.is_empty()
    }

    pub(super) fn wait(&mut self, timeout_ns: Option<u64>) -> io::Result<Ready> {
        let (had_room, was_full) = (self.sends.has_room(), self.sends.is_full());
        self.push_sends();
        self.arm();
        self.reap();
        let has_drained = was_full && !self.sends.is_full();
        if has_drained {
            // What waited for the socket goes now: no completion of it would end a sleep.
            self.push_sends();
        }
        let is_told = self.has_arrived() || self.is_woken || has_drained;
        if timeout_ns == Some(0) || is_told || (!had_room && self.sends.has_room()) {
            self.enter_if_due();
        } else {
            self.sleep(timeout_ns);
        }
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        Ok(Ready {
            readable: self.has_arrived(),
            writable: !had_room && self.sends.has_room(),
            woken: mem::take(&mut self.is_woken),
        })
    }

    fn sleep(&mut self, timeout_ns: Option<u64>) {
        let Some(batching) = self.batching else {
            self.enter(1, timeout_ns);
            return self.reap();
        };
        let within_ns = u64::from(batching.within_us) * 1_000;
        if timeout_ns.is_some_and(|timeout_ns| timeout_ns <= within_ns) {
            self.enter(batching.completions, timeout_ns);
            return self.reap();
        }
        // For a short while until there are many, then until there is one.
        self.enter(batching.completions, Some(within_ns));
        self.reap();
        if !self.has_arrived() && !self.is_woken && self.failure.is_none() {
            let rest_ns = timeout_ns.map(|timeout_ns| timeout_ns - within_ns);
            self.enter(1, rest_ns);
            self.reap();
        }
    }

    pub(super) fn sent(&self) -> &IoCounters {
        &self.sends.counters
    }

    pub(super) fn figures(&self) -> Vec<(&'static str, u64)> {
        let figures = &self.figures;
        vec![
            ("enters", figures.enters),
            ("completions", figures.completions),
            ("receives_armed", figures.receives_armed),
            ("buffers_exhausted", figures.buffers_exhausted),
            ("wakes", figures.wakes),
            ("full", figures.full),
            ("no_memory", figures.no_memory),
            ("retried", self.sends.retried),
            ("unsegmented", self.sends.unsegmented),
            ("socket_lost", self.socket.lost()),
        ]
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Whether the kernel has answered every request for good.
    fn is_idle(&self) -> bool {
        !(self.is_receiving || self.is_listening || self.is_watching || self.sends.is_asked())
    }

    /// Queues the requests that stay armed, where they have ended.
    fn arm(&mut self) {
        // Without a buffer to fill it would end at once.
        if !self.is_receiving && self.arrived.len() < usize::from(self.buffers) {
            let receive = opcode::RecvMsgMulti::new(Fixed(SOCKET), &raw const *self.header, GROUP);
            self.is_receiving = self.push(&receive.build().user_data(RECEIVE));
            self.figures.receives_armed += 1;
        }
        if !self.is_listening {
            let readable = libc::POLLIN.cast_unsigned().into();
            let listen = opcode::PollAdd::new(Fixed(WAKE), readable).multi(true);
            self.is_listening = self.push(&listen.build().user_data(WOKEN));
        }
        if self.sends.is_full() && !self.is_watching {
            let writable = libc::POLLOUT.cast_unsigned().into();
            let watch = opcode::PollAdd::new(Fixed(SOCKET), writable);
            self.is_watching = self.push(&watch.build().user_data(ROOM));
        }
    }

    fn push_sends(&mut self) {
        let mut queue = self.uring.submission();
        let refused = self.sends.requests(SEND).find(|request| {
            // SAFETY: the request points into its place of `sends`, which neither moves nor is
            // written to until the kernel has answered, and which is freed after the ring.
            unsafe { queue.push(request) }.is_err()
        });
        // The kernel has not taken what was queued before: this one waits for the next round.
        if let Some(request) = refused {
            self.sends.take_back(index_of(request.get_user_data()));
        }
    }

    /// Whether there was a place.
    fn push(&mut self, request: &squeue::Entry) -> bool {
        // SAFETY: a receive points to `header`, which lives as long as the ring and never changes;
        // polls point to nothing.
        unsafe { self.uring.submission().push(request) }.is_ok()
    }

    /// Calls the kernel only where there is something to submit or to run.
    fn enter_if_due(&mut self) {
        let queue = self.uring.submission();
        let is_due = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
        drop(queue);
        if is_due {
            self.enter(0, None);
        }
        self.reap();
    }

    /// Submits what is queued and waits for so many completions, or for so long.
    fn enter(&mut self, completions: usize, timeout_ns: Option<u64>) {
        const SECOND_NS: u64 = 1_000_000_000;
        self.figures.enters += 1;
        let timespec = timeout_ns.map(|ns| {
            let below_second = u32::try_from(ns % SECOND_NS).unwrap_or(0);
            Timespec::new().sec(ns / SECOND_NS).nsec(below_second)
        });
        let mut arguments = SubmitArgs::new();
        if let Some(timespec) = &timespec {
            arguments = arguments.timespec(timespec);
        }
        let entered = self
            .uring
            .submitter()
            .submit_with_args(completions, &arguments);
        let before = mem::take(&mut self.no_memory);
        let Err(error) = entered else {
            return;
        };
        match then(error.raw_os_error(), before) {
            Then::GoOn => {}
            Then::Pause => {
                self.no_memory = before + 1;
                self.figures.no_memory += 1;
                pause();
            }
            Then::Fail => self.failure = Some(error),
        }
    }

    /// Takes in all completions that are there, without a call.
    fn reap(&mut self) {
        let sent = self.sends.counters.datagrams;
        let waiting = self.arrived.len();
        loop {
            // An entry is copied out, so that the queue is free while it is looked at.
            let Some(completion) = self.uring.completion().next() else {
                break;
            };
            self.figures.completions += 1;
            match completion.user_data() & KIND {
                RECEIVE => self.take_received(completion.result(), completion.flags()),
                SEND => {
                    let was_full = self.sends.is_full();
                    self.sends.complete(
                        index_of(completion.user_data()),
                        completion.result(),
                        &mut self.socket,
                    );
                    self.figures.full += u64::from(!was_full && self.sends.is_full());
                }
                WOKEN => {
                    self.figures.wakes += 1;
                    self.is_woken = true;
                    if !cqueue::more(completion.flags()) {
                        self.is_listening = false;
                        // It is rung as far as this driver is concerned, and listens anew.
                        self.wake.clear();
                    }
                }
                // Room, or an error that the next send tells of.
                _ => {
                    self.is_watching = false;
                    self.sends.resume();
                }
            }
        }
        self.received.batches += u64::from(self.arrived.len() > waiting);
        self.sends.counters.batches += u64::from(self.sends.counters.datagrams > sent);
    }

    /// A buffer that comes with an error holds nothing, and is given back all the same.
    fn take_received(&mut self, result: i32, flags: u32) {
        self.is_receiving = cqueue::more(flags);
        let bytes = usize::try_from(result).ok();
        let bytes = bytes.filter(|bytes| *bytes <= BUFFER_BYTES);
        let buffer = cqueue::buffer_select(flags).filter(|buffer| *buffer < BUFFERS);
        if let Some(buffer) = buffer {
            let bytes = bytes.unwrap_or(0);
            self.arrived.push_back(Arrived { buffer, bytes });
        }
        match -result {
            libc::ENOBUFS => {
                self.figures.buffers_exhausted += 1;
                self.is_short = true;
            }
            libc::ECANCELED => {}
            errno @ 1.. => {
                let error = io::Error::from_raw_os_error(errno);
                self.received.add_error(ErrorKind::from(&error));
            }
            _ if bytes.is_none() || buffer.is_none() => {
                self.received.add_error(ErrorKind::Other);
            }
            _ => {}
        }
    }
}

/// Which place a request is for.
fn index_of(user_data: u64) -> usize {
    usize::try_from(user_data & !KIND).unwrap_or(usize::MAX)
}

/// What to do about an error of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    /// The caller looks again: out of time, a signal, or completions to be taken in first.
    GoOn,
    /// The same, a little later.
    Pause,
    /// The driver ends.
    Fail,
}

/// `in_a_row`: how many calls before this one found no memory.
fn then(errno: Option<i32>, in_a_row: u32) -> Then {
    match errno {
        Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Then::GoOn,
        Some(libc::ENOMEM | libc::ENOBUFS) if in_a_row < NO_MEMORY_MAX => Then::Pause,
        _ => Then::Fail,
    }
}

/// Sleeps: nothing that is waited for can come.
fn pause() {
    let _signal = rustix::event::poll(&mut [], Some(&timespec(NO_MEMORY_PAUSE_NS)));
}

impl Drop for Ring {
    /// Ends what is armed, so that the socket's address is free when this returns: a ring that is
    /// only closed ends in its own time.
    fn drop(&mut self) {
        // What is queued is submitted first, so that no request begins after the others ended.
        self.enter(0, None);
        let patience = Timespec::new().nsec(CANCEL_NS_MAX);
        let submitter = self.uring.submitter();
        // Where the kernel refuses, closing the ring does the same a little later.
        let _later = submitter.register_sync_cancel(Some(patience), CancelBuilder::any());
        // The last completions come with the deferred work.
        for _ in 0..LAST_ROUNDS {
            self.reap();
            if self.is_idle() {
                break;
            }
            self.enter(1, Some(u64::from(CANCEL_NS_MAX)));
        }
        // Linux 6.1 waits here for requests that still hold a file, without end.
        if self.is_idle() {
            let _later = self.uring.submitter().unregister_files();
        }
    }
}

#[cfg(test)]
mod tests;
