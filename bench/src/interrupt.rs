//! An interrupt ends a measurement where it stands, so that all that it made is taken away again.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use tokio::signal::unix::{SignalKind, signal};

use crate::report::Skip;

static IS_INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Listens for SIGINT and SIGTERM from now on.
pub(crate) fn listen() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let guard = runtime.enter();
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    drop(guard);
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = terminated.recv() => {}
                _ = interrupted.recv() => {}
            }
        });
        IS_INTERRUPTED.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// An error once one has come.
pub(crate) fn check() -> Result<(), Skip> {
    if IS_INTERRUPTED.load(Ordering::Relaxed) {
        return Err(Skip::Failed("interrupted".to_owned()));
    }
    Ok(())
}
