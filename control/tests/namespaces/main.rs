//! Real daemons on hosts made of network namespaces, XDP in veth's native mode, sockets between
//! processes. Counts what arrives at the far end and what the kernels in between saw. As root.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

#[path = "../../examples/demo/diamond.rs"]
mod diamond;
#[path = "../../examples/demo/hosts.rs"]
mod hosts;
mod stage;

mod admissions;
mod capture;
mod doctor;
mod dozen;
mod drivers;
mod enrol;
mod every_driver;
mod failover;
mod fallback;
mod gateways;
mod guides;
mod hostile;
mod identity;
mod interfaces;
mod lan;
mod learned;
mod loss;
mod machines;
mod nat;
mod neighbours;
mod path_size;
mod reading;
mod replicas;
mod restart;
mod ring;
mod roaming;
mod routes;
mod starting;
mod subnets;
mod tags;
mod three_hosts;
mod traffic;
mod transit;
mod trouble;
mod tune;
mod virtio;
mod wire;
mod xsk;
