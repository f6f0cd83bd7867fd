//! What goes into the tables beside the configuration, and into the workers' own.

use super::{Path, draws, links};
use crate::{
    dispatch::{Dispatch, Service},
    nic::{self, NicError},
};
use std::sync::Arc;
use virga_ebpf::{hash::keyed, image::Image};
use virga_transport::worker::Parts;

impl Path {
    /// What is not in the configuration: who was let in, who leads where, what neighbours agreed on, whom
    /// nobody vouches for, which links are dead, and what other subnets admit. The tables' clock was 0 at `zero_ns` of the kernel's.
    pub(super) fn learned(&self, zero_ns: u64, image: &mut Image) {
        image.pairs.extend(&self.admitted);
        if let Some(routing) = &self.routing {
            routing.write(&self.config, image);
        }
        image.make_avoidable();
        self.members.write(&self.config, image);
        self.tags.write(image);
        links::avoid(&self.dead, image);
        if let Some(foreign) = &self.foreign {
            foreign.write(zero_ns, image);
        }
    }
}

/// Has the workers' forwarders take the image over, and waits for it.
pub(super) async fn apply_to_workers(image: Image, dispatch: &Dispatch) -> Result<(), String> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| format!("no random numbers: {error}"))?;
    let image = Arc::new(image);
    let apply = move |now_ns: u64, parts: &mut Parts<Service>| {
        // Each worker's keys are its own.
        let worker = [parts.share().worker()];
        let seed = keyed(&seed, &[&worker, &now_ns.to_be_bytes()]);
        let applied = parts.forwarder.apply(&image, draws(seed));
        applied.map_err(|error| error.to_string())
    };
    let applied = dispatch.with_all(apply).await;
    let applied = applied.map_err(|_| "the workers have ended".to_owned())?;
    applied.into_iter().collect()
}

/// Takes an earlier daemon's NIC path off: beside user space its tables would grow stale.
pub(super) fn leave_nic(node: &str) -> Result<(), NicError> {
    match nic::detach(node) {
        Ok(true) => tracing::info!("the earlier NIC path of this node is detached"),
        Ok(false) => {}
        Err(source @ NicError::Running(_)) => return Err(source),
        Err(error) => {
            tracing::warn!(%error, "the earlier NIC path of this node could not be detached");
        }
    }
    Ok(())
}
