//! Interrupts: noted when they come, so that whoever is at work ends where it may, and takes away what it made.
#![allow(unreachable_pub)]

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use tokio::signal::unix::{SignalKind, signal};

static HAS_COME: AtomicBool = AtomicBool::new(false);

/// Listens for SIGINT and SIGTERM from now on.
pub fn listen() -> io::Result<()> {
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
        HAS_COME.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// Whether one has come.
pub fn has_come() -> bool {
    HAS_COME.load(Ordering::Relaxed)
}
