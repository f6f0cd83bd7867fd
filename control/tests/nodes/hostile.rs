//! What a stranger on the wire can try on real daemons: another network, captured traffic sent again, a
//! flood of handshakes.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use virga::api::status::Status;
use virga_ebpf::{
    hash,
    header::{Flags, Header, PRIORITY_CONTROL},
    limits::HEADER_BYTES,
};

use crate::{
    payloads,
    stage::{Channel, RELIABLE, Stage, eventually, in_time},
};

/// How long a tap waits for a datagram before it looks whether it is still wanted.
const LOOK_UP: Duration = Duration::from_millis(20);
/// Sessions that were begun from both ends have replaced each other after this long.
const SETTLED: Duration = Duration::from_millis(500);

/// Sits between the router and an end node, passes on what the router sends, and keeps a copy.
struct Tap {
    captured: Arc<Mutex<Vec<Vec<u8>>>>,
    target: SocketAddr,
    is_done: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Tap {
    /// Puts itself into the router's file in place of the node. The router is not running yet.
    fn before(stage: &Stage, node: &str) -> Self {
        let target = stage.node(node).listen;
        let router = stage.node("router").listen;
        let incoming = UdpSocket::bind((target.ip(), 0)).unwrap();
        incoming.set_read_timeout(Some(LOOK_UP)).unwrap();
        let outgoing = UdpSocket::bind((router.ip(), 0)).unwrap();
        let here = incoming.local_addr().unwrap();
        stage.edit("router", &target.to_string(), &here.to_string());
        let (captured, is_done) = (Arc::<Mutex<Vec<Vec<u8>>>>::default(), Arc::default());
        let (kept, is_over): (_, Arc<AtomicBool>) = (Arc::clone(&captured), Arc::clone(&is_done));
        let thread = thread::spawn(move || {
            let mut buffer = vec![0; 65_536];
            while !is_over.load(Ordering::Relaxed) {
                // Nothing came: look up.
                let Ok(bytes) = incoming.recv(&mut buffer) else {
                    continue;
                };
                kept.lock().unwrap().push(buffer[..bytes].to_vec());
                outgoing.send_to(&buffer[..bytes], target).unwrap();
            }
        });
        Self {
            captured,
            target,
            is_done,
            thread: Some(thread),
        }
    }

    fn captured(&self) -> Vec<Vec<u8>> {
        self.captured.lock().unwrap().clone()
    }

    /// Sends datagrams to the node again, from an address of a stranger.
    fn replay(&self, datagrams: &[Vec<u8>]) {
        let socket = UdpSocket::bind("127.0.0.9:0").unwrap();
        for datagram in datagrams {
            socket.send_to(datagram, self.target).unwrap();
            // No faster than a busy node reads: each shall be judged.
            thread::sleep(Duration::from_micros(200));
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.is_done.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(thread::JoinHandle::join);
        assert!(thread::panicking() || matches!(ended, Some(Ok(()))));
    }
}

/// Events that fill a packet each.
fn large(count: u16) -> Vec<Vec<u8>> {
    (0..count).map(|n| n.to_be_bytes().repeat(500)).collect()
}

fn is_handshake(datagram: &[u8]) -> bool {
    let header = datagram.first_chunk::<HEADER_BYTES>().map(Header::decode);
    header.is_some_and(|header| header.is_handshake())
}

/// Packets that a node's sessions and handshakes refused.
fn refused(status: &Status) -> u64 {
    status.transport.drops.values().sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_network_gets_no_session_and_is_counted() {
    let mut stage = Stage::new(&[RELIABLE]);
    // The same keys: the name alone is another.
    stage.edit("b", "network = \"test\"", "network = \"other\"");
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    let b = stage.mesh("b").await;
    let _events = b.subscribe(RELIABLE.name).await.unwrap();
    eventually("a refuses b's handshake", async || {
        let status = stage.status("a").await;
        (status.transport.drops["handshake_noise"] > 0).then_some(())
    })
    .await;
    for name in ["a", "b"] {
        let status = stage.status(name).await;
        let mut others = status.sessions.iter().filter(|s| s.name != "router");
        assert!(others.all(|s| s.state != "established"));
    }
    let status = stage.status("b").await;
    assert_eq!(status.subscriptions[0].state, "connecting");
}

/// Neighbours have a session only where their programs need one.
pub(crate) fn without_tags(stage: &mut Stage) {
    for name in ["a", "router", "b"] {
        stage.edit(
            name,
            "[forwarding]",
            "[forwarding]\nlink_tags = \"off\"\nkeepalive_ms = 0",
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn captured_traffic_sent_again_delivers_nothing_and_displaces_no_session() {
    let mut stage = Stage::new(&[RELIABLE]);
    // What is sent again shall come as far as the sessions.
    without_tags(&mut stage);
    let taps = ["a", "b"].map(|name| Tap::before(&stage, name));
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    let subscribed = async |stage: &Stage| {
        let mesh = stage.mesh("b").await;
        let events = mesh.subscribe(RELIABLE.name).await.unwrap();
        stage.subscribers(RELIABLE.name, 1).await;
        events
    };
    let established = async |stage: &Stage| {
        let counted = async |name| stage.status(name).await.transport.sessions_established;
        (counted("a").await, counted("b").await)
    };
    let publish = async |stage: &Stage, events: &[Vec<u8>]| {
        let a = stage.mesh("a").await;
        let published = a.publish_batch(RELIABLE.name, events);
        in_time("publishing", published).await.unwrap();
    };
    let mut events = subscribed(&stage).await;
    publish(&stage, &large(200)).await;
    assert!(payloads(&mut events, 200).await == large(200));
    let captured = taps.each_ref().map(Tap::captured);
    for datagrams in &captured {
        assert!(datagrams.iter().any(|d| is_handshake(d)));
        assert!(datagrams.iter().any(|d| !is_handshake(d)));
    }

    // Into the sessions that it comes from: each datagram is refused, and they go on.
    let before = established(&stage).await;
    for (name, (tap, datagrams)) in ["a", "b"].iter().zip(taps.iter().zip(&captured)) {
        let so_far = refused(&stage.status(name).await);
        tap.replay(datagrams);
        let sent = datagrams.len() as u64;
        eventually("every one is counted", async || {
            let status = stage.status(name).await;
            (refused(&status) >= so_far + sent).then_some(())
        })
        .await;
    }
    let drops = stage.status("b").await.transport.drops;
    // How many packets carry so much, the path's size and the batches decide.
    let data = captured[1].iter().filter(|d| !is_handshake(d)).count() as u64;
    // Those from before ML-KEM was mixed in are of an epoch that is no more.
    let old = drops["replayed"] + drops["key_phase"];
    assert!(data > 20 && old >= data, "{data}, {drops:?}");
    publish(&stage, &[b"once".to_vec()]).await;
    assert_eq!(payloads(&mut events, 1).await, [&b"once"[..]]);
    assert_eq!(established(&stage).await, before);

    // Into the next run of b, which has forgotten every session and every handshake.
    drop(events);
    stage.kill("b");
    stage.start("b").await;
    let mut events = subscribed(&stage).await;
    // Both may have begun one, of which one stays. Until then a counts the subscriber of the last run.
    let known = before;
    let before = eventually("a session with the new run, and no other", async || {
        let now = established(&stage).await;
        tokio::time::sleep(SETTLED).await;
        let is_new = now.0 > known.0 && now.1 > 0;
        (is_new && established(&stage).await == now).then_some(now)
    })
    .await;
    stage.subscribers(RELIABLE.name, 1).await;
    for (tap, datagrams) in taps.iter().zip(&captured) {
        tap.replay(datagrams);
    }
    publish(&stage, &[b"again".to_vec()]).await;
    assert_eq!(payloads(&mut events, 1).await, [&b"again"[..]]);
    let status = stage.status("b").await;
    assert_eq!(
        (established(&stage).await, status.channels[0].delivered),
        (before, 1)
    );
}

/// Makes initiations as a member could: the tag is right, so each costs the node a Diffie-Hellman step, and
/// what they hold is noise. Their layout is that of `dataplane/transport/src/handshake.rs`.
struct Forger {
    header: Header,
    sender: u64,
    tag_key: [u8; 32],
}

impl Forger {
    fn new(stage: &Stage, from: &str, to: &str) -> Self {
        let (sender, receiver) = (stage.node(from), stage.node(to));
        let parts: [&[u8]; 2] = [b"virga handshake tag v1", &receiver.id.0.to_be_bytes()];
        Self {
            header: Header {
                flags: Flags::HANDSHAKE,
                priority: PRIORITY_CONTROL,
                destination: receiver.id,
                origin_hash: sender.origin,
                payload_len: 20 + 8 + 49 + 16 + 16,
                ..Header::default()
            },
            sender: sender.id.0,
            tag_key: hash::keyed(stage.psk.expose(), &parts),
        }
    }

    fn initiation(&self, number: u64) -> Vec<u8> {
        let mut body = vec![1, 1, 0, 0];
        body.extend(self.sender.to_be_bytes());
        body.extend((number + 1).to_be_bytes());
        let made = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        body.extend(u64::try_from(made.as_nanos()).unwrap().to_be_bytes());
        for part in 0..2_u8 {
            body.extend(hash::keyed(b"noise", &[&[part], &number.to_be_bytes()]));
        }
        body.truncate(20 + 8 + 49);
        // No cookie.
        body.extend([0; 16]);
        let header = self.header.encode();
        let signed = Header::associated_data(&header);
        let tag = hash::keyed(&self.tag_key, &[&signed, &body]);
        [&header[..], &body, &tag[..16]].concat()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_a_flood_of_handshakes_sessions_flow_and_another_member_still_joins() {
    let joining = Channel {
        name: "test/joining",
        subscribe: &["router"],
        ..RELIABLE
    };
    let mut stage = Stage::new(&[RELIABLE, joining.clone()]);
    without_tags(&mut stage);
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
    let b = stage.mesh("b").await;
    let mut events = b.subscribe(RELIABLE.name).await.unwrap();
    stage.subscribers(RELIABLE.name, 1).await;
    let before = stage.status("a").await;

    let forger = Forger::new(&stage, "b", "a");
    let target = stage.node("a").listen;
    let is_done = Arc::new(AtomicBool::new(false));
    let is_over = Arc::clone(&is_done);
    let flood = thread::spawn(move || {
        let socket = UdpSocket::bind("127.0.0.9:0").unwrap();
        let mut sent = 0;
        while !is_over.load(Ordering::Relaxed) {
            for _ in 0..20 {
                sent += 1;
                // A full socket is what a flood is about.
                let _full = socket.send_to(&forger.initiation(sent), target);
            }
            thread::sleep(Duration::from_millis(2));
        }
        sent
    });
    eventually("cookies are asked for", async || {
        let status = stage.status("a").await;
        (status.transport.cookies_sent > 100).then_some(())
    })
    .await;

    let router = stage.mesh("router").await;
    let mut joined = router.subscribe(joining.name).await.unwrap();
    stage.subscribers(joining.name, 1).await;
    let a = stage.mesh("a").await;
    for channel in [RELIABLE.name, joining.name] {
        let sent = large(500);
        let published = a.publish_batch(channel, &sent);
        in_time("publishing", published).await.unwrap();
        let events = if channel == RELIABLE.name {
            &mut events
        } else {
            &mut joined
        };
        assert!(payloads(events, 500).await == sent, "{channel}");
    }
    is_done.store(true, Ordering::Relaxed);
    let sent = flood.join().unwrap();

    let (was, now) = (before.transport, stage.status("a").await.transport);
    println!("{sent} forged initiations; {now:?}");
    assert_eq!(now.sessions_established, was.sessions_established + 1);
    for reason in ["handshake_noise", "handshake_cookie", "handshake_rate"] {
        assert!(now.drops[reason] > was.drops[reason], "{reason}: {now:?}");
    }
}
