//! Link tags: what neighbours say of them is followed, and what they are told goes out when all tables hold it.

use super::Path;
use crate::{
    config::Config,
    dispatch::{Dispatch, Service},
    tags::{self, Heard, Tags, TagsStatus},
};
use std::{
    fs,
    future::pending,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use virga_ebpf::header::NodeId;
use virga_transport::worker::Parts;

/// Neighbours are heard at most this often: each time, all tables may have to be compared.
const HEAR_EVERY: Duration = Duration::from_millis(20);

/// What is heard of neighbours, and when.
#[derive(Debug)]
pub(super) struct Listening {
    heard: Heard,
    /// What the keys' times are counted from.
    since: Instant,
    /// When neighbours were last heard.
    last: Instant,
}

impl Default for Listening {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            heard: Heard::default(),
            since: now,
            last: now,
        }
    }
}

/// Goes on with the keys of an earlier daemon.
pub(super) fn restore(config: &Config, tags: &mut Tags) {
    let path = tags::file(&config.node.socket);
    match fs::read_to_string(&path) {
        Ok(saved) => tags.restore(&saved),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            tracing::warn!(path = %path.display(), %error,
                "the keys of link tags cannot be read: neighbours are asked anew");
        }
    }
}

/// Keeps the keys for a next daemon. Where that cannot be done, a restart asks neighbours anew.
pub(super) fn save(config: &Config, tags: &Tags) {
    let path = tags::file(&config.node.socket);
    let new = path.with_extension("links.new");
    let written = fs::remove_file(&new)
        .or_else(|error| match error.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })
        .and_then(|()| {
            let mut options = fs::OpenOptions::new();
            options.write(true).create_new(true).mode(0o600);
            options.open(&new)?.write_all(tags.saved().as_bytes())
        })
        .and_then(|()| fs::rename(&new, &path));
    if let Err(error) = written {
        tracing::warn!(path = %new.display(), %error,
            "the keys of link tags cannot be kept: after a restart, neighbours are asked anew");
    }
}

impl Path {
    /// Where the workers tell what neighbours say of link tags.
    #[must_use]
    pub fn heard(&self) -> &Heard {
        &self.listening.heard
    }

    /// Waits until neighbours were heard, or a key's time has come.
    pub(super) async fn tags_due(&self) {
        let due = async {
            match self.tags.poll_timeout() {
                Some(due_ns) => {
                    let due = self.listening.since + Duration::from_nanos(due_ns);
                    tokio::time::sleep_until(due).await;
                }
                None => pending().await,
            }
        };
        // The wait first: what is cancelled after it was heard would be lost.
        tokio::time::sleep_until(self.listening.last + HEAR_EVERY).await;
        tokio::select! {
            () = self.listening.heard.changed() => {}
            () = due => {}
        }
    }

    pub(super) async fn follow_tags(&mut self, dispatch: &Dispatch) {
        self.listening.last = Instant::now();
        let now_ns = u64::try_from(self.listening.since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let before = self.all_tags();
        let mut is_changed = false;
        for (peer, news) in self.listening.heard.take() {
            is_changed |= self.tags.hear(now_ns, peer, &news);
        }
        is_changed |= self.tags.handle_timeout(now_ns);
        self.log_tags(&before);
        match is_changed {
            // It is logged, shown in `status` and tried again; nothing is said before.
            true => {
                let _shown = self.apply(dispatch).await;
            }
            false => self.say(dispatch).await,
        }
    }

    /// Has the workers tell the neighbours what is in all tables now; where a table does not have it, later.
    pub(super) async fn say(&mut self, dispatch: &Dispatch) {
        if self.tables_behind {
            return;
        }
        let said = Arc::new(self.tags.take_said());
        if said.is_empty() {
            return;
        }
        let say = move |now_ns: u64, parts: &mut Parts<Service>| {
            for &(peer, said) in said.iter() {
                // The worker that has the session says it.
                parts.service.say(now_ns, &mut parts.node, peer, said);
            }
        };
        // With the workers, the node ends.
        let _ended = dispatch.with_all(say).await;
    }

    fn all_tags(&self) -> Vec<(NodeId, TagsStatus)> {
        let peers = self.config.peers.iter();
        peers
            .map(|peer| (peer.id, self.tags.status(peer.id)))
            .collect()
    }

    fn log_tags(&self, before: &[(NodeId, TagsStatus)]) {
        for (peer, (id, before)) in self.config.peers.iter().zip(before) {
            let now = self.tags.status(*id);
            if (now.checked, now.sent) != (before.checked, before.sent) {
                tracing::info!(neighbour = %peer.name, checked = now.checked, sent = now.sent,
                    "link tags");
            }
        }
    }
}
