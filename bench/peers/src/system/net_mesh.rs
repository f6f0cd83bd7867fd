//! net-mesh: streams between two `MeshNode`s, directly or by a relay; events are counted by the sink that it calls for
//! each, on its own receive path.
//!
//! Settings by its documents (docs/TRANSPORT.md, `MeshNodeConfig`): one shard for one core, the larger socket buffers, datagrams taken
//! in batches but for round trips, no credit for what may be lost and much of it for what may not, the rest as it ships.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use net::adapter::net::{
    EntityKeypair, MeshNode, MeshNodeConfig, PeerAddr, Reliability, SocketBufferConfig,
    StreamConfig, StreamError,
};

use net::event::{Batch, InternalEvent, batch_process_nonce};

use crate::end::{Args, BATCH, Problem, Role, Tally, Workload, ready_with, rest};

const PSK: [u8; 32] = [9; 32];
const FORTH: u16 = 0x11;
const BACK: u64 = 0x22;

/// Credit of a reliable stream: with its default of 64 KiB it waits for credit more than it sends.
const WINDOW_BYTES: u32 = 4 << 20;
/// No credit at all, for what may be lost (docs/TRANSPORT.md, "Back-pressure").
const UNBOUNDED: u32 = 0;

fn keypair(role: Role) -> EntityKeypair {
    EntityKeypair::from_bytes(match role {
        Role::Send => [1; 32],
        Role::Receive => [2; 32],
        Role::Relay => [3; 32],
    })
}

async fn node(args: &Args) -> Result<Arc<MeshNode>, Problem> {
    // Batches of datagrams cost a round trip a hop between threads.
    let is_throughput = args.workload != Workload::RoundTrip;
    let mut config = MeshNodeConfig::new(args.listen, PSK)
        .with_num_shards(1)
        .with_batched_ingress(is_throughput);
    config.socket_buffers = SocketBufferConfig::default();
    Ok(Arc::new(MeshNode::new(keypair(args.role), config).await?))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The public key that another end printed.
fn key(words: Option<&String>) -> Result<[u8; 32], Problem> {
    let text = words.ok_or("another end's key is missing")?;
    let byte = |at: usize| {
        let digits = text.get(2 * at..2 * at + 2).ok_or("a key of 64 digits")?;
        u8::from_str_radix(digits, 16).map_err(|_| "a key in hexadecimal")
    };
    let mut key = [0; 32];
    for (at, place) in key.iter_mut().enumerate() {
        *place = byte(at)?;
    }
    Ok(key)
}

pub(crate) async fn run(args: &Args, tally: Arc<Tally>) -> Result<(), Problem> {
    let node = node(args).await?;
    let sender = keypair(Role::Send).node_id();
    match args.role {
        Role::Receive => {
            serve(args, &node, &tally)?;
            ready_with(&hex(node.public_key()), &tally);
            if args.far.is_none() {
                node.accept(sender).await?;
            } else {
                node.accept(keypair(Role::Relay).node_id()).await?;
            }
            node.start();
            rest().await
        }
        Role::Relay => {
            let receiver = keypair(Role::Receive).node_id();
            let far = args.far.ok_or("the relay wants two ends")?;
            node.connect(far, &key(args.said.first())?, receiver)
                .await?;
            ready_with(&hex(node.public_key()), &tally);
            node.accept(sender).await?;
            node.start();
            node.router().add_route(receiver, PeerAddr::Udp(far));
            rest().await
        }
        Role::Send => {
            let receiver = keypair(Role::Receive).node_id();
            let of_receiver = key(args.said.first())?;
            if args.far.is_some() {
                let relay = keypair(Role::Relay).node_id();
                node.connect(args.next, &key(args.said.get(1))?, relay)
                    .await?;
                node.start();
                node.connect_via(args.next, &of_receiver, receiver).await?;
            } else {
                node.connect(args.next, &of_receiver, receiver).await?;
                node.start();
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
            if args.far.is_some() {
                return send_routed(args.workload, &node, receiver, &tally).await;
            }
            send(args.workload, &node, receiver, &tally).await
        }
    }
}

fn serve(args: &Args, node: &Arc<MeshNode>, tally: &Arc<Tally>) -> Result<(), Problem> {
    let counted = Arc::clone(tally);
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
    let is_asked = args.workload == Workload::RoundTrip;
    node.register_stream_inbound(
        FORTH.into(),
        Arc::new(move |event| {
            counted.take(1, event.payload.len());
            if is_asked {
                // The answering task lives as long as the process.
                let _told = tell.send(event.payload);
            }
        }),
    )
    .ok_or("the stream has a sink already")?;
    let (node, peer) = (Arc::clone(node), keypair(Role::Send).node_id());
    tokio::spawn(async move {
        let mut stream = None;
        while let Some(event) = told.recv().await {
            if stream.is_none() {
                stream = node.open_stream(peer, BACK, StreamConfig::default()).ok();
            }
            if let Some(stream) = &stream {
                // What is refused is asked anew.
                let _sent = node.send_on_stream(stream, &[event]).await;
            }
        }
    });
    Ok(())
}

/// Single events by way of the relay: what is not addressed to the other end of a link is routed.
async fn send_routed(
    workload: Workload,
    node: &MeshNode,
    receiver: u64,
    tally: &Arc<Tally>,
) -> Result<(), Problem> {
    let event = Bytes::from(vec![0x5a; workload.event_bytes()]);
    let batch = Batch {
        shard_id: FORTH,
        events: vec![InternalEvent::new(event, 0, FORTH)],
        sequence_start: 0,
        process_nonce: batch_process_nonce(),
    };
    ready_with("", tally);
    loop {
        node.send_routed(receiver, &batch).await?;
        tally.send(1);
        tokio::task::yield_now().await;
    }
}

async fn send(
    workload: Workload,
    node: &Arc<MeshNode>,
    receiver: u64,
    tally: &Arc<Tally>,
) -> Result<(), Problem> {
    let (reliability, window_bytes) = match workload {
        Workload::Reliable => (Reliability::Reliable, WINDOW_BYTES),
        _ => (Reliability::FireAndForget, UNBOUNDED),
    };
    let config = StreamConfig {
        reliability,
        window_bytes,
        ..StreamConfig::default()
    };
    let stream = node.open_stream(receiver, FORTH.into(), config)?;
    let event = Bytes::from(vec![0x5a; workload.event_bytes()]);
    if workload == Workload::RoundTrip {
        let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
        node.register_stream_inbound(
            BACK,
            Arc::new(move |_| {
                let _told = tell.send(());
            }),
        )
        .ok_or("the stream has a sink already")?;
        ready_with("", tally);
        loop {
            let asked = Instant::now();
            node.send_on_stream(&stream, std::slice::from_ref(&event))
                .await?;
            tally.send(1);
            if tokio::time::timeout(Duration::from_millis(200), told.recv())
                .await
                .is_ok()
            {
                tally.round_trip(asked);
            }
        }
    }
    let events = match workload {
        Workload::Single => vec![event],
        _ => vec![event; BATCH],
    };
    ready_with("", tally);
    loop {
        match node.send_on_stream(&stream, &events).await {
            Ok(()) => tally.send(events.len() as u64),
            // Credit comes with the receive loop's next turn; its own back-off of 5 ms and more is slower.
            Err(StreamError::Backpressure) => {}
            Err(error) => return Err(error.into()),
        }
        tokio::task::yield_now().await;
    }
}
