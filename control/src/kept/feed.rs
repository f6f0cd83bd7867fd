//! A log as one of its channel's subscribers.

use super::{State, writer::Input};
use crate::{
    channel::Pattern,
    dispatch::{Dispatch, NoSubscription},
};
use std::{sync::Arc, time::Duration};
use tokio::sync::{Semaphore, mpsc};
use virga_transport::ChannelName;

/// Events of one batch.
const INPUT_EVENTS_MAX: usize = 512;
/// Bytes of batches on their way to one log; one batch more may be taken, and waits.
const INPUT_BYTES_MAX: u32 = 16 * 1024 * 1024;
/// What an event costs beside its payload.
const EVENT_BYTES: usize = 128;
/// How long a log waits before it subscribes again.
const SUBSCRIBE_AGAIN: Duration = Duration::from_secs(1);

/// Has a log take its channel's events until the workers end, or the log does.
pub(super) async fn feed(
    dispatch: Dispatch,
    channel: ChannelName,
    mut state: State,
    log: usize,
    to: mpsc::Sender<Input>,
) {
    let pattern = Pattern::Channel(channel.clone());
    let room = Arc::new(Semaphore::new(INPUT_BYTES_MAX as usize));
    let mut told = None;
    loop {
        let mut subscribed = match dispatch.subscribe(&pattern).await {
            Ok(subscribed) => subscribed,
            Err(NoSubscription::Ended(_)) => return,
            Err(NoSubscription::Refused(error)) => {
                let words = Some(error.to_string());
                if told != words {
                    tracing::warn!(%channel, %error, "the log has no subscription; trying again");
                    told = words;
                }
                tokio::time::sleep(SUBSCRIBE_AGAIN).await;
                continue;
            }
        };
        loop {
            let deliveries = tokio::select! {
                deliveries = subscribed.take(INPUT_EVENTS_MAX) => deliveries,
                failed = state.wait_for(|state| state.has_ended) => {
                    // Where the writer has ended, so has the node.
                    if let Ok(state) = failed {
                        let problem = state.problem.clone().unwrap_or_default();
                        tracing::error!(%channel, %problem, "the log takes no more events");
                    }
                    return;
                }
            };
            if deliveries.is_empty() {
                break;
            }
            let bytes: usize = deliveries
                .iter()
                .map(|d| EVENT_BYTES + d.payload.len())
                .sum();
            let bytes = u32::try_from(bytes).map_or(INPUT_BYTES_MAX, |b| b.min(INPUT_BYTES_MAX));
            let Ok(room) = Arc::clone(&room).acquire_many_owned(bytes).await else {
                return;
            };
            let events = Input::Events {
                log,
                deliveries,
                room,
            };
            if to.send(events).await.is_err() {
                return;
            }
        }
        let Some(why) = subscribed.drain.end() else {
            return;
        };
        tracing::warn!(%channel, %why, "the channel went on without its log; subscribing again");
        if to.send(Input::Interrupted { log }).await.is_err() {
            return;
        }
        tokio::time::sleep(SUBSCRIBE_AGAIN).await;
    }
}
