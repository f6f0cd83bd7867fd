//! The node's workers: how many, where, with what; and their end.

use super::{DaemonError, describe, path, path::Path, system, unix_ns};
use crate::{
    admissions::Inbox,
    channel::{
        ChannelService, Presence, Setup, Subnets,
        follow::{self, Directory},
    },
    config::Config,
    discovery,
    dispatch::{Dispatch, Service},
    nat,
    notices::Notices,
    placement::{self, Place},
    reading::Reading,
    replicas::Replicas,
    signing::Signing,
    trace,
};
use std::{io, net::SocketAddr, sync::Arc};
use tokio::sync::mpsc;
use virga_transport::{
    NodeConfig, NodeLimits, Share,
    forward::Forwarder,
    io::steer::{Steer, Steering},
    worker::{Beginning, Exit, Workers, WorkersConfig, spawn_all},
};

/// All of them, running.
pub(super) struct Running {
    workers: Workers<Service>,
    dispatch: Dispatch,
    exited: mpsc::UnboundedReceiver<(Share, Exit)>,
    placement: Vec<Place>,
}

impl Running {
    /// `revocations`: signed lists that were known before; those that peers send are told to the notices,
    /// and what they say of evidence, and ask about ways, to the inboxes.
    pub(super) fn start(
        (config, directory): (&Config, &Arc<Directory>),
        path: &Path,
        revocations: Vec<Vec<u8>>,
        (notices, inbox, traces): (&Notices, &Inbox, &trace::Inbox),
        (discovery, nat): (Option<&discovery::Inbox>, Option<&nat::Inbox>),
        (signing, replicas, reading): (&Signing, &Replicas, &Reading),
    ) -> Result<Self, DaemonError> {
        let placement = placement::of(config).map_err(system("ask which CPUs may be used"))?;
        let cores: Vec<_> = placement.iter().map(|place| place.core).collect();
        let shares: Vec<Share> = Share::split(cores.len()).collect();
        let presence = Arc::new(Presence::new(&config.channels, shares.len()));
        let image = path.image();
        // Made before any of them runs: whatever fails, fails here.
        let mut beginnings = Vec::new();
        for &share in &shares {
            let mut seed = [0; 32];
            getrandom::fill(&mut seed)
                .map_err(io::Error::other)
                .map_err(system("draw random numbers"))?;
            let entropy = path::entropy().map_err(system("draw random numbers"))?;
            let mut forwarder = Forwarder::with_destinations(config.forwarding.destinations_max);
            forwarder
                .apply(&image, entropy)
                .map_err(|error| DaemonError::Tables(error.to_string()))?;
            beginnings.push(Beginning {
                node: node_config(config, share, seed),
                forwarder,
                service: ChannelService::new(&Setup {
                    revocations: revocations.clone(),
                    unix_zero_ns: unix_ns(),
                    ..Setup::of(config, share, &presence)
                })
                .among(Subnets::configured(config, path.shown()))
                .following(directory)
                .telling(path.moves())
                .finding(path.found())
                .noting(notices)
                .hearing(inbox)
                .tagging(path.heard())
                .routing(path.routes_inbox())
                .tracing(traces)
                .discovering(discovery)
                .crossing(nat)
                .replicating(replicas)
                .reading(reading),
            });
        }
        let mut beginnings = beginnings.into_iter();
        let group = WorkersConfig {
            listen: config.node.listen,
            cores,
            steer: Steer::Kernel,
            driver: config.node.driver,
        };
        // At most one message a worker.
        let (exit, exited) = mpsc::unbounded_channel();
        let tell = move |share, how| {
            // When the daemon stopped waiting, it is ending anyway.
            let _ending = exit.send((share, how));
        };
        let next = |_| beginnings.next().expect("one for each share");
        let workers = spawn_all(&group, next, tell)?;
        let dispatch = Dispatch::new(workers.commanders().cloned(), presence, workers.clock())
            .signing(signing.clone())
            .replicating(replicas.clone());
        if let Steering::Refused(error) = workers.steering() {
            tracing::warn!(%error, "the kernel does not steer packets to their workers: they hand over");
        }
        Ok(Self {
            workers,
            dispatch,
            exited,
            placement,
        })
    }

    pub(super) fn dispatch(&self) -> &Dispatch {
        &self.dispatch
    }

    pub(super) fn steering(&self) -> &Steering {
        self.workers.steering()
    }

    /// Where each of them is, and why there.
    pub(super) fn placement(&self) -> &[Place] {
        &self.placement
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.workers.address()
    }

    /// Waits until one of them ends: with it, the kernel's steering is at an end too, and so is the node.
    pub(super) async fn ended(&mut self) -> Option<Exit> {
        self.exited.recv().await.map(|(_, exit)| exit)
    }

    /// Closes the sessions and ends the workers.
    pub(super) async fn stop(mut self) -> Result<(), DaemonError> {
        let workers = self.workers;
        // One that did not end as asked says so below.
        let _joined = tokio::task::spawn_blocking(move || workers.stop()).await;
        while let Some((_, exit)) = self.exited.recv().await {
            if !matches!(exit, Exit::Stopped) {
                return Err(DaemonError::Ended(describe(Some(exit))));
            }
        }
        Ok(())
    }
}

fn node_config(config: &Config, share: Share, seed: [u8; 32]) -> NodeConfig {
    NodeConfig {
        network_id: config.node.network.clone(),
        psk: *config.keys.psk.expose(),
        psk_generation: config.node.psk_generation,
        node_key: *config.keys.node.secret.expose(),
        entity_key: *config.keys.entity.seed.expose(),
        subnet: config.node.subnet,
        peers: follow::nodes(config, &[]),
        share,
        handshake: config.handshake,
        limits: NodeLimits {
            congestion: config.node.congestion,
            link_interval_ns: u64::from(config.forwarding.keepalive_ms) * 1_000_000,
            link_misses: config.forwarding.detect_multiplier,
            answers_straight: config.routing.crosses_nats,
            ..NodeLimits::default()
        },
        started_unix_ns: unix_ns(),
        seed,
    }
}
