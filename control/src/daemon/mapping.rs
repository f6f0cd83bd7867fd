//! The port of the router's that leads to this node, while the configuration wants one: [`virga_portmap`] keeps it, beside
//! everything else, and neighbours are told of it.

use crate::{config::Config, nat::PortMappingStatus};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU16,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{sync::watch, task::JoinHandle};
use virga_ebpf::hash;
use virga_portmap::{Keeper, Protocol, Route, Setup, Shown, State, Wish, limits::GIVE_BACK};

/// How long a node that stops waits for the router to take its mapping back: a moment longer than the router is given.
const FAREWELL: Duration = GIVE_BACK.saturating_add(Duration::from_secs(1));

/// What keeps it.
#[derive(Debug)]
pub(super) struct Mapping {
    wish: watch::Sender<Wish>,
    shown: watch::Receiver<Shown>,
    task: Mutex<Option<JoinHandle<()>>>,
}

impl Mapping {
    /// Begins, and does nothing yet; none where there is no port to map, for the node listens by IPv6 alone.
    pub(super) fn run(config: &Config, seed: u64) -> Option<Self> {
        let listen = config.node.listen;
        let (IpAddr::V4(ip), Some(port)) = (listen.ip(), NonZeroU16::new(listen.port())) else {
            return None;
        };
        // The same after each start, so that the router knows the mapping for this node's, and nobody else can guess it.
        let secret = config.keys.node.secret.expose();
        let nonce = hash::keyed(b"virga port mapping v1", &[&secret[..]]);
        let word = |at: usize| {
            u32::from_be_bytes([nonce[at], nonce[at + 1], nonce[at + 2], nonce[at + 3]])
        };
        let setup = Setup {
            listen: ip,
            port,
            nonce: [word(0), word(4), word(8)],
            seed,
        };
        let (wish, wished) = watch::channel(Wish::Off);
        let keeper = Keeper::new(setup, Instant::now());
        let shown = keeper.subscribe();
        let task = tokio::spawn(keeper.run(wished, Route::read));
        Some(Self {
            wish,
            shown,
            task: Mutex::new(Some(task)),
        })
    }

    /// Whether there is to be one.
    pub(super) fn want(&self, is_wanted: bool) {
        let next = if is_wanted { Wish::On } else { Wish::Off };
        self.wish.send_if_modified(|wish| {
            let is_new = *wish != next && *wish != Wish::End;
            if is_new {
                *wish = next;
            }
            is_new
        });
    }

    /// Whether nobody keeps it: the node stops.
    fn is_over(&self) -> bool {
        self.wish.is_closed()
    }

    /// What neighbours may be told.
    pub(super) fn announced(&self) -> Option<SocketAddr> {
        let announced = self.shown.borrow().announced();
        announced.filter(|_| !self.is_over()).map(SocketAddr::V4)
    }

    /// Has the router take it back, and waits for that as long as a node that stops may.
    pub(super) async fn end(&self) {
        self.wish.send_replace(Wish::End);
        let task = self
            .task
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(mut task) = task
            && tokio::time::timeout(FAREWELL, &mut task).await.is_err()
        {
            tracing::warn!(
                "the router does not take back the port that it has mapped: that ends with its lease, if it has one"
            );
            task.abort();
        }
    }

    /// All of it; neighbours see this node at `addresses`.
    pub(super) fn status(&self, addresses: &[SocketAddr]) -> PortMappingStatus {
        let shown = self.shown.borrow();
        let by_protocol = |counts: &[u64; 3]| -> BTreeMap<String, u64> {
            let names = Protocol::ALL.map(|protocol| protocol.name().to_owned());
            names.into_iter().zip(*counts).collect()
        };
        let mut status = PortMappingStatus {
            is_on: *self.wish.borrow() == Wish::On,
            made: by_protocol(&shown.counts.made),
            renewed: by_protocol(&shown.counts.renewed),
            failed: by_protocol(&shown.counts.failed),
            taken: shown.counts.taken,
            panics: shown.counts.panics,
            ..PortMappingStatus::default()
        };
        match &shown.state {
            State::Off if status.is_on => "routers are asked next".clone_into(&mut status.why),
            State::Off => "port_mapping in [nat] is off".clone_into(&mut status.why),
            State::Searching => "routers are asked".clone_into(&mut status.why),
            State::Failed(why) => status.why.clone_from(why),
            State::Held(held) => {
                status.protocol = Some(held.protocol.name().to_owned());
                status.external = Some(held.external.to_string());
                let left =
                    |until: Instant| until.saturating_duration_since(Instant::now()).as_secs();
                status.lease_left_s = held.until.map(left);
                status.why = match held.useless() {
                    Some(why) => {
                        format!("the router's own address is {why}, and nobody is told of the port")
                    }
                    None => told(*held.external.ip(), addresses),
                };
            }
        }
        if let Some(broken) = &shown.broken {
            status.why = format!("{}; {broken}", status.why);
        }
        if self.is_over() {
            "nobody keeps it any more".clone_into(&mut status.why);
        }
        status
    }
}

/// Whom a mapping is any use to, by where neighbours see this node.
fn told(external: Ipv4Addr, addresses: &[SocketAddr]) -> String {
    let elsewhere = addresses.iter().find(|at| at.ip() != external);
    let is_seen = addresses.iter().any(|at| at.ip() == external);
    match elsewhere.filter(|_| !is_seen) {
        Some(at) => format!(
            "neighbours are told of it and do not use it, for they see this node at {}: there is a second NAT, or another way out",
            at.ip()
        ),
        None => "neighbours are told of it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_where_no_neighbour_sees_the_node_is_said_to_be_of_no_use() {
        let external = Ipv4Addr::new(11, 0, 0, 1);
        let at = |ip: [u8; 4]| SocketAddr::from((ip, 4_783));
        for (addresses, is_used) in [
            (&[][..], true),
            (&[at([11, 0, 0, 1])], true),
            (&[at([11, 0, 0, 1]), at([11, 0, 0, 2])], true),
            (&[at([11, 0, 0, 2])], false),
        ] {
            let said = told(external, addresses);
            assert_eq!(!said.contains("do not use it"), is_used, "{said}");
            assert_eq!(!said.contains("11.0.0.2"), is_used, "{said}");
        }
    }
}
