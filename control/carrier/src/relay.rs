//! Between a connection and this node's own UDP port: packets pass through a socket on loopback, so that a worker sees a
//! neighbour at another address.
//!
//! ```text
//!  worker's UDP socket ◄──► relay's socket on loopback ──► queue ──► connection
//!                                         ▲───────────────────────── connection
//! ```
//!
//! The queue is bounded in bytes and frames; a session sends more than the connection takes until the queue drops
//! some, as it does on any path. Only the worker's packets are taken, and packets go nowhere but to it.

use crate::{
    Counters, Reason,
    limits::{
        FAREWELL, FRAME_BYTES_MAX, FRAMES_PER_SECOND, KEEPALIVE_EVERY, QUEUE_BYTES_MAX,
        QUEUE_FRAMES_MAX, SILENCE_MAX,
    },
    wire::{Command, Frame, Reader, Wire, WireError, Writer},
};
use bytes::Bytes;
use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::{
    net::UdpSocket,
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

/// The kernel's buffer of a relay's socket, if it gives as much: a worker sends in bursts.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// What the owner of a connection wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Tell the other end to use UDP, and go on until it says that it does.
    Leave,
    /// This end uses UDP, as the other wanted: say so, and end.
    Bye,
}

/// What the owner is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is over, as both wanted.
    Left,
    /// It is over: the reason, and what happened.
    Lost(Reason, String),
}

/// A socket that a worker takes for a neighbour.
#[derive(Debug)]
pub struct Relay {
    socket: UdpSocket,
    address: SocketAddr,
    worker: SocketAddr,
}

impl Relay {
    /// Binds it; `place` tells it apart from those of other neighbours, and `listen` is where the workers are.
    ///
    /// # Errors
    /// What the system says.
    pub async fn bind(place: u16, listen: SocketAddr) -> io::Result<Self> {
        let [high, low] = place.to_be_bytes();
        let (local, any): (IpAddr, IpAddr) = match listen {
            SocketAddr::V4(_) => (
                Ipv4Addr::new(NETWORK[0], NETWORK[1], high, low).into(),
                Ipv4Addr::LOCALHOST.into(),
            ),
            // IPv6 has one loopback address.
            SocketAddr::V6(_) => (
                std::net::Ipv6Addr::LOCALHOST.into(),
                std::net::Ipv6Addr::LOCALHOST.into(),
            ),
        };
        let at = match listen.ip().is_unspecified() {
            true => any,
            false => listen.ip(),
        };
        let socket = UdpSocket::bind((local, 0)).await?;
        // A smaller one holds shorter bursts and is not wrong.
        let _capped =
            rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES);
        let address = socket.local_addr()?;
        let worker = SocketAddr::new(at, listen.port());
        Ok(Self {
            socket,
            address,
            worker,
        })
    }

    /// Where the worker finds it.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Passes packets until the connection ends, and tells how it did; that the other end wants to use UDP, it tells
    /// meanwhile.
    pub async fn run<T>(
        self,
        wire: Wire,
        counters: Arc<Counters>,
        mut asks: mpsc::Receiver<Ask>,
        leaves: (mpsc::Sender<T>, impl Fn() -> T),
    ) -> Told {
        let (reader, writer) = wire.split();
        let (queue, queued) = mpsc::channel(QUEUE_FRAMES_MAX);
        let held = AtomicUsize::new(0);
        // Each is said once.
        let (commands, commanded) = mpsc::channel(2);
        let asked = async {
            while let Some(ask) = asks.recv().await {
                let command = match ask {
                    Ask::Leave => Command::Leave,
                    Ask::Bye => {
                        // What the workers sent before they knew comes along.
                        sleep(FAREWELL).await;
                        Command::Bye
                    }
                };
                if commands.send(command).await.is_err() {
                    break;
                }
            }
            // Whoever asks no more lets the connection go on until it ends by itself.
            std::future::pending::<Told>().await
        };
        tokio::select! {
            told = self.inward(reader, &counters, leaves) => told,
            told = self.outward(&queue, &held, &counters) => told,
            told = write(writer, (queued, commanded), &held, &counters) => told,
            told = asked => told,
        }
    }

    /// From the connection to the worker.
    async fn inward<T>(
        &self,
        mut reader: Reader,
        counters: &Counters,
        (tell, leaves): (mpsc::Sender<T>, impl Fn() -> T),
    ) -> Told {
        let mut rate = Rate::new(Instant::now());
        let mut is_leaving = false;
        loop {
            let frame = match timeout(SILENCE_MAX, reader.frame()).await {
                Ok(Ok(frame)) => frame,
                Ok(Err(error)) => return lost(&error),
                Err(_silent) => {
                    let words = format!("nothing came for {} s", SILENCE_MAX.as_secs());
                    return Told::Lost(Reason::Broken, words);
                }
            };
            let is_too_many = !rate.takes(Instant::now());
            match frame {
                Frame::Command(Command::Leave) if is_leaving => {
                    let words = "it has said twice that UDP works".to_owned();
                    return Told::Lost(Reason::Malformed, words);
                }
                Frame::Command(Command::Leave) => {
                    is_leaving = true;
                    // Nobody listens when the node stops.
                    let _stopping = tell.send(leaves()).await;
                }
                Frame::Command(Command::Bye) => return Told::Left,
                _ if is_too_many => counters.count(Reason::Rate),
                Frame::Nothing => {}
                Frame::Packet(packet) => match self.socket.try_send_to(&packet, self.worker) {
                    Ok(_) => counters.count_received(),
                    Err(_) => match self.socket.send_to(&packet, self.worker).await {
                        Ok(_) => counters.count_received(),
                        Err(_) => counters.count(Reason::Local),
                    },
                },
            }
        }
    }

    /// From the worker to the queue.
    async fn outward(
        &self,
        queue: &mpsc::Sender<Bytes>,
        held: &AtomicUsize,
        counters: &Counters,
    ) -> Told {
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        loop {
            let (bytes, from) = match self.socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => return Told::Lost(Reason::Local, error.to_string()),
            };
            if !self.is_worker(from) {
                continue;
            }
            let waits = held.load(Ordering::Relaxed);
            let packet = Bytes::copy_from_slice(&buffer[..bytes]);
            if waits + bytes > QUEUE_BYTES_MAX || queue.try_send(packet).is_err() {
                counters.count(Reason::Queue);
                continue;
            }
            held.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// Whether a packet came from this node's workers: nobody else on this host has their address and port.
    fn is_worker(&self, from: SocketAddr) -> bool {
        from == self.worker
    }
}

