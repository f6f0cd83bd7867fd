//! Samples of what the NIC path decides, while somebody asks for them.

use super::{Path, Problem};
use crate::nic::{NicError, samples::Samples};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use tokio::task::block_in_place;
use virga_ebpf::sample::Order;

impl Path {
    /// Names of the interfaces, by their indexes.
    pub(super) fn interfaces(&self) -> BTreeMap<u32, String> {
        let all = self.facts.interfaces.iter();
        all.map(|(ifindex, one)| (*ifindex, one.name.clone()))
            .collect()
    }

    /// Has the interfaces run the program that takes samples; none where there is no NIC path.
    pub(super) fn sample(
        &mut self,
        order: &Order,
    ) -> Result<Option<Arc<Mutex<Samples>>>, NicError> {
        let Some(nic) = &mut self.nic else {
            return Ok(None);
        };
        let samples = block_in_place(|| nic.sample(&self.facts, order));
        samples.map(Some)
    }

    /// Has them run the usual one again.
    pub(super) fn no_samples(&mut self) {
        if let Some(nic) = &mut self.nic
            && let Err(error) = block_in_place(|| nic.stop_samples(&self.facts))
        {
            self.note(Some(Problem::retried(error)));
        }
    }
}
