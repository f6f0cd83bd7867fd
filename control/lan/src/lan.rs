//! The LANs in which a node has addresses: what is said and heard there, and what keeps it from that.

use crate::{
    limits::{MESSAGE_BYTES_MAX, MESSAGES_A_TICK, RETRY_NS, TAKEN_A_TICK, TICK_NS},
    reason::Reason,
    socket::Socket,
    speaker::Speaker,
};
use std::{io, net::IpAddr};
use virga_discovery::{Found, Origin, Record, Source};

/// A LAN, by the address that this node has there.
#[derive(Debug)]
pub struct Place {
    address: IpAddr,
    socket: Option<Socket>,
    problem: Option<String>,
    retry_ns: u64,
}

impl Place {
    /// This node's address there.
    #[must_use]
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Why nothing is said or heard there; none where that is possible.
    #[must_use]
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }
}

/// See the [module](self). Says goodbye when it is dropped.
#[derive(Debug)]
pub struct Lan {
    speaker: Speaker,
    places: Vec<Place>,
    due_ns: u64,
    buffer: Box<[u8]>,
    said: u64,
    heard: u64,
}

impl Lan {
    /// For a node that says `own` of itself, where it has one of these addresses; the sockets are opened by the
    /// first [`Self::tick`].
    #[must_use]
    pub fn new(own: &Record, addresses: impl IntoIterator<Item = IpAddr>, seed: u64) -> Self {
        let mut places: Vec<Place> = Vec::new();
        for address in addresses {
            if places.iter().all(|place| place.address != address) {
                places.push(Place {
                    address,
                    socket: None,
                    problem: None,
                    retry_ns: 0,
                });
            }
        }
        Self {
            speaker: Speaker::new(own, places.len(), seed),
            places,
            due_ns: 0,
            // One byte more than a message may have: longer ones show.
            buffer: vec![0; MESSAGE_BYTES_MAX + 1].into(),
            said: 0,
            heard: 0,
        }
    }

    /// Hears what others have said, and says what is due, where that is possible; what this node says of itself is
    /// `own`. To be called often: what is too early is nothing.
    pub fn tick(&mut self, now_ns: u64, own: &Record) {
        if now_ns < self.due_ns {
            return;
        }
        self.due_ns = now_ns + TICK_NS;
        self.speaker.announce(now_ns, own);
        for number in 0..self.places.len() {
            self.open(now_ns, number);
            if let Err(error) = self.listen(now_ns, number) {
                self.fail(now_ns, number, error.to_string());
            }
        }
        for (number, words) in self.speaker.transmit(now_ns) {
            let socket = self
                .places
                .get(number)
                .and_then(|place| place.socket.as_ref());
            match socket.map(|socket| socket.send(&words)) {
                Some(Ok(())) => self.said += 1,
                Some(Err(error)) => self.fail(now_ns, number, error.to_string()),
                None => {}
            }
        }
    }

    fn open(&mut self, now_ns: u64, number: usize) {
        let place = &mut self.places[number];
        if place.socket.is_some() || now_ns < place.retry_ns {
            return;
        }
        match Socket::open(place.address) {
            Ok(socket) => {
                tracing::info!(address = %place.address, "announces this node in the LAN, and listens for others");
                (place.socket, place.problem) = (Some(socket), None);
                self.speaker.open(now_ns, number);
            }
            Err(problem) => self.fail(now_ns, number, problem),
        }
    }

    fn fail(&mut self, now_ns: u64, number: usize, problem: String) {
        let place = &mut self.places[number];
        (place.socket, place.retry_ns) = (None, now_ns + RETRY_NS);
        if place.problem.as_ref() != Some(&problem) {
            tracing::warn!(
                address = %place.address, %problem,
                "nodes in the LAN are not looked for, and the node goes on without; it is tried again"
            );
        }
        place.problem = Some(problem);
        self.speaker.close(number);
    }

    fn listen(&mut self, now_ns: u64, number: usize) -> io::Result<()> {
        let Some(socket) = &self.places[number].socket else {
            return Ok(());
        };
        for taken in 0..TAKEN_A_TICK {
            let Some((length, source)) = socket.receive(&mut self.buffer)? else {
                break;
            };
            self.heard += 1;
            match taken < MESSAGES_A_TICK {
                true => self
                    .speaker
                    .handle(now_ns, number, source, &self.buffer[..length]),
                false => self.speaker.overhear(),
            }
        }
        Ok(())
    }

    /// When [`Self::tick`] is due.
    #[must_use]
    pub const fn due_ns(&self) -> u64 {
        self.due_ns
    }

    /// Says goodbye, and closes all sockets; a later tick opens them again.
    pub fn leave(&mut self) {
        let sockets = self
            .places
            .iter_mut()
            .filter_map(|place| place.socket.take());
        if let Some(words) = self.speaker.goodbye() {
            for socket in sockets {
                // Who does not hear it waits for as long as it was told.
                let _lost = socket.send(&words);
            }
        }
    }

    /// Where it is said what this node is, and whether that is possible.
    #[must_use]
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// Messages that were sent, and that were heard, so far.
    #[must_use]
    pub const fn messages(&self) -> (u64, u64) {
        (self.said, self.heard)
    }

    /// Other nodes whose announcements count now, be they true or not.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.speaker.nodes()
    }

    /// How often something was not taken.
    #[must_use]
    pub fn refused(&self, reason: Reason) -> u64 {
        self.speaker.refused(reason)
    }
}

impl Source for Lan {
    fn origin(&self) -> Origin {
        self.speaker.origin()
    }

    fn poll(&mut self, max: usize) -> Vec<Found> {
        self.speaker.poll(max)
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        self.leave();
    }
}
