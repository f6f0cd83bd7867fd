//! Discovery and membership: how nodes that do not name each other come to have sessions, and who of them lives.
//!
//! No I/O and no clock: [`Discovery`] takes what happened and [`Now`], and gives the nodes that sessions are to be
//! had with, messages for sessions, and introductions for those that there is no session with yet.
//!
//! - [`limits`]: every number.
//! - [`record`]: what a node says of itself, signed by itself.
//! - [`source`]: where nodes are found: seeds, what peers say, a file, the LAN; all behind one trait.
//! - [`wire`]: what nodes tell each other in their sessions.
//! - [`book`]: what is known of each node, and whom of them this one tries to reach.
//! - [`discovery`]: all of it.
//! - [`swim`]: who lives, for all members, whether or not they are neighbours.
//!
//! **Who is believed.** A record is signed by the entity that it is about, and names the network, so nobody speaks
//! for another and nobody carries a record to another network. That a node key and an entity belong together is shown by nothing but a session:
//! only records of nodes that this one has had a session with are passed on, so whoever makes up nodes is heard by
//! those that it reaches itself, and by nobody behind them.
//!
//! **Who is admitted** is not decided here: [`Authority::admits`] is asked, and a node that is found is dialled, no
//! more. A session still needs the network's key, both ends' node keys and their entities' proofs.
//!
//! **How much it may cost.** The book is bounded, each teller has a share of the part for nodes that were never
//! reached, so many are dialled at a time, each node's dials back off at random, and so many signatures of one peer
//! are looked at in a second. A node that starts anew asks one peer after the other for what it lacks, and is told
//! of once by each node that it reaches, to [`limits::FANOUT`] others: the messages of a restart grow with the number
//! of nodes, and not with its square.
#![deny(unsafe_code)]

pub mod book;
pub mod discovery;
pub mod limits;
mod random;
pub mod reason;
pub mod record;
pub mod source;
pub mod swim;
pub mod wire;

pub use book::{Known, Stage};
pub use discovery::{Adopted, Authority, Discovery, Notice, Now, Setup};
pub use reason::Reason;
pub use record::{Claim, Record};
pub use source::{Found, Origin, Pinned, Source};
pub use swim::{Change, MemberState, Swim};
