//! Performs what logs ask for.

use super::{
    clock,
    open::OpenLog,
    ring::{Ring, Write},
};
use crate::action::Action;
use std::io;

/// Which way is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// io_uring, unless the kernel or a container's seccomp filter refuses it.
    Auto,
    /// A system call each.
    Plain,
}

/// See the module. It blocks until what it began is done.
#[derive(Debug)]
pub struct Driver {
    ring: Option<Ring>,
    refusal: Option<String>,
}

impl Driver {
    /// Sets up the ring, where it can be had.
    #[must_use]
    pub fn open(way: Way) -> Self {
        let ring = match way {
            Way::Auto => Ring::open().map_err(|error| Some(format!("io_uring: {error}"))),
            Way::Plain => Err(None),
        };
        match ring {
            Ok(ring) => Self {
                ring: Some(ring),
                refusal: None,
            },
            Err(refusal) => Self {
                ring: None,
                refusal,
            },
        }
    }

    /// `uring` or `plain`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self.ring {
            Some(_) => "uring",
            None => "plain",
        }
    }

    /// Why there is no ring although one was asked for.
    #[must_use]
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// Performs one action of each log that has one, the writes and syncs of several together by the ring; whether
    /// there was any.
    pub fn round(&mut self, logs: &mut [OpenLog]) -> bool {
        let now = clock::now_unix_ns();
        let Some(ring) = &mut self.ring else {
            let steps = logs.iter_mut();
            return steps.fold(false, |any, open| open.files.step(&mut open.log, now) | any);
        };
        let mut results: Vec<Option<io::Result<usize>>> = Vec::with_capacity(logs.len());
        let mut writes = Vec::new();
        for OpenLog { log, files, .. } in logs.iter_mut() {
            let result = match log.poll_action(now) {
                None => None,
                Some(Action::Write {
                    segment,
                    at,
                    bytes,
                    sync,
                }) => match files.segment(segment) {
                    Ok(file) => {
                        let write = Write {
                            file,
                            at,
                            bytes,
                            sync,
                        };
                        writes.push((results.len(), write));
                        None
                    }
                    Err(error) => Some(Err(error)),
                },
                Some(action) => Some(files.perform(&action)),
            };
            results.push(result);
        }
        let (places, writes): (Vec<usize>, Vec<Write<'_>>) = writes.into_iter().unzip();
        let answers = match &writes[..] {
            // For one that is waited for the ring only adds the way to a thread of the kernel and back, which on a busy
            // machine takes longer than the disk.
            [one] => vec![one.perform()],
            several => ring.write(several),
        };
        for (place, answer) in places.into_iter().zip(answers) {
            results[place] = Some(answer);
        }
        let mut is_any = false;
        for (open, result) in logs.iter_mut().zip(results) {
            if let Some(result) = result {
                is_any = true;
                open.log.complete(now, result);
            }
        }
        is_any
    }

    /// Rounds until nothing is to be done now.
    pub fn settle(&mut self, logs: &mut [OpenLog]) {
        while self.round(logs) {}
    }
}
