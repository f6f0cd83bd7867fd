//! Events and the durable log.
//!
//! What a channel says is kept as a log: a folder of segments that is only ever appended to. In the
//! order in which an event meets them:
//!
//! - [`event`]: an event and its causal link; [`name`]: what its log is called.
//! - [`batch`]: events under their entity's signature; [`bundle`]: both as one message; [`feed`]: where the next is signed; [`fork`]: the proof
//!   that an entity signed twice; [`causal`]: which event was before which.
//! - [`log`]: batches, group commit, rotation, retention, as [`action`]s that somebody performs; [`options`]:
//!   what is acknowledged when, and how much is kept.
//! - [`format`](mod@format): the files, byte by byte; [`signatures`]: what stands in them of signed batches;
//!   [`compact`]: which events go by their keys, and `sparse` what is left of their batches.
//! - [`disk`]: what is asked of a disk; [`files`]: a log's actions on it.
//! - [`recover`]: where a log goes on after a crash: the decision table.
//! - [`catalog`]: what a folder holds; [`reader`]: events from any cursor on; [`verify`]: whether all of it
//!   is as it was written; [`history`]: where the feeds in it end, and one feed's batches for a log that lacks them.
//! - [`replica`]: one log on several nodes: one leads, the others copy its batches as they are.
//! - [`fold`]: live state out of logs.
//! - [`io`]: folders, io_uring and its fallback, the clock.
//! - [`limits`]: every number, with its invariant.
//!
//! Memory is bounded whatever a log's size, by figures in [`limits`]: a writer has
//! [`WRITER_MEMORY_MAX`](limits::WRITER_MEMORY_MAX), a reader [`READER_MEMORY_MAX`](limits::READER_MEMORY_MAX), and only what
//! lists of segments take grows with the log: of 10 GiB, 160 segments, some 160 KiB while it is opened and 10 KiB then.
//!
//! A log in a folder, by itself:
//!
//! ```
//! use virga_ebpf::header::OriginHash;
//! use virga_state::{
//!     Cursor, Link, LogName, Options, Reader,
//!     fold::{Folding, Policy, ready::Counters},
//!     io::{clock, open::{self, OpenLog}},
//! };
//!
//! # let folder = tempfile::tempdir()?;
//! # let (logs, fresh_id) = (folder.path(), [7; 16]);
//! let name = LogName::parse("metrics/edge-a")?;
//! let mut writer = OpenLog::open(logs, &name, Options::default(), fresh_id)?;
//! let link = Link { entity: OriginHash(1), observed: 0, parent: 0 };
//! let event = br#"{"key": "a", "add": 3}"#;
//! let offset = writer.log.append(clock::now_unix_ns(), &link, event)?;
//! writer.settle();
//! assert!(writer.log.acknowledged() > offset, "it is on disk");
//!
//! let mut reader = Reader::open(open::read(logs, &name)?, &name, Cursor::Offset(offset))?;
//! if let Some(event) = reader.next_event()? {
//!     println!("{}: {} bytes", event.offset, event.payload.len());
//! }
//!
//! let mut sums = Folding::new(Counters, Policy::Stop);
//! let mut reader = Reader::open(open::read(logs, &name)?, &name, Cursor::Start)?;
//! sums.catch_up(&name, &mut reader, |place, change| {
//!     println!("{}:{}: {} is {:?}", place.log, place.offset, change.key, change.value);
//! })?;
//! assert_eq!(sums.view().state["a"], 3);
//! writer.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(unsafe_code)]

pub mod action;
pub mod batch;
pub mod bundle;
pub mod catalog;
pub mod causal;
pub mod compact;
pub mod cursor;
pub mod disk;
pub mod event;
pub mod feed;
pub mod files;
pub mod fold;
pub mod fork;
pub mod format;
pub mod history;
#[allow(clippy::disallowed_methods)] // the one place that touches clock and files
pub mod io;
pub mod limits;
pub mod log;
pub mod name;
pub mod options;
pub mod reader;
pub mod recover;
pub mod replica;
pub mod signatures;
mod sparse;
pub mod verify;
mod walk;

pub use action::{Action, AppendError};
pub use catalog::{Catalog, OpenError};
pub use cursor::Cursor;
pub use event::{Event, Link};
pub use log::Log;
pub use name::{LogName, NameError};
pub use options::{Durability, Options, Retention};
pub use reader::{ReadError, Reader};
pub use recover::{Finding, recover};

#[cfg(test)]
mod tests;
