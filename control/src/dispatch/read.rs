//! What reading other nodes' logs needs of the workers.

use super::{Dispatch, Ended, NoSubscription, command};
use crate::{
    channel::{Command, Pattern},
    reading::{Said, Sent},
    replicas::wire::Part,
};
use tokio::sync::oneshot;
use virga_ebpf::header::NodeId;
use virga_transport::{ChannelName, Share};

/// While there is this, there is a session with a node, or one is tried for.
pub struct Reached {
    dispatch: Dispatch,
    node: NodeId,
}

impl Drop for Reached {
    fn drop(&mut self) {
        let worker = self.dispatch.worker_of(self.node);
        self.dispatch.tell(worker, Command::Leave(self.node));
    }
}

impl Dispatch {
    /// Whose sessions a node's is among.
    pub(super) fn worker_of(&self, node: NodeId) -> usize {
        let share = Share::split(self.commanders.len()).next();
        share.map_or(0, |share| usize::from(share.owner_of(node)))
    }

    /// Has a session with a peer from now on.
    ///
    /// # Errors
    /// [`Ended`].
    pub(crate) async fn reach(&self, node: NodeId) -> Result<Reached, Ended> {
        if let Some(commander) = self.commanders.get(self.worker_of(node)) {
            command(commander, Command::Reach(node)).await?;
        }
        Ok(Reached {
            dispatch: self.clone(),
            node,
        })
    }

    /// Says something about reading a log.
    ///
    /// # Errors
    /// [`Ended`].
    pub(crate) async fn say_reading(&self, peer: NodeId, parts: Vec<Part>) -> Result<Sent, Ended> {
        let Some(commander) = self.commanders.get(self.worker_of(peer)) else {
            return Ok(Sent::NoSession);
        };
        let (reply, sent) = oneshot::channel();
        let said = Said {
            peer,
            parts,
            done: Box::new(move |sent| {
                // Whoever said it may have given up meanwhile.
                let _given_up = reply.send(sent);
            }),
        };
        command(commander, Command::Read(said)).await?;
        sent.await.map_err(|_| Ended)
    }

    /// The same where nobody waits for it.
    pub(crate) fn tell_reading(&self, peer: NodeId, parts: Vec<Part>) {
        let said = Said {
            peer,
            parts,
            done: Box::new(drop),
        };
        self.tell(self.worker_of(peer), Command::Read(said));
    }

    /// The peers that may keep a channel's log, as far as this node knows.
    ///
    /// # Errors
    /// See [`NoSubscription`].
    pub(crate) async fn keepers(
        &self,
        channel: &ChannelName,
    ) -> Result<Vec<NodeId>, NoSubscription> {
        let channel = channel.clone();
        let all = self.with_all(move |now_ns, parts| parts.service.keepers(now_ns, &channel));
        let mut keepers = Vec::new();
        for some in all.await? {
            keepers.extend(some?);
        }
        Ok(keepers)
    }

    /// Whether what an entity signed may come onto a channel now.
    ///
    /// # Errors
    /// [`Ended`].
    pub(crate) async fn may_say(
        &self,
        channel: &ChannelName,
        entity: [u8; 32],
    ) -> Result<bool, Ended> {
        let channel = channel.clone();
        let all =
            self.with_all(move |now_ns, parts| parts.service.may_say(now_ns, &channel, &entity));
        Ok(all.await?.into_iter().all(|may| may))
    }

    /// The channels that a pattern means and this node's entity may have.
    ///
    /// # Errors
    /// [`Ended`].
    pub(crate) async fn subscribable(&self, pattern: &Pattern) -> Result<Vec<ChannelName>, Ended> {
        let pattern = pattern.clone();
        let all = self.with_all(move |now_ns, parts| parts.service.subscribable(now_ns, &pattern));
        let mut all = all.await?;
        // They all know the same.
        Ok(all.pop().unwrap_or_default())
    }
}
