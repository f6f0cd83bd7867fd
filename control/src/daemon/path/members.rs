//! Subnets: which neighbours are where they are configured, as issuers vouch for it.

use super::Path;
use crate::{
    cause,
    config::{Config, Reach},
    daemon::unix_ns,
    dispatch::Dispatch,
    membership::{Memberships, Shown, Trust, Unvouched},
    rights::{
        List, Revocations,
        file::{self, FileError},
        identity::Retired,
    },
};
use std::{collections::BTreeMap, future::pending, path::PathBuf, time::Duration};
use tokio::{task::block_in_place, time::Instant};
use virga_ebpf::{
    header::NodeId,
    image::{Image, Link},
    tables::Address,
};

/// How often it is asked whose time has begun or ended.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is known of the neighbours' memberships.
#[derive(Debug)]
pub(super) struct Members {
    issuers: Vec<[u8; 32]>,
    known: Memberships,
    revocations: Revocations,
    shown: Shown,
    /// Neighbours that nobody vouches for, and why not.
    unvouched: BTreeMap<NodeId, Unvouched>,
    file: PathBuf,
    /// When it is asked again: others that ask the task something do not put it off.
    look_at: Instant,
}

fn now_s() -> u64 {
    unix_ns() / 1_000_000_000
}

impl Members {
    /// What the node knew when it last ran: neighbours' packets pass until they show it again.
    pub(super) fn recall(config: &Config, lists: &[Vec<u8>], retired: &Retired) -> Self {
        let mut members = Self {
            issuers: config.subnet_issuers.iter().map(|one| one.key).collect(),
            known: Memberships::default(),
            revocations: Revocations::default(),
            shown: Shown::default(),
            unvouched: BTreeMap::new(),
            file: config.node.state.join("memberships"),
            look_at: Instant::now(),
        };
        if members.issuers.is_empty() {
            return members;
        }
        members.follow(config, retired.clone());
        for signed in lists {
            members.revoked(signed);
        }
        match file::read_memberships(&members.file) {
            Ok(kept) => {
                for one in kept {
                    members.known.learn(one);
                }
            }
            Err(error) => tracing::warn!(
                error = cause::chain(&error),
                "where neighbours are is not known any more; until they show it again, their packets do not pass"
            ),
        }
        members.look(config, now_s());
        members
    }

    /// Goes by the keys that entities have now.
    pub(super) fn follow(&mut self, config: &Config, retired: Retired) {
        self.issuers = config.subnet_issuers.iter().map(|one| one.key).collect();
        self.revocations.set_retired(retired);
    }

    /// Where the workers tell what peers have shown.
    pub(super) const fn shown(&self) -> &Shown {
        &self.shown
    }

    pub(super) fn revoked(&mut self, signed: &[u8]) {
        // What is no list, or an old one, was refused by the workers already.
        if let Ok(list) = List::parse(signed) {
            let _known = self.revocations.learn(list);
        }
    }

    /// Waits until something was shown, or somebody's time may have come.
    pub(super) async fn due(&self) {
        if self.issuers.is_empty() {
            return pending().await;
        }
        tokio::select! {
            () = self.shown.changed() => {}
            () = tokio::time::sleep_until(self.look_at) => {}
        }
    }

    /// Takes in what was shown.
    fn learn(&mut self) {
        let mut is_changed = false;
        for one in self.shown.take().iter() {
            is_changed |= self.known.learn(one.clone());
        }
        if is_changed {
            self.known.expire(now_s());
            let saved = block_in_place(|| file::replace_memberships(&self.file, self.known.iter()));
            if let Err(error) = saved {
                tracing::error!(
                    error = cause::chain(&error as &FileError),
                    "where neighbours are is not kept: after a restart they have to show it again"
                );
            }
        }
    }

    /// Judges all neighbours anew; whether the tables have to follow.
    fn look(&mut self, config: &Config, now_s: u64) -> bool {
        let trust = Trust {
            issuers: &self.issuers,
            now_s,
            revocations: &self.revocations,
        };
        let neighbours = config.peers.iter().filter(|peer| peer.is_adjacent());
        let judged = neighbours.filter_map(|peer| {
            let vouched = self.known.vouch(&peer.entity_key, peer.place(), &trust);
            Some((peer.id, vouched.err()?))
        });
        let judged: BTreeMap<NodeId, Unvouched> = judged.collect();
        let is_changed = !judged.keys().eq(self.unvouched.keys());
        self.unvouched = judged;
        is_changed
    }

    /// Lets nothing in but control traffic from neighbours that nobody vouches for.
    pub(super) fn write(&self, config: &Config, image: &mut Image) {
        for peer in &config.peers {
            let Reach::Adjacent { address, .. } = &peer.reach else {
                continue;
            };
            if !self.unvouched.contains_key(&peer.id) {
                continue;
            }
            let address: Address = address.ip().into();
            for (place, link) in &mut image.neighbours {
                if place.address == address {
                    let Link { subnet, mask, .. } = Link::CONTROL_ONLY;
                    (link.subnet, link.mask) = (subnet, mask);
                }
            }
        }
    }

    /// Whether nothing but control traffic is let in from a neighbour.
    pub(super) fn is_barred(&self, peer: NodeId) -> bool {
        self.unvouched.contains_key(&peer)
    }

    /// Why a neighbour's packets do not pass, if they do not.
    pub(super) fn why_not(&self, peer: NodeId) -> Option<String> {
        self.unvouched.get(&peer).map(ToString::to_string)
    }
}

impl Path {
    /// Where the workers tell which memberships peers have shown.
    #[must_use]
    pub fn shown(&self) -> &Shown {
        self.members.shown()
    }

    pub(super) async fn follow_members(&mut self, dispatch: &Dispatch) {
        self.members.look_at = Instant::now() + LOOK_EVERY;
        self.members.learn();
        let before = self.members.unvouched.clone();
        if !self.members.look(&self.config, now_s()) {
            return;
        }
        for peer in &self.config.peers {
            let (was, is) = (before.get(&peer.id), self.members.unvouched.get(&peer.id));
            match (was, is) {
                (None, Some(why)) => tracing::warn!(neighbour = %peer.name, %why,
                    "from this neighbour nothing but control traffic is let in"),
                (Some(_), None) => tracing::info!(neighbour = %peer.name, subnet = %peer.place(),
                    "this neighbour is vouched for"),
                _ => {}
            }
        }
        // It is logged, shown in `status` and tried again.
        let _shown = self.apply(dispatch).await;
        // No way leads over who is not let in.
        self.follow_routing(dispatch).await;
    }
}
