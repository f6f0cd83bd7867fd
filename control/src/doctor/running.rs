//! The node of a configuration while it runs: whether it answers, and whether it keeps up.

use super::{Check, Verdict};
use crate::{
    api::status::Status,
    config::Config,
    mesh::{Mesh, MeshError},
};
use std::{path::Path, time::Duration};

/// A node that is neither stopped nor stuck has answered by then.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a running node shows; nothing where none runs, or this process may not ask it.
pub(super) fn examine(config: &Config) -> Vec<Check> {
    let socket = &config.node.socket;
    match ask(socket) {
        None => vec![Check::new(
            "node",
            Verdict::Fail,
            format!(
                "it has not answered for {} s: it is stopped or stuck, and packets for it are lost once its sockets are full",
                PATIENCE.as_secs()
            ),
            "see its log; continue it (kill -CONT) or restart it",
        )],
        Some(Ok(status)) => vec![Check::ok("node", "it runs and answers"), keeps_up(&status)],
        Some(Err(_)) => Vec::new(),
    }
}

/// What it answers; none where it takes too long.
fn ask(socket: &Path) -> Option<Result<Status, MeshError>> {
    let unreachable = |source| MeshError::Unreachable {
        path: socket.into(),
        source,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return Some(Err(unreachable(error))),
    };
    let status = async { Mesh::open(socket).await?.status().await };
    let in_time = async { tokio::time::timeout(PATIENCE, status).await };
    runtime.block_on(in_time).ok()
}

/// Whether its workers read in time what arrived for them.
fn keeps_up(status: &Status) -> Check {
    let lost = status.lost();
    let unread = ["socket_lost", "xsk_lost", "hand_over_full"];
    let unread: Vec<String> = unread
        .iter()
        .filter_map(|&name| {
            let count = *lost.get(name)?;
            (count > 0).then(|| format!("{name} {count}"))
        })
        .collect();
    match unread.is_empty() {
        true => Check::ok("sockets", "its workers have read all that arrived"),
        false => Check::new(
            "sockets",
            Verdict::Warn,
            format!(
                "packets were lost before its workers read them: {}",
                unread.join(", ")
            ),
            "give it more workers, or cores of their own (`workers`, `worker_cores` under [node])",
        ),
    }
}
