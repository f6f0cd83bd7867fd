//! Prints what is published at or below a prefix; a subscription is a `Stream`:
//! `cargo run --example subscribe -- /run/virga/edge-b.sock metrics 10`

use futures_util::{StreamExt as _, TryStreamExt as _};
use std::{error::Error, path::Path};
use virga::mesh::{Delivery, Mesh};

/// The next `count` events of channels at or below `prefix`.
pub(crate) async fn subscribe(
    socket: &Path,
    prefix: &str,
    count: usize,
) -> Result<Vec<Delivery>, Box<dyn Error>> {
    let mesh = Mesh::open(socket).await?;
    let events = mesh.subscribe_prefix(prefix).await?;
    // Dropped with the stream, the subscription ends. An error is its last item.
    let events = events.inspect_ok(|event| {
        println!(
            "{} {}: {} bytes",
            event.channel,
            event.sequence,
            event.payload.len()
        );
    });
    Ok(events.take(count).try_collect().await?)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(socket), Some(prefix)) = (arguments.next(), arguments.next()) else {
        return Err("usage: subscribe SOCKET PREFIX [COUNT]".into());
    };
    let count = arguments
        .next()
        .map_or(Ok(usize::MAX), |text| text.parse())?;
    subscribe(socket.as_ref(), &prefix, count).await?;
    Ok(())
}
