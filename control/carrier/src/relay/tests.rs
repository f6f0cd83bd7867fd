//! Relays between a worker that is a plain socket and real connections.

use super::*;
use crate::{
    Keyring, Kind, Target,
    dial::{DialError, dial},
    listen::{Judge, Listener, Proven},
    tls::{self, Trust},
};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
};
use virga_ebpf::header::{Header, NodeId};
use x25519_dalek::{PublicKey, StaticSecret};

const IDS: [NodeId; 2] = [NodeId(1), NodeId(2)];
const LONG: Duration = Duration::from_secs(30);

fn keyring(at: usize, psk: u8) -> Keyring {
    let secret = |at: usize| [u8::try_from(at).unwrap() + 10; 32];
    let public = PublicKey::from(&StaticSecret::from(secret(1 - at))).to_bytes();
    let own = (IDS[at], &secret(at));
    Keyring::new(own, ("net", &[psk; 32]), [(IDS[1 - at], public)])
}

fn packet(number: u64, payload: u16) -> Vec<u8> {
    let header = Header {
        sequence: number,
        payload_len: payload,
        ..Header::default()
    };
    let mut bytes = header.encode().to_vec();
    bytes.resize(bytes.len() + usize::from(payload), 7);
    bytes
}

/// A listener of node 1's, and what it counts.
struct There {
    address: SocketAddr,
    counters: Arc<Counters>,
    proven: mpsc::Receiver<Proven>,
    _keyring: watch::Sender<Keyring>,
}

async fn there(kind: Kind, tls: Option<tokio_rustls::TlsAcceptor>) -> There {
    let local = "127.0.0.1:0".parse().unwrap();
    let listener = Listener::bind(local, kind, tls).await.unwrap();
    let (told, keys) = watch::channel(keyring(1, 3));
    let (sender, proven) = mpsc::channel(4);
    let counters = Arc::new(Counters::default());
    let address = listener.address().unwrap();
    let judge = Judge::new(keys, Arc::clone(&counters), sender);
    tokio::spawn(listener.run(judge));
    There {
        address,
        counters,
        proven,
        _keyring: told,
    }
}

fn target(kind: Kind, at: SocketAddr) -> Target {
    Target::parse(&format!("{}://localhost:{}", kind.name(), at.port())).unwrap()
}

/// One end: a socket in the worker's place, and the relay that runs beside it.
struct End {
    worker: UdpSocket,
    relay: SocketAddr,
    asks: mpsc::Sender<Ask>,
    leaves: mpsc::Receiver<()>,
    run: tokio::task::JoinHandle<Told>,
    counters: Arc<Counters>,
}

async fn end(wire: Wire, counters: Arc<Counters>) -> End {
    let worker = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let relay = Relay::bind(1, worker.local_addr().unwrap()).await.unwrap();
    let (asks, asked) = mpsc::channel(4);
    let (tell, leaves) = mpsc::channel(4);
    let address = relay.address();
    assert!(is_relays(address));
    let ours = Arc::clone(&counters);
    let run = tokio::spawn(relay.run(wire, ours, asked, (tell, || ())));
    End {
        worker,
        relay: address,
        asks,
        leaves,
        run,
        counters,
    }
}

impl End {
    async fn send(&self, bytes: &[u8]) {
        self.worker.send_to(bytes, self.relay).await.unwrap();
    }

    async fn next(&self) -> Vec<u8> {
        let mut buffer = vec![0; FRAME_BYTES_MAX];
        let received = timeout(LONG, self.worker.recv_from(&mut buffer)).await;
        let (bytes, from) = received.expect("a packet comes").unwrap();
        assert_eq!(from, self.relay);
        buffer.truncate(bytes);
        buffer
    }
}

async fn until(mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, waiting).await.unwrap();
}

/// Both ends of one connection.
async fn both(kind: Kind) -> [End; 2] {
    let folder = std::env::temp_dir().join(format!("virga-carrier-{}", std::process::id()));
    let tls = (kind == Kind::Wss).then(|| {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::create_dir_all(&folder).unwrap();
        let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
        let pem = |label: &str, der: &[u8]| {
            let text = tls::tests::base64(der);
            format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
        };
        std::fs::write(&cert, pem("CERTIFICATE", made.cert.der())).unwrap();
        std::fs::write(&key, pem("PRIVATE KEY", &made.signing_key.serialize_der())).unwrap();
        (cert, key)
    });
    let trust = match &tls {
        Some((cert, _)) => Trust::Pinned(cert.clone()),
        None => Trust::System,
    };
    let acceptor = tls.as_ref().map(|(c, k)| tls::acceptor(c, k).unwrap());
    let mut there = there(kind, acceptor).await;
    let target = target(kind, there.address);
    let here = keyring(0, 3);
    let wire = dial(&target, &trust, (&here, IDS[1])).await.unwrap();
    if tls.is_some() {
        // Nobody vouches for it; to whom that is all the same, it is.
        let unknown = dial(&target, &Trust::System, (&here, IDS[1])).await;
        assert!(unknown.is_err());
        let any = dial(&target, &Trust::Any, (&here, IDS[1])).await;
        assert!(any.is_ok(), "{any:?}");
        std::fs::remove_dir_all(&folder).unwrap();
    }
    let proven = there.proven.recv().await.unwrap();
    assert_eq!((proven.peer, proven.kind), (IDS[0], kind));
    let here = end(wire, Arc::default()).await;
    [here, end(proven.wire, there.counters).await]
}

