//! Virga: a worker over a real socket, the application on its thread (`virga_bench::load`).

use virga_bench::load::{End, Running, Switch, Task};
use virga_transport::Mode;

use crate::end::{Args, Done, Problem, Role, Workload, ready};

/// Events of one call, where they are handed over at once.
const BATCH: usize = 64;

pub(crate) fn run(args: &Args) -> Result<(), Problem> {
    let event_bytes = args.workload.event_bytes();
    let task = match (args.role, args.workload) {
        (Role::Send, Workload::RoundTrip) => Task::Ask { event_bytes },
        (Role::Send, Workload::Reliable) => Task::Offer {
            event_bytes,
            batch: 1,
            mode: Mode::Ordered,
        },
        (Role::Send, Workload::Single | Workload::Batch) => Task::Offer {
            event_bytes,
            batch: if args.workload == Workload::Batch {
                BATCH
            } else {
                1
            },
            mode: Mode::Unreliable,
        },
        (_, Workload::RoundTrip) => Task::Answer,
        (_, _) => Task::Take,
    };
    let (number, peer) = if args.role == Role::Send {
        (1, 2)
    } else {
        (2, 1)
    };
    let running = Running::start(&End {
        number,
        listen: args.listen,
        core: Some(args.core),
        peer,
        via: args.next,
        task,
    })?;
    if args.role == Role::Send {
        running.await_session()?;
        running.switch(Switch::On)?;
    }
    let (ended, end) = std::sync::mpsc::channel::<()>();
    ready(move || {
        let _kept = &ended;
        // A worker that has ended has done nothing more.
        let seen = running.seen().unwrap_or_default();
        Done {
            elapsed_ns: seen.now_ns,
            taken: seen.taken,
            taken_bytes: seen.taken_bytes,
            sent: seen.offered,
            round_trips_ns: running.round_trips_ns().unwrap_or_default(),
        }
    });
    // Never: the process ends with its standard input.
    let _ended = end.recv();
    Ok(())
}
