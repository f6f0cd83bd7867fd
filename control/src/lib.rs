//! The control plane: who this node is, whom it talks to, and what may pass.
//!
//! - [`hex`], [`keys`]: the node's secrets and their files.
//! - [`config`]: the configuration file, checked as a whole and resolved.
//! - [`enrol`]: how a machine joins a network by one line.
//! - [`rights`]: signed tokens and revocation lists: who may do what, said by whom.
//! - [`capability`]: what an entity is and has, and filters over it.
//! - [`membership`]: which subnet an entity's node may be in, said by issuers.
//! - [`admissions`]: what follows from them for forwarders, and how nodes agree on it.
//! - [`identity`]: who is where: the configuration as entities have changed it since.
//! - [`channel`]: who has subscribed to what, and every event to each of them.
//! - [`routes`]: what neighbours say about routes, for the daemon's router.
//! - [`trace`]: the way that packets take, asked from neighbour to neighbour.
//! - [`tags`]: keys of the link tags, agreed on with each neighbour.
//! - [`kept`]: channels that have a log on this node's disk.
//! - [`replicas`]: logs that are on several nodes, and what nodes tell each other about them.
//! - [`signing`]: what this node's entity signs of what it publishes.
//! - [`placement`]: the cores that its workers stay on, and why there.
//! - [`dispatch`]: the node's workers, as all that is above them reaches them.
//! - [`fallback`]: neighbours that are carried over TCP or WebSocket, where UDP does not get through.
//! - [`nat`]: ways past routers, to peers behind NATs.
//! - [`daemon`]: a running node; [`api`]: its Unix socket; [`mesh`]: the API of programs on this machine.
//! - [`metrics`]: the node's figures and its health, over HTTP.
//! - [`capture`]: packets as they are decided upon, while somebody asks.
//! - [`flow`]: how long a channel's events stay in each stage of their way through the node, while somebody asks.
//! - [`drops`]: what the node drops, why, and what to do about it.
//! - [`doctor`]: what this machine lacks, with the line that fixes it.
//! - [`bundle`]: all of that in one archive, for whoever helps.
//! - [`dissector`]: what shows mesh headers in Wireshark.
//! - [`hw`]: what is known of network drivers, each fact with its source.
//! - [`tune`]: host settings of a router, with reasons and their undoing.
//! - [`cli`]: the `virga` command.
#![deny(unsafe_code)]

pub mod admissions;
pub mod api;
pub mod bundle;
pub mod capability;
pub mod capture;
mod cause;
pub mod channel;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod discovery;
pub mod dispatch;
pub mod dissector;
pub mod doctor;
pub mod drops;
pub mod enrol;
pub mod fallback;
mod files;
pub mod filters;
pub mod flow;
pub mod generate;
pub mod hex;
pub mod hw;
pub mod identity;
pub mod image;
mod io;
pub mod kept;
pub mod keys;
pub mod links;
pub mod membership;
pub mod mesh;
pub mod metrics;
pub mod moves;
pub mod nat;
pub mod nic;
pub mod notices;
pub mod placement;
pub mod reading;
pub mod replicas;
pub mod rights;
pub mod routes;
pub mod signing;
pub mod tags;
pub mod trace;
pub mod tune;

/// The example of README.md compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
