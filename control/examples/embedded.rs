//! A node in this process, without a daemon: publishes events, and ends once their subscribers have them:
//! `cargo run --example embedded -- /etc/virga/node.toml metrics/edge-a "load 0.42"`

use std::{error::Error, time::Duration};
use virga::{config::Config, mesh::Mesh};

/// How long a subscriber is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the node that `config` describes, publishes `events` on it, and stops it.
pub(crate) async fn publish_alone(
    config: Config,
    channel: &str,
    events: &[String],
) -> Result<(), Box<dyn Error>> {
    let mesh = Mesh::start(config).await?;
    tokio::time::timeout(PATIENCE, mesh.wait_for_subscribers(channel, 1)).await??;
    mesh.publish_batch(channel, events).await?;
    // A node that is only dropped ends too, with nobody to wait for it.
    mesh.stop().await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(file), Some(channel)) = (arguments.next(), arguments.next()) else {
        return Err("usage: embedded CONFIG-FILE CHANNEL EVENT...".into());
    };
    let config = Config::load(file.as_ref())?;
    let events: Vec<String> = arguments.collect();
    publish_alone(config, &channel, &events).await
}
