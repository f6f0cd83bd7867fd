//! How long a channel's events stay in each stage of their way through the node.

use super::{Mesh, MeshError, capture::query, empty};
use crate::flow::{Asked, Report};
use bytes::{Buf as _, BytesMut};
use http_body_util::BodyExt as _;
use hyper::{Method, body::Incoming};

/// No report is longer: its stages, and a path to every node that a channel may have.
const LINE_BYTES_MAX: usize = 8 * 1024 * 1024;

impl Mesh {
    /// Times a channel's events stage by stage, until what this gives is dropped.
    ///
    /// # Errors
    /// [`MeshError::Refused`] when there is nothing such, or another flow is timed.
    pub async fn flow(&self, asked: &Asked) -> Result<Flow, MeshError> {
        let uri = format!("/flow{}", query(asked)?);
        let answer = self.send(Method::GET, uri, empty()).await?;
        Ok(Flow {
            _mesh: self.clone(),
            body: answer.into_body(),
            rest: BytesMut::new(),
        })
    }
}

/// Reports as they come. Dropping it ends the timing.
#[derive(Debug)]
pub struct Flow {
    /// A node in this process runs as long as it is read from.
    _mesh: Mesh,
    body: Incoming,
    /// What was not read as a report yet.
    rest: BytesMut,
}

impl Flow {
    /// The next report; `None` after the last, or when the node stops. May be given up and asked again.
    ///
    /// # Errors
    /// When the connection broke, or another version of the daemon answers.
    pub async fn next_report(&mut self) -> Option<Result<Report, MeshError>> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line = self.rest.split_to(end);
                self.rest.advance(1);
                let report = serde_json::from_slice(&line);
                return Some(report.map_err(|error| MeshError::Answer(error.to_string())));
            }
            if self.rest.len() > LINE_BYTES_MAX {
                return Some(Err(MeshError::Answer("a line has no end".to_owned())));
            }
            match self.body.frame().await? {
                Ok(frame) => {
                    if let Some(bytes) = frame.data_ref() {
                        self.rest.extend_from_slice(bytes);
                    }
                }
                Err(error) => return Some(Err(error.into())),
            }
        }
    }
}
