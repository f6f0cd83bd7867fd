//! Nodes in the LAN: each announces its signed record by mDNS and DNS-SD (RFC 6762, 6763), and hears those of others.
//!
//! - [`limits`]: every number.
//! - [`text`]: a record as strings of a TXT record, and back.
//! - [`message`]: what is asked, announced and taken back, as DNS messages; and what others' messages say.
//! - [`speaker`]: when which of them is said, and what is kept of those that were heard; no I/O.
//! - [`socket`]: a socket in each LAN.
//! - [`lan`]: all of it.
//! - [`reason`]: why something that was heard was not taken.
//!
//! **Who is believed.** Names, hosts and addresses of a service count for nothing: what a node is, its record says,
//! under its signature, and `virga-discovery` judges that as it does any other source's. What is taken back here is
//! only heard no more: no session and no dial depends on it, for anybody in the LAN can take back anything.
//!
//! **How much it may cost.** So many messages are read in a tick, and so many services of each; what was heard has a
//! bounded place, and of that one sender a share. Nothing is asked because of what a stranger said. A general mDNS
//! daemon keeps what anybody announces for as long as they say, and asks for more of each: that is why only the
//! messages' format is another crate's.
//!
//! **Names** are made of the node's id, a hash of its key, so no two hosts have the same unless their keys are, which
//! is found out elsewhere. So nothing is probed for, and no record claims to be the only one of its name.
#![deny(unsafe_code)]

pub mod lan;
pub mod limits;
pub mod message;
pub mod reason;
pub mod socket;
pub mod speaker;
pub mod text;

pub use lan::{Lan, Place};
pub use reason::Reason;
pub use speaker::Speaker;
