//! zenoh: publishers and subscribers between two peers over one TLS link (its datagram links are not encrypted, or not
//! batched).
//!
//! Settings are those of zenoh's own `z_pub_thr`, `z_sub_thr`, `z_ping` and `z_pong` (examples of its repository): no
//! scouting, congestion control `Block`; `express` (no batching) and its low-latency transport (DEFAULT_CONFIG.json5)
//! for round trips only.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use zenoh::{
    Config, Session, Wait as _,
    bytes::ZBytes,
    qos::{CongestionControl, Priority},
};

use crate::end::{Args, Problem, Role, Tally, Workload, ready_with, rest};

const FORTH: &str = "bench/forth";
const BACK: &str = "bench/back";

fn config(args: &Args) -> Result<Config, Problem> {
    let path = |name: &str| args.folder.join(name).display().to_string();
    let mut config = Config::default();
    let mut set = |key: &str, value: serde_json::Value| {
        config
            .insert_json5(key, &value.to_string())
            .map_err(|error| -> Problem { format!("{key}: {error}").into() })
    };
    set("mode", "peer".into())?;
    set("scouting/multicast/enabled", false.into())?;
    set("scouting/gossip/enabled", false.into())?;
    let port = |address: std::net::SocketAddr| format!("tls/localhost:{}", address.port());
    if args.role == Role::Receive {
        set("listen/endpoints", vec![port(args.listen)].into())?;
        set(
            "transport/link/tls/listen_certificate",
            path("cert.pem").into(),
        )?;
        set(
            "transport/link/tls/listen_private_key",
            path("key.pem").into(),
        )?;
    } else {
        set("listen/endpoints", serde_json::Value::Array(Vec::new()))?;
        set("connect/endpoints", vec![port(args.next)].into())?;
    }
    if args.workload == Workload::RoundTrip {
        set("transport/unicast/qos/enabled", false.into())?;
        set("transport/unicast/lowlatency", true.into())?;
    }
    set(
        "transport/link/tls/root_ca_certificate",
        path("cert.pem").into(),
    )?;
    Ok(config)
}

pub(crate) async fn run(args: &Args, tally: Arc<Tally>) -> Result<(), Problem> {
    let session = zenoh::open(config(args)?).await?;
    match args.role {
        Role::Receive | Role::Relay => receive(args.workload, &session, tally).await,
        Role::Send => {
            // Declarations travel after the session has been opened.
            tokio::time::sleep(Duration::from_millis(500)).await;
            send(args.workload, session, tally).await
        }
    }
}

async fn receive(workload: Workload, session: &Session, tally: Arc<Tally>) -> Result<(), Problem> {
    let event_bytes = workload.event_bytes();
    let back = session
        .declare_publisher(BACK)
        .congestion_control(CongestionControl::Block)
        .express(true)
        .await?;
    let counted = Arc::clone(&tally);
    let subscriber = session
        .declare_subscriber(FORTH)
        .callback(move |sample| {
            let bytes = sample.payload().len();
            counted.take((bytes / event_bytes) as u64, bytes);
            if workload == Workload::RoundTrip {
                // Where the link is down there is no answer.
                let _sent = back.put(sample.payload().clone()).wait();
            }
        })
        .await?;
    ready_with("", &tally);
    rest().await?;
    drop(subscriber);
    Ok(())
}

async fn send(workload: Workload, session: Session, tally: Arc<Tally>) -> Result<(), Problem> {
    let events = workload.events() as u64;
    let payload: ZBytes = vec![0x5a; workload.message_bytes()].into();
    let publisher = session
        .declare_publisher(FORTH)
        .congestion_control(CongestionControl::Block)
        .priority(Priority::DEFAULT)
        .express(workload == Workload::RoundTrip)
        .await?;
    ready_with("", &tally);
    if workload == Workload::RoundTrip {
        let (tell, told) = std::sync::mpsc::channel();
        let _subscriber = session
            .declare_subscriber(BACK)
            .callback(move |_| {
                let _told = tell.send(());
            })
            .await?;
        tokio::time::sleep(Duration::from_millis(300)).await;
        return tokio::task::spawn_blocking(move || -> Result<(), Problem> {
            loop {
                let asked = Instant::now();
                publisher.put(payload.clone()).wait()?;
                tally.send(1);
                if told.recv_timeout(Duration::from_millis(200)).is_ok() {
                    tally.round_trip(asked);
                }
            }
        })
        .await?;
    }
    tokio::task::spawn_blocking(move || -> Result<(), Problem> {
        loop {
            publisher.put(payload.clone()).wait()?;
            tally.send(events);
        }
    })
    .await?
}
