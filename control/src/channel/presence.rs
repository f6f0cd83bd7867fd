//! Which of the node's workers have subscribers of which channel.
//!
//! Each worker writes about itself when a subscriber comes or goes; whoever publishes reads it, and
//! asks no worker that has nobody to send to. Nothing on a packet's path touches it.

use crate::config::ChannelConfig;
use std::{
    collections::BTreeMap,
    sync::{
        PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicUsize, Ordering},
    },
};
use virga_transport::{ChannelName, Mode, share::WORKERS_MAX};

/// One channel as one worker sees it.
#[derive(Debug, Default)]
struct Seen {
    /// Nodes on its roster.
    nodes: AtomicUsize,
    /// Programs on this node: all workers have all of them.
    programs: AtomicUsize,
}

/// One channel.
#[derive(Debug)]
struct Channel {
    name: ChannelName,
    mode: Mode,
    max_rate_pps: Option<u32>,
    workers: Box<[Seen]>,
}

/// See the [module](self). Channels come and go by command, each at its place for good.
#[derive(Debug)]
pub struct Presence {
    workers: usize,
    table: RwLock<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// Those that there are.
    names: BTreeMap<ChannelName, usize>,
    /// Those that there were, too.
    channels: Vec<Channel>,
}

/// What a worker does with a batch beside sending it to its own peers, where several get it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Counts the events as published.
    pub is_counted: bool,
    /// Delivers them to the subscribers on this node.
    pub is_local: bool,
}

impl Part {
    /// Everything: no other worker gets the batch.
    pub const WHOLE: Self = Self {
        is_counted: true,
        is_local: true,
    };
}

/// A worker that a batch goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Which one.
    pub worker: usize,
    /// What it does beside sending the events to its own peers.
    pub part: Part,
}

impl Presence {
    /// Nobody is there yet.
    #[must_use]
    pub fn new(channels: &[ChannelConfig], workers: usize) -> Self {
        let presence = Self {
            workers: workers.clamp(1, WORKERS_MAX.into()),
            table: RwLock::default(),
        };
        presence.set(channels);
        presence
    }

