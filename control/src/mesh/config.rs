//! What a node runs by, and its configuration file read anew.

use super::{Mesh, MeshError, empty, read_json};
use crate::{config::settings::Setting, daemon::reload::Reloaded};
use hyper::Method;

impl Mesh {
    /// What the node runs by, key by key, as its file said when it was read; secrets are fingerprints.
    ///
    /// # Errors
    /// When the node does not answer.
    pub async fn settings(&self) -> Result<Vec<Setting>, MeshError> {
        let answer = self.send(Method::GET, "/config".into(), empty()).await?;
        read_json(answer).await
    }

    /// Has the node read its configuration file anew: all that has changed holds when this returns, or nothing has
    /// changed.
    ///
    /// # Errors
    /// [`MeshError::Refused`] when the file is invalid, or differs in something that takes a restart.
    pub async fn reload(&self) -> Result<Reloaded, MeshError> {
        let answer = self.send(Method::POST, "/reload".into(), empty()).await?;
        read_json(answer).await
    }
}
