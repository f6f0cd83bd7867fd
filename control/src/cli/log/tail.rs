//! `virga log tail`.

use super::{
    Failure, OneLog,
    show::{Shape, print},
};
use rustix::{
    fs::inotify::{self, CreateFlags, WatchFlags},
    io::{Errno, read, retry_on_intr},
};
use std::{
    io::{self, Write as _},
    os::fd::OwnedFd,
    path::Path,
};
use virga_state::{Cursor, ReadError, Reader};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    #[command(flatten)]
    log: OneLog,
    /// Begin there: start, end, an offset, after:OFFSET, or time:SECONDS since 1970.
    #[arg(long, value_name = "CURSOR", default_value_t = Cursor::End, allow_negative_numbers = true)]
    from: Cursor,
    /// End after so many events.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    #[command(flatten)]
    shape: Shape,
}

/// The kernel's word that something was written in a folder.
struct Watch(OwnedFd);

impl Watch {
    fn new(folder: &Path) -> io::Result<Self> {
        let watch = inotify::init(CreateFlags::CLOEXEC)?;
        let what = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO;
        inotify::add_watch(&watch, folder, what)?;
        Ok(Self(watch))
    }

    /// Waits for the next; what came together is one.
    fn wait(&self) -> Result<(), Errno> {
        let mut events = [0; 4_096];
        retry_on_intr(|| read(&self.0, &mut events)).map(|_bytes| ())
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let log = &arguments.log;
    let folder = log.read().map_err(Failure::runtime)?;
    // Before anything is read: nothing is written unseen between the two.
    let watch = Watch::new(folder.path())?;
    let reader = Reader::open(folder, &log.name, arguments.from);
    let mut reader = reader.map_err(log.failed()).map_err(Failure::runtime)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut count = 0;
    while arguments.count.is_none_or(|max| count < max) {
        match reader.next_event() {
            Ok(Some(event)) => {
                print(&mut out, &event, &arguments.shape)?;
                count += 1;
            }
            Ok(None) => {
                out.flush()?;
                watch.wait().map_err(io::Error::from)?;
            }
            Err(error @ ReadError::Io { .. }) => return Err(Failure::runtime(error)),
            Err(error) => writeln!(io::stderr(), "virga: {error}")?,
        }
    }
    Ok(out.flush()?)
}
