//! Publishes lines on a channel, at the pace of its subscribers:
//! `cargo run --example publish -- /run/virga/edge-a.sock metrics/edge-a "load 0.42" "load 0.40"`

use std::{error::Error, path::Path, time::Duration};
use virga::mesh::Mesh;

/// How long a subscriber is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Publishes `events`, and returns how many reached somebody.
pub(crate) async fn publish(
    socket: &Path,
    channel: &str,
    events: &[String],
) -> Result<u64, Box<dyn Error>> {
    let mesh = Mesh::open(socket).await?;
    // What is published while nobody has subscribed reaches nobody.
    tokio::time::timeout(PATIENCE, mesh.wait_for_subscribers(channel, 1)).await??;
    // It keeps its connection. Each `publish` waits while subscribers are behind; `try_publish` would
    // give the event back instead.
    let publisher = mesh.publisher(channel).await?;
    for event in events {
        publisher.publish(event.as_bytes()).await?;
    }
    let published = publisher.finish().await?;
    Ok(published.published - published.unheard)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(socket), Some(channel)) = (arguments.next(), arguments.next()) else {
        return Err("usage: publish SOCKET CHANNEL EVENT...".into());
    };
    let events: Vec<String> = arguments.collect();
    let heard = publish(socket.as_ref(), &channel, &events).await?;
    println!("{heard} of {} events reached a subscriber", events.len());
    Ok(())
}
