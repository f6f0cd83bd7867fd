//! What a Virga packet's header says, and whether it may pass.
//!
//! The same source is compiled into the NIC (`src/main.rs`, an XDP program) and into user space
//! (the forwarder of hosts without XDP, and the end nodes). In the order in which a packet meets it:
//!
//! - [`frame`]: from an Ethernet frame to the mesh header; not ours, malformed, or a mesh packet.
//! - [`plain`]: the same for the frame that nearly all are.
//! - [`header`]: the 64 bytes that every mesh packet starts with.
//! - [`decide`]: drop it, deliver it, or send it on, by the header alone.
//! - [`flow`]: what was decided for a flow's first packet, for those that follow.
//! - [`guard`]: which (origin, channel) pairs are authorised, one cache line a probe; [`pair_set`] confirms it.
//! - [`subnet`]: whether a channel's packets cross from one subnet to another.
//! - [`directory`]: the route of every destination, one cache line a look-up.
//! - [`tag`]: which neighbour put the packet on the link.
//! - [`tables`]: all else that the decision reads, as the control plane writes it.
//! - [`rewrite`]: the outer headers of a packet that is sent on.
//! - [`reason`]: every drop's number, name and counter.
//! - [`sample`]: packets that somebody wants to see, with what was decided.
//! - [`limits`]: every number, with its invariant.
//! - [`workload`]: packets made for tests and measurements; [`replay`]: one frame again and again; [`sink`]: what is
//!   measured where they end.
//!
//! Host side only: [`hash`] makes the names that headers carry, [`image`] holds what the tables shall
//! say, [`publish`] writes it in an order that no packet can notice, [`memory`] is the tables of user space.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]

pub mod decide;
pub mod directory;
pub mod flow;
pub mod frame;
pub mod guard;
#[cfg(not(target_arch = "bpf"))]
pub mod hash;
pub mod header;
#[cfg(not(target_arch = "bpf"))]
pub mod image;
pub mod limits;
#[cfg(not(target_arch = "bpf"))]
pub mod memory;
pub mod pair_set;
pub mod plain;
#[cfg(not(target_arch = "bpf"))]
pub mod publish;
pub mod reason;
pub mod replay;
pub mod rewrite;
pub mod sample;
pub mod sink;
pub mod subnet;
pub mod tables;
pub mod tag;
pub mod workload;
