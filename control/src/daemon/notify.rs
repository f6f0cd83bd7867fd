//! What the service manager is told (sd_notify(3)): that the node serves, that it goes on doing so, that it stops.
//! Where nobody asked to be told, nothing is.

use crate::api::{Api, status};
use sd_notify::NotifyState;
use std::{sync::Arc, time::Duration};
use tokio::time::{MissedTickBehavior, interval, timeout};

/// Signs of life within the time after which their lack counts.
const SIGNS: u32 = 3;

/// The node serves.
pub(super) fn ready(mode: &str) {
    let status = format!("forwarding: {mode}");
    tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// The node ends.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// Gives a sign of life as long as workers and forwarding path answer, where the manager waits for it. A node that
/// does not is ended by the manager and started anew; its NIC path goes on.
pub(super) async fn watch(api: Arc<Api>) {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) else {
        return;
    };
    let pause = limit / SIGNS;
    let mut ticks = interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match answer(&api, pause).await {
            true => tell(&[NotifyState::Watchdog]),
            false => tracing::error!(
                seconds = pause.as_secs(),
                "workers or forwarding path have not answered: the service manager gets no sign of life"
            ),
        }
    }
}

/// Whether all that a status is made of answers in time.
async fn answer(api: &Arc<Api>, patience: Duration) -> bool {
    let status = timeout(patience, status::of(api)).await;
    status.is_ok_and(|status| status.is_ok())
}
