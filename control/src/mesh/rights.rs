//! What a program presents to the node of tokens, statements and revocation lists, and asks about rights.

use super::{Mesh, MeshError, empty, read_json, whole};
use crate::{
    api::{rights::NamedStatement, why::Why},
    capability::Statement,
    channel::explain::Given,
    membership::Membership,
    rights::Chain,
};
use hyper::Method;

impl Mesh {
    /// Has the node hold a token for its entity, and show it to all peers, until it stops; says what it
    /// gives there. See [`crate::rights`].
    ///
    /// # Errors
    /// [`MeshError::Refused`] when it belongs to another entity, or is not authentic.
    pub async fn present(&self, token: &Chain) -> Result<Given, MeshError> {
        let body = whole(token.encode());
        let answer = self.send(Method::POST, "/token".to_owned(), body).await?;
        read_json(answer).await
    }

    /// The same of a statement about its entity; see [`crate::capability`].
    ///
    /// # Errors
    /// [`MeshError::Refused`] when it is about another entity, or a later one is held.
    pub async fn present_statement(&self, statement: &Statement) -> Result<Given, MeshError> {
        let body = whole(statement.as_bytes().to_vec());
        let uri = "/statement".to_owned();
        let answer = self.send(Method::POST, uri, body).await?;
        read_json(answer).await
    }

    /// The same of a membership of a subnet; see [`crate::membership`].
    ///
    /// # Errors
    /// [`MeshError::Refused`] when it is about another entity, or a later one is held.
    pub async fn present_membership(&self, membership: &Membership) -> Result<Given, MeshError> {
        let body = whole(membership.as_bytes().to_vec());
        let uri = "/membership".to_owned();
        let answer = self.send(Method::POST, uri, body).await?;
        read_json(answer).await
    }

    /// What is said of the node's entity, and of those that it has a session with.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn capabilities(&self) -> Result<Vec<NamedStatement>, MeshError> {
        let uri = "/capabilities".to_owned();
        let answer = self.send(Method::GET, uri, empty()).await?;
        read_json(answer).await
    }

    /// What an entity, by its name or its public key in hex, may do on a channel, and why not the rest.
    ///
    /// # Errors
    /// [`MeshError::Refused`] when the node knows no such channel or entity.
    pub async fn why(&self, channel: &str, entity: &str) -> Result<Why, MeshError> {
        let channel = self.channel_name(channel).await?;
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if entity.is_empty() || !entity.chars().all(is_plain) {
            let message = format!("{entity:?} is neither an entity's name nor its public key");
            return Err(MeshError::Refused { code: 400, message });
        }
        let uri = format!("/why?channel={channel}&entity={entity}");
        let answer = self.send(Method::GET, uri, empty()).await?;
        read_json(answer).await
    }

    /// Has a signed revocation list count at the node, which keeps it and passes it on to all peers.
    ///
    /// # Errors
    /// [`MeshError::Refused`] when no channel names its issuer, or a later one is known.
    pub async fn announce(&self, signed: &[u8]) -> Result<(), MeshError> {
        let body = whole(signed.to_vec());
        self.send(Method::POST, "/revocations".to_owned(), body)
            .await?;
        Ok(())
    }

    /// Has what an entity has signed about itself, the text of a file of placements and successions
    /// ([`crate::rights::file`]), count at the node, which keeps it and passes it on to all peers.
    ///
    /// # Errors
    /// [`MeshError::Refused`] when one is not signed, no entity there has that key, or a later one is known.
    pub async fn follow(&self, identities: &str) -> Result<(), MeshError> {
        let body = whole(identities.into());
        self.send(Method::POST, "/identity".to_owned(), body)
            .await?;
        Ok(())
    }
}
