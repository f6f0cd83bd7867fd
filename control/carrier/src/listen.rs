//! Takes connections and finds out whose they are: so many at once, each in a bounded time. Where there are as many as
//! may be, a new one ends the oldest of the source that has most: who comes to prove itself is not kept out by those
//! that wait. Nothing is kept of one that does not prove itself but a count.

use crate::{
    Counters, Keyring, Kind, Reason,
    hello::{FIRST_BYTES, HelloError, THIRD_BYTES},
    limits::{BREATH, HELLO_TIME, UNPROVEN_MAX},
    wire::{Bottom, Wire, WireError, websocket_bounds},
};
use bytes::Bytes;
use futures_util::future::{AbortHandle, AbortRegistration, Abortable, Aborted};
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::accept_async_with_config;
use tokio_util::either::Either;
use virga_ebpf::header::NodeId;

/// A connection whose other end has proven to be a neighbour.
#[derive(Debug)]
pub struct Proven {
    /// Which one.
    pub peer: NodeId,
    /// The connection.
    pub wire: Wire,
    /// How it came.
    pub kind: Kind,
    /// From where.
    pub from: SocketAddr,
}

/// Those that have not proven themselves yet.
#[derive(Debug, Default)]
struct Unproven(Mutex<Waiting>);

/// In the order in which they came, each with its source and what ends it.
#[derive(Debug, Default)]
struct Waiting {
    came: u64,
    all: BTreeMap<u64, (IpAddr, AbortHandle)>,
}

impl Waiting {
    /// The oldest of the source that has most, with one more of `newcomer`'s.
    fn surplus(&self, newcomer: IpAddr) -> Option<u64> {
        let mut held = BTreeMap::from([(newcomer, 1_usize)]);
        for (source, _) in self.all.values() {
            *held.entry(*source).or_insert(0) += 1;
        }
        let most = held.values().copied().max();
        let mut oldest = self.all.iter();
        let found = oldest.find(|(_, (source, _))| held.get(source).copied() == most);
        found.map(|(number, _)| *number)
    }
}

/// A place among them, until it is dropped.
struct Ticket {
    of: Arc<Unproven>,
    number: u64,
}

impl Unproven {
    /// A place, and what ends who has it; another has lost its own for that where there was none left.
    fn enter(self: &Arc<Self>, source: IpAddr) -> (Ticket, AbortRegistration) {
        let (ends, ended) = AbortHandle::new_pair();
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.all.len() >= UNPROVEN_MAX
            && let Some(oldest) = waiting.surplus(source)
            && let Some((_, ends)) = waiting.all.remove(&oldest)
        {
            ends.abort();
        }
        let number = waiting.came;
        waiting.came += 1;
        waiting.all.insert(number, (source, ends));
        let of = Arc::clone(self);
        (Ticket { of, number }, ended)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut waiting = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.all.remove(&self.number);
    }
}

/// Where connections come in.
pub struct Listener {
    listener: TcpListener,
    kind: Kind,
    tls: Option<TlsAcceptor>,
}

/// What each of them is judged by.
#[derive(Clone)]
pub struct Judge {
    /// The neighbours, as they are now.
    pub keyring: watch::Receiver<Keyring>,
    /// What is counted.
    pub counters: Arc<Counters>,
    /// Where the proven ones go.
    pub proven: mpsc::Sender<Proven>,
    unproven: Arc<Unproven>,
}

impl Judge {
    /// One for all listeners of a node: their bounds are one.
    #[must_use]
    pub fn new(
        keyring: watch::Receiver<Keyring>,
        counters: Arc<Counters>,
        proven: mpsc::Sender<Proven>,
    ) -> Self {
        Self {
            keyring,
            counters,
            proven,
            unproven: Arc::default(),
        }
    }
}

/// Whose connections are counted together: an address of IPv4, a network of 64 bits of IPv6, as one host has many.
fn source(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Why a connection came to nothing.
enum Refusal {
    Said(Reason),
    /// The node stops.
    Ended,
}

impl From<WireError> for Refusal {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Closed | WireError::Io(_) => Self::Said(Reason::Broken),
            WireError::Malformed | WireError::WebSocket(_) => Self::Said(Reason::Garbage),
        }
    }
}

impl From<HelloError> for Refusal {
    fn from(error: HelloError) -> Self {
        match error {
            HelloError::Garbage => Self::Said(Reason::Garbage),
            HelloError::Unknown | HelloError::Proof => Self::Said(Reason::Stranger),
        }
    }
}

impl Listener {
    /// Listens; with `tls`, WebSocket is over it.
    ///
    /// # Errors
    /// What the system says.
    pub async fn bind(
        address: SocketAddr,
        kind: Kind,
        tls: Option<TlsAcceptor>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        Ok(Self {
            listener,
            kind,
            tls,
        })
    }

