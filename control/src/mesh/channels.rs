//! The channels of a node, as programs ask for them and declare them.

use super::{Mesh, MeshError, empty, read_json, whole};
use crate::{api::channels::ChannelsView, config::keeping::KeepWords, kept::chosen::Holds};
use hyper::Method;
use virga_transport::ChannelName;

impl Mesh {
    /// A channel's full name as it may be given everywhere: `$node` in it stands for the node's own name.
    ///
    /// # Errors
    /// [`MeshError::Name`]; and where there is a `$`, when the node does not answer.
    pub async fn channel_name(&self, text: &str) -> Result<ChannelName, MeshError> {
        if !text.contains('$') {
            return Ok(ChannelName::parse(text)?);
        }
        Ok(ChannelName::expand(text, &self.channels().await?.node)?)
    }

    /// A valid name needs no escaping in a URI.
    pub(super) async fn publish_uri(&self, channel: &str) -> Result<String, MeshError> {
        let channel = self.channel_name(channel).await?;
        Ok(format!("/publish?channel={channel}"))
    }

    /// The channels that the node knows, and how each stands.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn channels(&self) -> Result<ChannelsView, MeshError> {
        let answer = self.send(Method::GET, "/channels".into(), empty()).await?;
        read_json(answer).await
    }

    /// Has a signed declaration of a channel count at the node, which keeps it and passes it on to all peers;
    /// see [`crate::rights::declaration`]. The channel holds here when this returns.
    ///
    /// # Errors
    /// [`MeshError::Refused`] when its owner is no authority, or the channel would not hold.
    pub async fn declare(&self, signed: &[u8]) -> Result<(), MeshError> {
        let body = whole(signed.to_vec());
        self.send(Method::POST, "/channel".to_owned(), body).await?;
        Ok(())
    }

    /// Has the node keep a log of a channel, from now on and when it is started again; from when on holds how.
    ///
    /// # Errors
    /// [`MeshError::Refused`] when its configuration file has the say, its entity may not subscribe there, or it has no
    /// room.
    pub async fn keep(&self, channel: &ChannelName, how: &KeepWords) -> Result<Holds, MeshError> {
        let body = serde_json::to_vec(how);
        let body = whole(body.map_err(|error| MeshError::Broken(error.to_string()))?);
        let uri = format!("/keep?channel={channel}");
        read_json(self.send(Method::POST, uri, body).await?).await
    }

    /// Has the node keep a channel no more that [`Mesh::keep`] had it keep; the log's files stay.
    ///
    /// # Errors
    /// [`MeshError::Refused`] when no command had it kept.
    pub async fn leave(&self, channel: &ChannelName) -> Result<Holds, MeshError> {
        let uri = format!("/leave?channel={channel}");
        read_json(self.send(Method::POST, uri, empty()).await?).await
    }
}
