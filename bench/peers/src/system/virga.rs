//! Virga: a worker over a real socket, the application on its thread (`virga_bench::load`).

use virga_bench::load::{End, Running, Switch, Task};
use virga_transport::Mode;

use crate::end::{Args, BATCH, Done, Problem, Role, Workload, process_cpu_ns, ready};

/// The nodes' numbers.
const SENDER: u32 = 1;
const RECEIVER: u32 = 2;
const RELAY: u32 = 3;

pub(crate) fn run(args: &Args) -> Result<(), Problem> {
    let event_bytes = args.workload.message_bytes();
    let task = match (args.role, args.workload) {
        (Role::Send, Workload::RoundTrip) => Task::Ask { event_bytes },
        (Role::Send, Workload::Reliable) => Task::Offer {
            event_bytes,
            batch: 1,
            mode: Mode::Ordered,
        },
        (Role::Send, Workload::Single | Workload::Batch | Workload::Packed) => Task::Offer {
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
    if args.role == Role::Relay {
        let far = args.far.ok_or("the relay wants two ends")?;
        let to = [(SENDER, args.next), (RECEIVER, far)];
        return answer(
            args.workload,
            Running::relay(RELAY, args.listen, args.core, to)?,
        );
    }
    let (number, peer) = if args.role == Role::Send {
        (SENDER, RECEIVER)
    } else {
        (RECEIVER, SENDER)
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
    answer(args.workload, running)
}

fn answer(workload: Workload, running: Running) -> Result<(), Problem> {
    let events = workload.events() as u64;
    let (ended, end) = std::sync::mpsc::channel::<()>();
    ready("", move || {
        let _kept = &ended;
        // A worker that has ended has done nothing more.
        let seen = running.seen().unwrap_or_default();
        Done {
            elapsed_ns: seen.now_ns,
            cpu_ns: process_cpu_ns(),
            taken: seen.taken * events + seen.forwarded,
            taken_bytes: seen.taken_bytes,
            sent: seen.offered * events,
            round_trips_ns: running.round_trips_ns().unwrap_or_default(),
        }
    });
    // Never: the process ends with its standard input.
    let _ended = end.recv();
    Ok(())
}
