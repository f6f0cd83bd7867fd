//! Packets as a node decides upon them.

use super::{Mesh, MeshError, empty};
use crate::capture::{asked::Asked, line::Line};
use http_body_util::BodyExt as _;
use hyper::{Method, body::Incoming};
use std::collections::VecDeque;

/// No line is longer: a whole frame in hex, and what is said of it.
const LINE_BYTES_MAX: usize = 16 * 1024;

impl Mesh {
    /// Shows packets as the node decides upon them, until what this gives is dropped, or [`Mesh::stop_capture`].
    ///
    /// # Errors
    /// [`MeshError::Refused`] when there is nothing such, or another capture goes on.
    pub async fn capture(&self, asked: &Asked) -> Result<Capture, MeshError> {
        let uri = format!("/capture{}", query(asked)?);
        let answer = self.send(Method::GET, uri, empty()).await?;
        Ok(Capture {
            _mesh: self.clone(),
            body: answer.into_body(),
            rest: Vec::new(),
            lines: VecDeque::new(),
        })
    }

    /// Has the capture that goes on end: its reader gets the last line.
    ///
    /// # Errors
    /// [`MeshError::Refused`] when there is none.
    pub async fn stop_capture(&self) -> Result<(), MeshError> {
        self.send(Method::POST, "/capture".into(), empty()).await?;
        Ok(())
    }
}

/// Whatever is asked for, as the end of a URI.
pub(super) fn query(asked: &impl serde::Serialize) -> Result<String, MeshError> {
    let value = serde_json::to_value(asked).map_err(|e| MeshError::Answer(e.to_string()))?;
    let mut text = String::new();
    for (key, value) in value.as_object().into_iter().flatten() {
        let value = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.,/:@".contains(c);
        if let Some(wrong) = value.chars().find(|c| !plain(*c)) {
            let message = format!("{key} {value:?} has a {wrong:?}, which no name here has");
            return Err(MeshError::Refused { code: 400, message });
        }
        text.push(if text.is_empty() { '?' } else { '&' });
        text += &format!("{key}={value}");
    }
    Ok(text)
}

/// The lines of a capture as they come. Dropping it ends the capture.
#[derive(Debug)]
pub struct Capture {
    /// A node in this process runs as long as it is read from.
    _mesh: Mesh,
    body: Incoming,
    /// Of a line whose end has not come.
    rest: Vec<u8>,
    lines: VecDeque<Line>,
}

impl Capture {
    /// The next line; `None` after the last, or when the node stops. May be given up and asked again.
    ///
    /// # Errors
    /// When the connection broke, or another version of the daemon answers.
    pub async fn next_line(&mut self) -> Option<Result<Line, MeshError>> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(Ok(line));
            }
            match self.body.frame().await? {
                Ok(frame) => {
                    if let Some(bytes) = frame.data_ref()
                        && let Err(error) = self.take(bytes)
                    {
                        return Some(Err(error));
                    }
                }
                Err(error) => return Some(Err(error.into())),
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), MeshError> {
        self.rest.extend_from_slice(bytes);
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            return match self.rest.len() > LINE_BYTES_MAX {
                true => Err(MeshError::Answer("a line has no end".to_owned())),
                false => Ok(()),
            };
        };
        let rest = self.rest.split_off(end + 1);
        let whole = std::mem::replace(&mut self.rest, rest);
        for line in whole.split(|byte| *byte == b'\n') {
            if !line.is_empty() {
                let line = serde_json::from_slice(line);
                let line = line.map_err(|error| MeshError::Answer(error.to_string()))?;
                self.lines.push_back(line);
            }
        }
        Ok(())
    }
}
