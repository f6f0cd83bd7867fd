//! Runs on their way out: a fixed number of places, sent in the order in which they were filled.
//!
//! A place keeps its run until the kernel has taken all of it. While the socket is full, whatever
//! was filled stays, in order, and with all places taken there is no room.
//!
//! The kernel copies what it takes. So runs are given to it while they are still in the processor's
//! cache, a few at a time, and the same few places are filled again: with all 16 in turn, each run would come from
//! memory once more.

use crate::io::{
    counters::{ErrorKind, IoCounters},
    outbound::Outbound,
    socket::Socket,
};
use io_uring::{opcode, squeue, types::Fixed};
use std::{io, net::SocketAddr};

/// Places, so runs that are on their way at most.
pub(super) const PLACES: usize = 16;
/// Bytes that wait before the kernel is asked to take them: a call is a hundredth of their sealing.
const WAITING_BYTES_MAX: usize = 128 * 1024;
/// Bytes that a place's buffer holds from the start: any run.
const RUN_BYTES: usize = 65_536;

const _: () = assert!(RUN_BYTES >= crate::limits::TRANSMIT_BYTES_MAX);

/// What becomes of a place's run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It is to be offered to the kernel.
    Waiting,
    /// The kernel has been asked.
    Asked,
    /// Sent, or counted as an error.
    Done,
}

/// One run. What the kernel is shown points into its own place, which never moves.
struct Place {
    run: Vec<u8>,
    /// Where the part begins that the kernel has not taken.
    from: usize,
    segment_bytes: usize,
    /// Sent segment by segment, as segmentation was refused.
    is_single: bool,
    /// An error of an earlier datagram was asked past already.
    is_retried: bool,
    state: State,
    outbound: Outbound,
}

impl Place {
    fn new() -> Self {
        Self {
            run: Vec::with_capacity(RUN_BYTES),
            from: 0,
            segment_bytes: 0,
            is_single: false,
            is_retried: false,
            state: State::Done,
            outbound: Outbound::new(),
        }
    }

    /// Bytes that the kernel is asked to take next.
    fn step(&self) -> usize {
        let rest = self.run.len() - self.from;
        if self.is_single {
            rest.min(self.segment_bytes)
        } else {
            rest
        }
    }

    /// Writes what the kernel reads, and gives the request.
    fn request(&mut self, index: usize, kind: u64) -> squeue::Entry {
        let part = &self.run[self.from..][..self.step()];
        let header = self.outbound.header(part, self.segment_bytes);
        self.state = State::Asked;
        let flags = libc::MSG_DONTWAIT.cast_unsigned();
        opcode::SendMsg::new(Fixed(super::SOCKET), header)
            .flags(flags)
            .build()
            .user_data(kind | index as u64)
    }

    /// Goes on after the part that was asked for, whatever became of it.
    fn advance(&mut self) {
        self.from += self.step();
        self.is_retried = false;
        self.state = if self.from < self.run.len() {
            State::Waiting
        } else {
            State::Done
        };
    }
}

/// All places, and what was sent from them.
pub(super) struct Sends {
    places: Box<[Place]>,
    /// Runs that were filled in all, and of these those that are done with. The place of a run is
    /// its number modulo [`PLACES`].
    filled: usize,
    done: usize,
    asked: usize,
    /// Bytes that were filled in since the kernel was last asked.
    waiting_bytes: usize,
    /// The socket has no room; nothing more is asked until it says that it has.
    is_full: bool,
    /// The socket was full and not all runs are sent since: one is asked at a time, as the next
    /// might find the room that the one before it did not, and overtake it.
    is_tight: bool,
    pub(super) counters: IoCounters,
    /// Runs that were asked for again, and such that went segment by segment.
    pub(super) retried: u64,
    pub(super) unsegmented: u64,
}

impl std::fmt::Debug for Sends {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sends")
            .field("filled", &self.filled)
            .field("done", &self.done)
            .field("asked", &self.asked)
            .field("is_full", &self.is_full)
            .finish_non_exhaustive()
    }
}

impl Sends {
    pub(super) fn new() -> Self {
        Self {
            places: (0..PLACES).map(|_| Place::new()).collect(),
            filled: 0,
            done: 0,
            asked: 0,
            waiting_bytes: 0,
            is_full: false,
            is_tight: false,
            counters: IoCounters::default(),
            retried: 0,
            unsegmented: 0,
        }
    }

    /// Whether a run can be filled in.
    pub(super) fn has_room(&self) -> bool {
        self.filled - self.done < PLACES
    }

