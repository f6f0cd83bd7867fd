//! How others reach the task that owns the forwarding path.

use super::ForwardingStatus;
use crate::{
    api::status::LinkState,
    config::Config,
    filters::Foreign,
    nic::{NicError, samples::Samples},
    rights::identity::Retired,
    routes::RoutesStatus,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{Arc, Mutex},
};
use tokio::sync::{mpsc, oneshot};
use virga_ebpf::{header::NodeId, sample::Order, tables::Pair};

/// What the task is asked.
pub(super) enum Ask {
    Config {
        config: Arc<Config>,
        retired: Retired,
        anew: BTreeSet<NodeId>,
        reply: oneshot::Sender<Result<(), String>>,
    },
    Status(oneshot::Sender<ForwardingStatus>),
    Routes(oneshot::Sender<RoutesStatus>),
    NextHop {
        destination: NodeId,
        reply: oneshot::Sender<Option<NodeId>>,
    },
    Admits {
        pair: Pair,
        reply: oneshot::Sender<bool>,
    },
    Admit {
        pairs: BTreeSet<Pair>,
        reply: oneshot::Sender<Result<(), String>>,
    },
    Foreign {
        foreign: Box<Foreign>,
        reply: oneshot::Sender<Result<(), String>>,
    },
    Revoked(Vec<u8>),
    Link {
        peer: String,
        state: LinkState,
        reply: oneshot::Sender<Result<(), String>>,
    },
    Places(oneshot::Sender<BTreeSet<(NodeId, IpAddr)>>),
    Interfaces(oneshot::Sender<BTreeMap<u32, String>>),
    Sample {
        order: Order,
        reply: oneshot::Sender<Result<Option<Arc<Mutex<Samples>>>, NicError>>,
    },
    NoSamples(oneshot::Sender<()>),
}

/// How others reach the task.
#[derive(Clone, Debug)]
pub struct Asker(pub(super) mpsc::Sender<Ask>);

impl Asker {
    /// What is in use, and why. None: the daemon is shutting down.
    pub async fn status(&self) -> Option<ForwardingStatus> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Ask::Status(reply)).await.ok()?;
        answer.await.ok()
    }

    /// Who leads where. None: the daemon is shutting down.
    pub async fn routes(&self) -> Option<RoutesStatus> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Ask::Routes(reply)).await.ok()?;
        answer.await.ok()
    }

    /// The neighbour that packets for a node go to now. None: there is no way, or the daemon is shutting down.
    pub async fn next_hop(&self, destination: NodeId) -> Option<NodeId> {
        let (reply, answer) = oneshot::channel();
        let ask = Ask::NextHop { destination, reply };
        self.0.send(ask).await.ok()?;
        answer.await.ok()?
    }

    /// Whether transit packets of an origin on a channel are let through here.
    pub async fn admits(&self, pair: Pair) -> Option<bool> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Ask::Admits { pair, reply }).await.ok()?;
        answer.await.ok()
    }

    /// Has the guards let these pairs pass, beside those that the configuration lists, and no others.
    /// Answers when they do.
    pub async fn admit(&self, pairs: BTreeSet<Pair>) -> Option<Result<(), String>> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Ask::Admit { pairs, reply }).await.ok()?;
        answer.await.ok()
    }

    /// Has destinations in other subnets judged by this. Answers when they are.
    pub async fn set_foreign(&self, foreign: Foreign) -> Option<Result<(), String>> {
        let (reply, answer) = oneshot::channel();
        let foreign = Box::new(foreign);
        let ask = Ask::Foreign { foreign, reply };
        self.0.send(ask).await.ok()?;
        answer.await.ok()
    }

    /// A revocation list counts from now on. What it ends has ended when this returns, or soon after.
    pub async fn revoked(&self, signed: Vec<u8>) {
        // With the task, what it would do has ended.
        let _ended = self.0.send(Ask::Revoked(signed)).await;
    }

    /// Goes by another configuration from now on, and by the keys whose place others have taken. Of peers that
    /// are `anew` nothing counts that was learned before.
    pub async fn set_config(
        &self,
        config: Arc<Config>,
        retired: Retired,
        anew: BTreeSet<NodeId>,
    ) -> Option<Result<(), String>> {
        let (reply, answer) = oneshot::channel();
        let ask = Ask::Config {
            config,
            retired,
            anew,
            reply,
        };
        self.0.send(ask).await.ok()?;
        answer.await.ok()
    }

    /// The IP addresses where neighbours are now, and where those were that are carried. None: the daemon is shutting
    /// down.
    pub async fn places(&self) -> Option<BTreeSet<(NodeId, IpAddr)>> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Ask::Places(reply)).await.ok()?;
        answer.await.ok()
    }

    /// Names of the kernel's interfaces, by their indexes.
    pub async fn interfaces(&self) -> Option<BTreeMap<u32, String>> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Ask::Interfaces(reply)).await.ok()?;
        answer.await.ok()
    }

    /// Has the NIC path take samples, where there is one, until [`Asker::no_samples`].
    pub async fn sample(
        &self,
        order: Order,
    ) -> Option<Result<Option<Arc<Mutex<Samples>>>, NicError>> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Ask::Sample { order, reply }).await.ok()?;
        answer.await.ok()
    }

    /// Has the NIC path take no samples any more.
    pub async fn no_samples(&self) {
        let (reply, answer) = oneshot::channel();
        if self.0.send(Ask::NoSamples(reply)).await.is_ok() {
            // With the task, the daemon ends.
            let _ended = answer.await;
        }
    }

    /// Takes the next hop to a peer of that name in or out of use.
    pub async fn set_link(&self, peer: String, state: LinkState) -> Option<Result<(), String>> {
        let (reply, answer) = oneshot::channel();
        let ask = Ask::Link { peer, state, reply };
        self.0.send(ask).await.ok()?;
        answer.await.ok()
    }
}