/// Where relays' addresses begin: 127.86.x.y.
pub const NETWORK: [u8; 2] = [127, 86];

/// Whether an address is one that relays have.
#[must_use]
pub fn is_relays(address: SocketAddr) -> bool {
    matches!(address.ip(), IpAddr::V4(ip) if ip.octets()[..2] == NETWORK)
}

fn lost(error: &WireError) -> Told {
    let reason = match error {
        WireError::Malformed | WireError::WebSocket(_) => Reason::Malformed,
        WireError::Closed | WireError::Io(_) => Reason::Broken,
    };
    Told::Lost(reason, error.to_string())
}

/// Writes what waits, and a sign of life where nothing does.
async fn write(
    mut writer: Writer,
    (mut queued, mut commanded): (mpsc::Receiver<Bytes>, mpsc::Receiver<Command>),
    held: &AtomicUsize,
    counters: &Counters,
) -> Told {
    loop {
        let next = tokio::select! {
            biased;
            Some(packet) = queued.recv() => Next::Packet(packet),
            Some(command) = commanded.recv() => Next::Command(command),
            () = sleep(KEEPALIVE_EVERY) => Next::Nothing,
        };
        let written = async {
            match next {
                Next::Packet(packet) => {
                    let mut bytes = packet.len();
                    writer.put(packet).await?;
                    counters.count_sent();
                    while let Ok(packet) = queued.try_recv() {
                        bytes += packet.len();
                        writer.put(packet).await?;
                        counters.count_sent();
                        if bytes >= QUEUE_BYTES_MAX / 4 {
                            break;
                        }
                    }
                    writer.flush().await?;
                    held.fetch_sub(bytes, Ordering::Relaxed);
                    Ok::<Option<Told>, WireError>(None)
                }
                Next::Command(command) => {
                    writer.put(Bytes::copy_from_slice(&[command as u8])).await?;
                    if command == Command::Bye {
                        writer.finish().await?;
                        return Ok(Some(Told::Left));
                    }
                    writer.flush().await?;
                    Ok(None)
                }
                Next::Nothing => {
                    writer.put(Bytes::new()).await?;
                    writer.flush().await?;
                    Ok(None)
                }
            }
        };
        match written.await {
            Ok(None) => {}
            Ok(Some(told)) => return told,
            Err(error) => return lost(&error),
        }
    }
}

/// What is written next.
enum Next {
    Packet(Bytes),
    Command(Command),
    Nothing,
}

/// Frames of one second.
#[derive(Debug)]
struct Rate {
    since: Instant,
    taken: u32,
}

impl Rate {
    const fn new(now: Instant) -> Self {
        Self {
            since: now,
            taken: 0,
        }
    }

    fn takes(&mut self, now: Instant) -> bool {
        if now.duration_since(self.since).as_secs() >= 1 {
            (self.since, self.taken) = (now, 0);
        }
        self.taken = self.taken.saturating_add(1);
        self.taken <= FRAMES_PER_SECOND
    }
}

#[cfg(test)]
mod tests;
