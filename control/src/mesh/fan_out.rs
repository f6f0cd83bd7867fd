//! Publishing with a report: what became of each event at each subscribing node.

use super::{Mesh, MeshError, read_json, whole};
use crate::{
    api::{fanout::Report, frames::write_event},
    channel::{Plan, Policy},
};
use bytes::BytesMut;
use hyper::Method;
use thiserror::Error;
use virga_transport::ChannelName;

/// Publishes on one channel as a [`Plan`] says, and reports each publish.
///
/// On a reliable channel a node counts as reached once it has acknowledged every event: it has all of its
/// bytes and delivers them to its programs; that they have read them is not said. On an unreliable channel
/// nothing is acknowledged, and what was handed to the session counts.
#[derive(Clone, Debug)]
pub struct ChannelPublisher {
    mesh: Mesh,
    channel: ChannelName,
    plan: Plan,
}

/// Why a publish did not succeed.
#[derive(Debug, Error)]
pub enum FanOutError {
    /// Nothing is known of it.
    #[error(transparent)]
    Mesh(#[from] MeshError),
    /// The plan's policy is not met; the report says where it arrived nevertheless.
    #[error("{}", describe(.0))]
    NotMet(Box<Report>),
}

/// What is missing, and why at the first node where something is.
fn describe(report: &Report) -> String {
    let is_behind = |outcome: &crate::channel::tally::Outcome| {
        outcome.expired + outcome.lost + outcome.pending > 0
    };
    let behind: Vec<_> = report
        .nodes
        .iter()
        .filter(|node| is_behind(&node.outcome))
        .collect();
    let mut words = format!(
        "not everything arrived at {} of {} subscribing nodes",
        behind.len(),
        report.nodes.len()
    );
    if let Some(first) = behind.first() {
        let outcome = &first.outcome;
        words += &format!(
            "; at {} {} expired, {} were lost ({}), {} are not acknowledged yet",
            first.name,
            outcome.expired,
            outcome.lost,
            outcome.reason.as_deref().unwrap_or("no reason known"),
            outcome.pending
        );
    }
    if report.withheld > 0 {
        words += &format!("; {} events after that were not published", report.withheld);
    }
    words
}

impl ChannelPublisher {
    pub(super) const fn new(mesh: Mesh, channel: ChannelName, plan: Plan) -> Self {
        Self {
            mesh,
            channel,
            plan,
        }
    }

    /// Publishes one event, and returns once the policy is met or cannot be.
    ///
    /// # Errors
    /// [`FanOutError`].
    pub async fn publish(&self, event: &[u8]) -> Result<Report, FanOutError> {
        self.publish_batch([event]).await
    }

    /// Publishes a few events in order, all of which one report is about; at most
    /// [`crate::api::fanout::EVENTS_MAX`].
    ///
    /// # Errors
    /// [`FanOutError`].
    pub async fn publish_batch<E: AsRef<[u8]>>(
        &self,
        events: impl IntoIterator<Item = E>,
    ) -> Result<Report, FanOutError> {
        let mut body = BytesMut::new();
        for event in events {
            write_event(&mut body, event.as_ref());
        }
        let body = whole(body.to_vec());
        let answer = self.mesh.send(Method::POST, self.uri(), body).await?;
        let report: Report = read_json(answer).await?;
        match report.is_met {
            true => Ok(report),
            false => Err(FanOutError::NotMet(Box::new(report))),
        }
    }

    fn uri(&self) -> String {
        let policy = match self.plan.policy {
            Policy::BestEffort => "policy=best-effort".to_owned(),
            Policy::FailFast => "policy=fail-fast".to_owned(),
            Policy::Quorum(nodes) => format!("quorum={nodes}"),
        };
        let within_ms = self.plan.within.as_nanos().div_ceil(1_000_000).max(1);
        format!(
            "/fanout?channel={}&{policy}&in_flight={}&within_ms={within_ms}",
            self.channel,
            self.plan.in_flight_max.max(1)
        )
    }
}