    /// These are the channels from now on. Services that are told of the same lists in the same order have
    /// each at the same place.
    pub fn set(&self, channels: &[ChannelConfig]) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.names.clear();
        for channel in channels {
            let (mode, max_rate_pps) = (channel.mode, channel.max_rate_pps);
            let known = table.channels.iter().position(|c| c.name == channel.name);
            let index = known.unwrap_or(table.channels.len());
            match known {
                Some(index) => {
                    let known = &mut table.channels[index];
                    (known.mode, known.max_rate_pps) = (mode, max_rate_pps);
                }
                None => table.channels.push(Channel {
                    name: channel.name.clone(),
                    mode,
                    max_rate_pps,
                    workers: (0..self.workers).map(|_| Seen::default()).collect(),
                }),
            }
            table.names.insert(channel.name.clone(), index);
        }
    }

    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A worker tells who is there now.
    pub(crate) fn note(&self, worker: usize, channel: usize, nodes: usize, programs: usize) {
        let table = self.table();
        let of = table.channels.get(channel);
        if let Some(seen) = of.and_then(|channel| channel.workers.get(worker)) {
            // Before the acknowledgement that follows from it, which the subscriber goes by.
            seen.nodes.store(nodes, Ordering::Release);
            seen.programs.store(programs, Ordering::Release);
        }
    }

    /// A channel's place among them; none where there is no such channel.
    #[must_use]
    pub fn index(&self, channel: &ChannelName) -> Option<usize> {
        self.table().names.get(channel).copied()
    }

    /// Whether what is published on a channel is never lost on the way; none where there is no such
    /// channel.
    #[must_use]
    pub fn is_reliable(&self, channel: &ChannelName) -> Option<bool> {
        self.mode(channel).map(Mode::is_reliable)
    }

    /// What a channel's streams promise; none where there is no such channel.
    #[must_use]
    pub fn mode(&self, channel: &ChannelName) -> Option<Mode> {
        let table = self.table();
        let index = *table.names.get(channel)?;
        Some(table.channels[index].mode)
    }

    /// Packets a second that one publisher may send on a channel at most.
    #[must_use]
    pub fn max_rate_pps(&self, channel: &ChannelName) -> Option<u32> {
        let table = self.table();
        let index = *table.names.get(channel)?;
        table.channels[index].max_rate_pps
    }

    /// Nodes on a channel's roster, at all workers.
    #[must_use]
    pub fn nodes(&self, channel: &ChannelName) -> usize {
        let table = self.table();
        let index = table.names.get(channel);
        let workers = index.map(|&index| table.channels[index].workers.iter());
        let nodes = |seen: &Seen| seen.nodes.load(Ordering::Acquire);
        workers.into_iter().flatten().map(nodes).sum()
    }

    /// The workers that an event has to go to, at least one: those with subscribed nodes, and the
    /// channel's home where programs on this node have subscribed. None where there is no such channel.
    #[must_use]
    pub fn targets(&self, channel: &ChannelName) -> Option<Vec<Target>> {
        let table = self.table();
        let index = *table.names.get(channel)?;
        let workers = &table.channels[index].workers;
        let home = index % workers.len();
        let is_local =
            |worker: usize| worker == home && workers[home].programs.load(Ordering::Acquire) > 0;
        let has_nodes = |worker: usize| workers[worker].nodes.load(Ordering::Acquire) > 0;
        let all = 0..workers.len();
        let mut targets: Vec<Target> = all
            .filter(|&worker| is_local(worker) || has_nodes(worker))
            .map(|worker| Target {
                worker,
                part: Part {
                    is_counted: false,
                    is_local: worker == home,
                },
            })
            .collect();
        if targets.is_empty() {
            targets.push(Target {
                worker: home,
                part: Part::WHOLE,
            });
        }
        targets[0].part.is_counted = true;
        Some(targets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CapabilityRules, Listed};
    use std::collections::BTreeSet;
    use virga_ebpf::subnet::Visibility;

    #[test]
    fn a_batch_goes_where_somebody_is_and_is_counted_once() {
        let channel = |text: &str| {
            let name = ChannelName::parse(text).unwrap();
            ChannelConfig {
                hash: name.hash(0),
                name,
                salt: 0,
                priority: 0,
                mode: if text == "b" {
                    Mode::Ordered
                } else {
                    Mode::Unreliable
                },
                hold_max_s: 1,
                fan_out: 0,
                max_rate_pps: None,
                visibility: Visibility::Global,
                export_to: BTreeSet::new(),
                publish: Listed::Only(Vec::new()),
                subscribe: Listed::Only(Vec::new()),
                issuers: Vec::new(),
                capabilities: CapabilityRules::default(),
                keep: None,
                scopes: Vec::new(),
            }
        };
        let presence = Presence::new(&[channel("a"), channel("b")], 3);
        let (a, b) = (channel("a").name, channel("b").name);
        let targets = |name| {
            let targets = presence.targets(name).unwrap().into_iter();
            let parts = targets.map(|t| (t.worker, t.part.is_counted, t.part.is_local));
            parts.collect::<Vec<_>>()
        };
        assert_eq!(targets(&a), [(0, true, true)]);
        assert_eq!(targets(&b), [(1, true, true)]);
        presence.note(2, 1, 4, 0);
        assert_eq!(targets(&b), [(2, true, false)]);
        for worker in 0..3 {
            presence.note(worker, 1, usize::from(worker == 2), 1);
        }
        assert_eq!(targets(&b), [(1, true, true), (2, false, false)]);
        assert_eq!(presence.is_reliable(&b), Some(true));
        assert_eq!(presence.is_reliable(&a), Some(false));
        assert_eq!(presence.targets(&channel("c").name), None);
    }
}