#[tokio::test(flavor = "multi_thread")]
async fn packets_pass_unchanged_both_ways_and_the_end_is_agreed_on() {
    for kind in Kind::ALL {
        let [mut here, mut there] = both(kind).await;
        for n in 0..200 {
            let payload = [0, 1, 1_200, 65_443][usize::try_from(n % 4).unwrap()];
            let bytes = packet(n, payload);
            here.send(&bytes).await;
            assert!(there.next().await == bytes, "{kind:?}, {n} there");
            there.send(&bytes).await;
            assert!(here.next().await == bytes, "{kind:?}, {n} back");
        }
        // Strangers on this host are not heard, whose port or address is another.
        let port = here.worker.local_addr().unwrap().port();
        for address in [("127.0.0.1", 0), ("127.0.0.9", port)] {
            let stranger = UdpSocket::bind(address).await.unwrap();
            stranger.send_to(&packet(9, 9), here.relay).await.unwrap();
        }
        here.asks.send(Ask::Leave).await.unwrap();
        timeout(LONG, there.leaves.recv()).await.unwrap().unwrap();
        // Until the other end has gone, packets pass.
        there.send(&packet(7, 7)).await;
        assert_eq!(here.next().await, packet(7, 7));
        there.asks.send(Ask::Bye).await.unwrap();
        assert_eq!(timeout(LONG, here.run).await.unwrap().unwrap(), Told::Left);
        assert_eq!(timeout(LONG, there.run).await.unwrap().unwrap(), Told::Left);
        assert!(here.leaves.try_recv().is_err());
        assert_eq!((here.counters.sent(), here.counters.received()), (200, 201));
        assert_eq!(
            (there.counters.sent(), there.counters.received()),
            (201, 200)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_takes_nothing_fills_a_bounded_queue() {
    let mut there = there(Kind::Tcp, None).await;
    let target = target(Kind::Tcp, there.address);
    let here = keyring(0, 3);
    let wire = dial(&target, &Trust::System, (&here, IDS[1])).await;
    let here = end(wire.unwrap(), Arc::default()).await;
    // Nobody reads it, and it lives.
    let (_held, mut writer) = there.proven.recv().await.unwrap().wire.split();
    tokio::spawn(async move {
        while writer.put(Bytes::new()).await.is_ok() && writer.flush().await.is_ok() {
            sleep(Duration::from_secs(1)).await;
        }
    });
    let bytes = packet(1, 60_000);
    let full = async {
        while here.counters.dropped(Reason::Queue) == 0 {
            here.send(&bytes).await;
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, full).await.unwrap();
    assert!(!here.run.is_finished());
    here.run.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_prove_itself_gets_nothing_and_is_counted() {
    let mut there = there(Kind::Tcp, None).await;
    let address = there.address;
    let target = target(Kind::Tcp, address);
    let other_network = keyring(0, 4);
    let refused = dial(&target, &Trust::System, (&other_network, IDS[1])).await;
    assert!(matches!(refused, Err(DialError::Hello(_))), "{refused:?}");
    let other_node = Keyring::new(
        (NodeId(9), &[9; 32]),
        ("net", &[3; 32]),
        [(IDS[1], [1; 32])],
    );
    let refused = dial(&target, &Trust::System, (&other_node, IDS[1])).await;
    assert!(matches!(refused, Err(DialError::Refused)), "{refused:?}");
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 6], &[0, 0]] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        let mut answer = Vec::new();
        let closed = timeout(LONG, stream.read_to_end(&mut answer))
            .await
            .unwrap();
        assert!(closed.is_err() || answer.is_empty(), "nothing is said");
    }
    // The first hung up when it saw the proof.
    let counters = Arc::clone(&there.counters);
    until(|| counters.dropped(Reason::Stranger) == 1 && counters.dropped(Reason::Garbage) == 3)
        .await;
    // Those that never speak take all places, lose them to those that come after, and keep no neighbour out.
    let mut silent = Vec::new();
    while counters.dropped(Reason::Full) == 0 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let here = keyring(0, 3);
    assert!(dial(&target, &Trust::System, (&here, IDS[1])).await.is_ok());
    assert!(there.proven.recv().await.is_some());
    let all = silent.len() as u64;
    until(|| counters.dropped(Reason::Full) + counters.dropped(Reason::Slow) >= all).await;
    assert!(counters.dropped(Reason::Slow) > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_that_is_no_packet_ends_the_connection() {
    for frame in [&packet(1, 100)[..99], &[0xab; 200], b"x"] {
        let [here, there] = both(Kind::Tcp).await;
        // The worker's own packets are passed on as they are.
        here.send(frame).await;
        let told = timeout(LONG, there.run).await.unwrap().unwrap();
        assert!(matches!(told, Told::Lost(Reason::Malformed, _)), "{told:?}");
        let told = timeout(LONG, here.run).await.unwrap().unwrap();
        assert!(matches!(told, Told::Lost(Reason::Broken, _)), "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_left_once() {
    let [here, mut there] = both(Kind::Tcp).await;
    for _ in 0..2 {
        here.asks.send(Ask::Leave).await.unwrap();
    }
    let told = timeout(LONG, there.run).await.unwrap().unwrap();
    assert!(matches!(told, Told::Lost(Reason::Malformed, _)), "{told:?}");
    assert!(there.leaves.recv().await.is_some());
    assert!(there.leaves.recv().await.is_none(), "told once");
}

#[test]
fn a_rate_is_kept_second_by_second() {
    let now = Instant::now();
    let mut rate = Rate::new(now);
    for _ in 0..FRAMES_PER_SECOND {
        assert!(rate.takes(now));
    }
    assert!(!rate.takes(now + Duration::from_millis(999)));
    assert!(rate.takes(now + Duration::from_secs(1)));
}
