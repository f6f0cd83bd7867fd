//! NATS: two clients and a server, over TLS. Core NATS: what a slow subscriber misses is lost, so `reliable` is not
//! what it is elsewhere.
//!
//! The client batches what is published by itself (docs.nats.io, "Caches, Flush and Ping": publish without a flush a
//! message); a round trip flushes. A server cuts a subscriber off that does not keep up (docs.nats.io, "Slow
//! Consumers", which has publishers be paced): a publisher that never waits would measure that. So the receiver says
//! each [`SAID_EVERY`] messages that it has them, and the sender has at most [`WINDOW`] under way.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_nats::{Client, ConnectOptions};
use bytes::Bytes;
use futures_util::StreamExt as _;

use crate::end::{Args, Problem, Role, Tally, Workload, ready_with};

const FORTH: &str = "bench.forth";
const BACK: &str = "bench.back";
/// Messages between two looks at whether others want to run, and at what the receiver has.
const YIELD_AFTER: usize = 256;
/// Messages after which the receiver says so.
const SAID_EVERY: usize = 1_024;
/// Messages under way at most.
const WINDOW: usize = 16_384;
/// How long a sender with a full window waits: it then takes what is under way for lost.
const PATIENCE: Duration = Duration::from_millis(200);

async fn connect(args: &Args) -> Result<Client, Problem> {
    Ok(ConnectOptions::new()
        .add_root_certificates(args.folder.join("cert.pem"))
        .require_tls(true)
        .subscription_capacity(1 << 18)
        .client_capacity(1 << 14)
        .connect(format!("tls://localhost:{}", args.next.port()))
        .await?)
}

pub(crate) async fn run(args: &Args, tally: Arc<Tally>) -> Result<(), Problem> {
    let client = connect(args).await?;
    let event_bytes = args.workload.event_bytes();
    match args.role {
        Role::Receive | Role::Relay => {
            let mut messages = client.subscribe(FORTH).await?;
            client.flush().await?;
            ready_with("", &tally);
            let mut taken = 0_usize;
            while let Some(message) = messages.next().await {
                let bytes = message.payload.len();
                tally.take((bytes / event_bytes) as u64, bytes);
                taken += 1;
                if args.workload == Workload::RoundTrip {
                    client.publish(BACK, message.payload).await?;
                    client.flush().await?;
                } else if taken.is_multiple_of(SAID_EVERY) {
                    client.publish(BACK, Bytes::new()).await?;
                }
            }
            Err("the server has closed the connection".into())
        }
        Role::Send => send(args.workload, &client, &tally).await,
    }
}

async fn send(workload: Workload, client: &Client, tally: &Arc<Tally>) -> Result<(), Problem> {
    let events = workload.events();
    let payload = Bytes::from(vec![0x5a; workload.message_bytes()]);
    let mut answers = client.subscribe(BACK).await?;
    client.flush().await?;
    if workload == Workload::RoundTrip {
        ready_with("", tally);
        loop {
            let asked = Instant::now();
            client.publish(FORTH, payload.clone()).await?;
            client.flush().await?;
            tally.send(1);
            let answer = answers.next();
            if tokio::time::timeout(PATIENCE, answer).await.is_ok() {
                tally.round_trip(asked);
            }
        }
    }
    ready_with("", tally);
    let mut under_way = 0_usize;
    loop {
        for _ in 0..YIELD_AFTER {
            client.publish(FORTH, payload.clone()).await?;
            tally.send(events as u64);
        }
        under_way += YIELD_AFTER;
        tokio::task::yield_now().await;
        while under_way > WINDOW {
            match tokio::time::timeout(PATIENCE, answers.next()).await {
                Ok(Some(_)) => under_way -= SAID_EVERY,
                Ok(None) => return Err("the server has closed the connection".into()),
                Err(_) => under_way = 0,
            }
        }
    }
}