    /// The buffer of the next run; only while there is room.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        debug_assert!(self.has_room());
        if self.is_empty() {
            // The kernel is done with all: the first is filled again, which is still in the cache.
            (self.filled, self.done) = (0, 0);
        }
        let run = &mut self.places[self.filled % PLACES].run;
        run.clear();
        run
    }

    /// Queues what was written into [`Sends::buffer`].
    pub(super) fn commit(&mut self, to: SocketAddr, segment_bytes: usize, socket: &Socket) {
        let place = &mut self.places[self.filled % PLACES];
        if place.run.is_empty() || segment_bytes == 0 {
            return;
        }
        place.from = 0;
        place.segment_bytes = segment_bytes;
        place.is_single = socket.segments_max() == 1;
        place.is_retried = false;
        place.state = State::Waiting;
        place.outbound.set_target(to);
        self.waiting_bytes += place.run.len();
        self.filled += 1;
    }

    /// Whether so much waits that the kernel should be asked now.
    pub(super) fn is_due(&self) -> bool {
        self.waiting_bytes >= WAITING_BYTES_MAX && !self.is_full
    }

    /// Whether nothing is left to send.
    pub(super) fn is_empty(&self) -> bool {
        self.filled == self.done
    }

    /// Whether the kernel still has to answer for a run.
    pub(super) fn is_asked(&self) -> bool {
        self.asked > 0
    }

    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    /// The socket has room again.
    pub(super) fn resume(&mut self) {
        self.is_full = false;
    }

    /// Requests for all runs that wait, in order; none before the last ones were answered, so that
    /// what has to go again comes first.
    pub(super) fn requests(&mut self, kind: u64) -> impl Iterator<Item = squeue::Entry> {
        let range = if self.is_full || self.asked > 0 {
            0..0
        } else {
            self.done..self.filled
        };
        self.waiting_bytes = 0;
        let at_once = if self.is_tight { 1 } else { PLACES };
        let Self { places, asked, .. } = self;
        let waiting = range.filter_map(move |number| {
            let index = number % PLACES;
            let place = &mut places[index];
            (place.state == State::Waiting).then(|| {
                *asked += 1;
                place.request(index, kind)
            })
        });
        waiting.take(at_once)
    }

    /// The kernel was not asked after all: the next round of requests asks it.
    pub(super) fn take_back(&mut self, index: usize) {
        let Some(place) = self.places.get_mut(index) else {
            return;
        };
        debug_assert_eq!(place.state, State::Asked);
        place.state = State::Waiting;
        self.asked -= 1;
        self.retried += 1;
    }

    /// The kernel's answer for a place's request.
    pub(super) fn complete(&mut self, index: usize, result: i32, socket: &mut Socket) {
        let Some(place) = self.places.get_mut(index) else {
            return;
        };
        debug_assert_eq!(place.state, State::Asked);
        self.asked -= 1;
        let step = place.step();
        match result {
            0.. => {
                self.counters.add_run(step, place.segment_bytes);
                // A datagram is sent whole or not at all: a short count is a broken kernel's.
                if usize::try_from(result).is_ok_and(|sent| sent != step) {
                    self.counters.add_error(ErrorKind::Other);
                }
                place.advance();
            }
            refused if refused == -libc::EAGAIN => {
                self.counters.would_block += step.div_ceil(place.segment_bytes) as u64;
                self.is_full = true;
                self.is_tight = true;
                place.state = State::Waiting;
            }
            refused if refused == -libc::ECANCELED || refused == -libc::EINTR => {
                self.retried += 1;
                place.state = State::Waiting;
            }
            refused => {
                let kind = ErrorKind::from(&io::Error::from_raw_os_error(-refused));
                if kind == ErrorKind::Refused && !place.is_retried {
                    self.counters.add_error(kind);
                    self.retried += 1;
                    place.is_retried = true;
                    place.state = State::Waiting;
                } else if step > place.segment_bytes {
                    // Where the kernel or the NIC does not segment, the run goes one by one.
                    if refused == -libc::EIO {
                        socket.stop_segmenting();
                    }
                    self.unsegmented += 1;
                    place.is_single = true;
                    place.state = State::Waiting;
                } else {
                    self.counters.add_error(kind);
                    place.advance();
                }
            }
        }
        while self.done < self.filled && self.places[self.done % PLACES].state == State::Done {
            self.done += 1;
        }
        self.is_tight &= !self.is_empty();
    }
}