    /// Where.
    ///
    /// # Errors
    /// What the system says.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Takes connections until nobody wants them any more.
    pub async fn run(self, judge: Judge) {
        let tls = self.tls.map(Arc::new);
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = judge.proven.closed() => return,
            };
            let Ok((tcp, from)) = accepted else {
                sleep(BREATH).await;
                continue;
            };
            let (ticket, ended) = judge.unproven.enter(source(from.ip()));
            let (judge, kind, tls) = (judge.clone(), self.kind, tls.clone());
            tokio::spawn(async move {
                let opened = open(tcp, from, (kind, tls.as_deref()), &judge);
                let opened = Abortable::new(timeout(HELLO_TIME, opened), ended);
                let reason = match opened.await {
                    Ok(Ok(Ok(()) | Err(Refusal::Ended))) => None,
                    Ok(Ok(Err(Refusal::Said(reason)))) => Some(reason),
                    Ok(Err(_late)) => Some(Reason::Slow),
                    Err(Aborted) => Some(Reason::Full),
                };
                if let Some(reason) = reason {
                    judge.counters.count(reason);
                }
                drop(ticket);
            });
        }
    }
}

async fn open(
    tcp: TcpStream,
    from: SocketAddr,
    (kind, tls): (Kind, Option<&TlsAcceptor>),
    judge: &Judge,
) -> Result<(), Refusal> {
    tcp.set_nodelay(true).map_err(WireError::from)?;
    let bottom: Bottom = match tls {
        Some(tls) => {
            let stream = tls.accept(tcp).await;
            let stream = stream.map_err(|_| Refusal::Said(Reason::Garbage))?;
            Either::Right(stream.into())
        }
        None => Either::Left(tcp),
    };
    let mut wire = match kind {
        Kind::Tcp => Wire::Tcp(Box::new(bottom)),
        Kind::Ws | Kind::Wss => {
            let socket = accept_async_with_config(bottom, Some(websocket_bounds())).await;
            let socket = socket.map_err(|_| Refusal::Said(Reason::Garbage))?;
            Wire::WebSocket(Box::new(socket))
        }
    };
    let first = wire.hear(FIRST_BYTES).await?;
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|_| Refusal::Ended)?;
    let keyring = judge.keyring.borrow().clone();
    let (peer, second) = keyring.answer(&first, random)?;
    wire.say(Bytes::copy_from_slice(&second)).await?;
    let third = wire.hear(THIRD_BYTES).await?;
    keyring.check(peer, &first, &second, &third)?;
    let proven = Proven {
        peer,
        wire,
        kind,
        from,
    };
    judge.proven.send(proven).await.map_err(|_| Refusal::Ended)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_one_source_however_many_addresses_it_takes() {
        let counted = |ip: &str| source(ip.parse().unwrap()).to_string();
        assert_eq!(counted("10.0.0.7"), "10.0.0.7");
        assert_eq!(counted("::ffff:10.0.0.7"), "10.0.0.7");
        assert_eq!(counted("2001:db8:1:2:a:b:c:d"), "2001:db8:1:2::");
        assert_eq!(counted("2001:db8:1:3::1"), "2001:db8:1:3::");
    }

    #[test]
    fn who_comes_when_all_places_are_taken_has_that_of_the_oldest_of_whoever_has_most() {
        let unproven = Arc::new(Unproven::default());
        let host = |n: u8| IpAddr::from([10, 0, 0, n]);
        let sources = |of: &Unproven| {
            let waiting = of.0.lock().unwrap();
            let all = waiting.all.values();
            all.map(|(source, _)| *source).collect::<Vec<_>>()
        };
        // Eight sources that never speak; each has as much.
        let mut held: Vec<Ticket> = (0..UNPROVEN_MAX)
            .map(|n| unproven.enter(host(u8::try_from(n % 8).unwrap())).0)
            .collect();
        let ends = unproven.0.lock().unwrap().all[&0].1.clone();
        let (neighbour, kept) = unproven.enter(host(99));
        assert!(ends.is_aborted(), "the first of the first");
        for n in 0..2 * UNPROVEN_MAX {
            held.push(unproven.enter(host(u8::try_from(n % 8).unwrap())).0);
        }
        let all = sources(&unproven);
        assert_eq!(all.len(), UNPROVEN_MAX);
        assert!(all.contains(&host(99)) && !kept.handle().is_aborted());
        // One source alone, as behind a proxy: its own oldest goes.
        held.clear();
        drop(neighbour);
        assert!(sources(&unproven).is_empty(), "nothing is kept");
        held.extend((0..=UNPROVEN_MAX).map(|_| unproven.enter(host(1)).0));
        assert_eq!(sources(&unproven), [host(1); UNPROVEN_MAX]);
        held.clear();
        assert!(sources(&unproven).is_empty(), "nothing is kept");
    }
}
