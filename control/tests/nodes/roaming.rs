//! A node whose outer address changes while it sends.

use super::{
    numbered, payloads,
    stage::{Channel, RELIABLE, Stage, eventually, in_time},
};
use std::net::SocketAddr;
use tokio::{net::UdpSocket, sync::mpsc};

/// From a to its neighbour, reliable.
const MOVING: Channel = Channel {
    name: "test/moving",
    subscribe: &["router"],
    ..RELIABLE
};

/// Translates addresses between `inside`, which sends to `front`, and `outside`, which sees what `back`
/// sends; another `back` takes its place at any time.
async fn translate(
    front: UdpSocket,
    inside: SocketAddr,
    outside: SocketAddr,
    mut backs: mpsc::Receiver<UdpSocket>,
) {
    let (mut out, mut home) = (vec![0; 65_536], vec![0; 65_536]);
    let Some(mut back) = backs.recv().await else {
        return;
    };
    loop {
        tokio::select! {
            Ok((bytes, _)) = front.recv_from(&mut out) => {
                // What does not fit is lost, as anywhere.
                let _lost = back.send_to(&out[..bytes], outside).await;
            }
            Ok((bytes, _)) = back.recv_from(&mut home) => {
                let _lost = front.send_to(&home[..bytes], inside).await;
            }
            Some(next) = backs.recv() => back = next,
            else => return,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_moves_in_the_middle_of_a_stream_loses_nothing() {
    let mut stage = Stage::new(&[MOVING]);
    let front = UdpSocket::bind("127.0.0.2:0").await.unwrap();
    let before = UdpSocket::bind("127.0.0.8:0").await.unwrap();
    let after = UdpSocket::bind("127.0.0.9:0").await.unwrap();
    let (there, elsewhere) = (before.local_addr().unwrap(), after.local_addr().unwrap());
    let (a, router) = (stage.node("a").listen, stage.node("router").listen);
    let told = front.local_addr().unwrap().to_string();
    stage.edit(
        "a",
        &format!("address = \"{router}\""),
        &format!("address = \"{told}\""),
    );
    stage.edit(
        "router",
        &format!("address = \"{a}\""),
        &format!("address = \"{there}\""),
    );
    let (backs, places) = mpsc::channel(1);
    backs.send(before).await.unwrap();
    let translator = tokio::spawn(translate(front, a, router, places));
    stage.start("router").await;
    stage.start("a").await;
    let mut events = stage
        .mesh("router")
        .await
        .subscribe(MOVING.name)
        .await
        .unwrap();
    stage.subscribers(MOVING.name, 1).await;

    let sent = numbered(20_000);
    let publisher = stage.publisher(MOVING.name).await;
    let reader = tokio::spawn(async move { (payloads(&mut events, 20_000).await, events) });
    let (first, second) = sent.split_at(10_000);
    for event in first {
        publisher.publish(event).await.unwrap();
    }
    backs.send(after).await.unwrap();
    for event in second {
        publisher.publish(event).await.unwrap();
    }
    let published = in_time("publishing", publisher.finish()).await.unwrap();
    assert_eq!((published.published, published.refused), (20_000, 0));
    let (arrived, _events) = reader.await.unwrap();
    assert!(arrived == sent, "out of order");

    // One session, at the new place; and the tables follow.
    let status = eventually("the move is known", async || {
        let status = stage.status("router").await;
        let link = status
            .forwarding
            .links
            .iter()
            .find(|link| link.peer == "a")?;
        (link.address == elsewhere.to_string()).then_some(status)
    })
    .await;
    let sessions: Vec<_> = status.sessions.iter().filter(|s| s.name == "a").collect();
    assert_eq!(sessions.len(), 1);
    assert_eq!(
        sessions[0].path.address.as_deref(),
        Some(elsewhere.to_string().as_str())
    );
    assert!(sessions[0].age_s < 120 && sessions[0].state == "established");
    translator.abort();
}
