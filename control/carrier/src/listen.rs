//! Takes connections and finds out whose they are: so many at once, of one source so many, each in a bounded time.
//! Nothing is kept of one that does not prove itself but a count.

use crate::{
    Counters, Keyring, Kind, Reason,
    hello::{FIRST_BYTES, HelloError, THIRD_BYTES},
    limits::{BREATH, HELLO_TIME, UNPROVEN_MAX, UNPROVEN_PER_SOURCE_MAX},
    wire::{Bottom, Wire, WireError, websocket_bounds},
};
use bytes::Bytes;
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

/// Those that have not proven themselves yet, by source.
#[derive(Debug, Default)]
struct Unproven(Mutex<BTreeMap<IpAddr, usize>>);

/// A place among them, until it is dropped.
struct Ticket {
    of: Arc<Unproven>,
    source: IpAddr,
}

impl Unproven {
    fn enter(self: &Arc<Self>, source: IpAddr) -> Option<Ticket> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = held.values().sum();
        let own = held.get(&source).copied().unwrap_or(0);
        if all >= UNPROVEN_MAX || own >= UNPROVEN_PER_SOURCE_MAX {
            return None;
        }
        held.insert(source, own + 1);
        Some(Ticket {
            of: Arc::clone(self),
            source,
        })
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut held = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = held.get_mut(&self.source) {
            *own -= 1;
            if *own == 0 {
                held.remove(&self.source);
            }
        }
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
            let Some(ticket) = judge.unproven.enter(source(from.ip())) else {
                judge.counters.count(Reason::Full);
                continue;
            };
            let (judge, kind, tls) = (judge.clone(), self.kind, tls.clone());
            tokio::spawn(async move {
                let opened = open(tcp, from, (kind, tls.as_deref()), &judge);
                let reason = match timeout(HELLO_TIME, opened).await {
                    Ok(Ok(())) | Ok(Err(Refusal::Ended)) => None,
                    Ok(Err(Refusal::Said(reason))) => Some(reason),
                    Err(_late) => Some(Reason::Slow),
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
    fn one_source_takes_its_share_and_all_take_so_many() {
        let unproven = Arc::new(Unproven::default());
        let host = |n: u8| IpAddr::from([10, 0, 0, n]);
        let mut held: Vec<Ticket> = std::iter::from_fn(|| unproven.enter(host(1))).collect();
        assert_eq!(held.len(), UNPROVEN_PER_SOURCE_MAX);
        for n in 2..=u8::MAX {
            held.extend(std::iter::from_fn(|| unproven.enter(host(n))));
        }
        assert_eq!(held.len(), UNPROVEN_MAX);
        held.remove(0);
        assert!(unproven.enter(host(1)).is_some());
        held.clear();
        assert!(unproven.0.lock().unwrap().is_empty(), "nothing is kept");
    }
}
