//! How a machine without a node joins a network by one line, copied there from a node.
//!
//! `virga invite` at a node prints the line and waits; `virga init --join LINE` on the other machine dials it, over
//! TCP, and both speak Noise `IKpsk1` with the line's secret as the PSK:
//!
//! | # | from | carries |
//! |---|---|---|
//! | 1 | who joins | its node key, which the pattern proves; its entity key, name and address |
//! | 2 | who invites | the network's id and PSK, its own entity key, name and port; or why it refuses |
//! | 3 | who joins | that its files are written |
//! | 4 | who invites | that its own file is, or why it could not be |
//!
//! Each is two bytes of length and a Noise message of JSON ([`exchange`]).
//!
//! Why so: a node knows its peers by their keys, so both files need the other's. A line that carried the network's PSK,
//! or a key for who joins, would go on opening the network for whoever finds it in a shell's history or a chat; the
//! secret of this one opens nothing but one exchange. No private key leaves its machine, the PSK travels under fresh
//! Diffie-Hellman keys of both ends, and the line's node key says that nobody else answers. An invitation is the command
//! that waits: its secret is in its memory alone, serves the first that joins, ends after its time, and is taken back by
//! ending the command. Who reads the line before it is used can join in place of who was meant, who then is refused.

pub mod exchange;
pub mod files;
pub mod line;

pub use exchange::{EnrolError, Refusal};
pub use line::{Invitation, LineError};
