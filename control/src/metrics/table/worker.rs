//! Each worker: its loop, its socket, and how long its work takes.

use crate::{
    api::status::{IoStatus, OneWorker, Status, WorkerStatus},
    metrics::{Rows, Series, quantiles, seconds},
};

/// What drivers tell of that goes up and down.
const QUEUES: &str = "xsk_queues";
const UNSENT: &str = "xsk_unsent";

pub(super) const SERIES: &[Series] = &[
    Series::gauge(
        "virga_worker_info",
        "none",
        &["worker", "core", "driver"],
        "Always 1; the labels say which core a worker stays on (`any` if on none), and what moves its datagrams.",
        |status, rows| {
            for (number, one) in workers(status) {
                let core = one.core.map_or("any".to_owned(), |core| core.to_string());
                rows.put([&*number, &core, &one.socket.driver], 1_u64);
            }
        },
    ),
    Series::gauge(
        "virga_worker_sessions",
        "sessions",
        &["worker"],
        "Sessions that a worker has.",
        |status, rows| {
            for (number, one) in workers(status) {
                rows.put([&number], one.sessions);
            }
        },
    ),
    Series::counter(
        "virga_worker_cpu_seconds_total",
        "seconds",
        &["worker"],
        "Time that a worker's thread has had on a processor.",
        |status, rows| {
            for (number, one) in workers(status) {
                rows.put([&number], seconds(one.cpu_ns));
            }
        },
    ),
    Series::counter(
        "virga_worker_timed_total",
        "times",
        &["worker", "stage"],
        "How often a worker's work was timed, by stage.",
        |status, rows| {
            for (number, one) in workers(status) {
                for (stage, times) in &one.times {
                    rows.put([&number, stage], times.count);
                }
            }
        },
    ),
    Series::gauge(
        "virga_worker_time_seconds",
        "seconds",
        &["worker", "stage", "quantile"],
        "How long it took since the daemon's start: `handling` a turn's datagrams, `command_wait` in the queue, `hand_over_wait` in the ring.",
        |status, rows| {
            for (number, one) in workers(status) {
                for (stage, times) in &one.times {
                    for (quantile, ns) in quantiles(times) {
                        rows.put([&number, stage, quantile], seconds(ns));
                    }
                }
            }
        },
    ),
    Series::counter(
        "virga_worker_turns_total",
        "turns",
        &["worker"],
        "Turns of a worker's loop.",
        |status, rows| each_worker(status, rows, |worker| worker.turns),
    ),
    Series::counter(
        "virga_worker_forwarded_datagrams_total",
        "datagrams",
        &["worker"],
        "Datagrams of others that a worker sent on.",
        |status, rows| each_worker(status, rows, |worker| worker.forwarded),
    ),
    Series::counter(
        "virga_worker_forward_blocked_datagrams_total",
        "datagrams",
        &["worker"],
        "Datagrams that were to be sent on while the socket was full: lost.",
        |status, rows| each_worker(status, rows, |worker| worker.forward_blocked),
    ),
    Series::counter(
        "virga_worker_unroutable_datagrams_total",
        "datagrams",
        &["worker"],
        "Datagrams of this node's own that no live next hop leads on: lost.",
        |status, rows| each_worker(status, rows, |worker| worker.unroutable),
    ),
    Series::counter(
        "virga_worker_too_big_datagrams_total",
        "datagrams",
        &["worker"],
        "Datagrams of this node's own that were too large for the next hop's link: probes of it, mostly.",
        |status, rows| each_worker(status, rows, |worker| worker.too_big),
    ),
    Series::counter(
        "virga_worker_commands_total",
        "commands",
        &["worker"],
        "Commands that a worker took.",
        |status, rows| each_worker(status, rows, |worker| worker.commands),
    ),
    Series::counter(
        "virga_worker_handed_over_datagrams_total",
        "datagrams",
        &["worker"],
        "Datagrams that were another worker's, and were handed over.",
        |status, rows| each_worker(status, rows, |worker| worker.handed_over),
    ),
    Series::counter(
        "virga_worker_hand_over_full_datagrams_total",
        "datagrams",
        &["worker"],
        "Datagrams that were another worker's, whose ring was full: lost.",
        |status, rows| each_worker(status, rows, |worker| worker.hand_over_full),
    ),
    Series::counter(
        "virga_worker_taken_over_datagrams_total",
        "datagrams",
        &["worker"],
        "Datagrams that other workers handed over.",
        |status, rows| each_worker(status, rows, |worker| worker.taken_over),
    ),
    Series::gauge(
        "virga_worker_waiting_commands",
        "commands",
        &["worker"],
        "Commands that waited for a worker when its last turn began, at most 1,024; asking for this is one.",
        |status, rows| each_worker(status, rows, |worker| worker.waiting_commands as u64),
    ),
    Series::gauge(
        "virga_worker_waiting_datagrams",
        "datagrams",
        &["worker"],
        "Datagrams from other workers that waited for it then, at most 512 of sessions and 64 of handshakes.",
        |status, rows| each_worker(status, rows, |worker| worker.waiting_datagrams as u64),
    ),
    Series::counter(
        "virga_socket_datagrams_total",
        "datagrams",
        &["worker", "direction"],
        "Datagrams that a worker's socket moved, by direction (`sent` or `received`).",
        |status, rows| directions(status, rows, |io| io.datagrams),
    ),
    Series::counter(
        "virga_socket_bytes_total",
        "bytes",
        &["worker", "direction"],
        "Their bytes.",
        |status, rows| directions(status, rows, |io| io.bytes),
    ),
    Series::counter(
        "virga_socket_batches_total",
        "batches",
        &["worker", "direction"],
        "System calls that moved some.",
        |status, rows| directions(status, rows, |io| io.batches),
    ),
    Series::counter(
        "virga_socket_segments_total",
        "segments",
        &["worker", "direction"],
        "Datagrams that were part of an offloaded run.",
        |status, rows| directions(status, rows, |io| io.segments),
    ),
    Series::counter(
        "virga_socket_blocked_datagrams_total",
        "datagrams",
        &["worker", "direction"],
        "Datagrams that found the socket full.",
        |status, rows| directions(status, rows, |io| io.would_block),
    ),
    Series::counter(
        "virga_socket_errors_total",
        "errors",
        &["worker", "direction", "kind"],
        "Errors of a worker's socket, by kind.",
        |status, rows| {
            for (number, one) in workers(status) {
                for (direction, io) in both(one) {
                    for (kind, count) in &io.errors {
                        rows.put([&number, direction, kind], *count);
                    }
                }
            }
        },
    ),
    Series::counter(
        "virga_socket_figures_total",
        "times",
        &["worker", "figure"],
        "What a worker's driver counts beside; `socket_lost` and `xsk_lost` are datagrams that arrived and found no room.",
        |status, rows| {
            for (number, one) in workers(status) {
                for (figure, count) in one.socket.figures.iter() {
                    if ![QUEUES, UNSENT].contains(&figure.as_str()) {
                        rows.put([&number, figure], *count);
                    }
                }
            }
        },
    ),
    Series::gauge(
        "virga_socket_xsk_queues",
        "queues",
        &["worker"],
        "Queues of NICs that a worker reads by AF_XDP.",
        |status, rows| figures(status, rows, QUEUES),
    ),
    Series::gauge(
        "virga_socket_xsk_unsent_packets",
        "packets",
        &["worker"],
        "Packets in AF_XDP queues that their NIC has not sent yet.",
        |status, rows| figures(status, rows, UNSENT),
    ),
    Series::gauge(
        "virga_socket_queued_bytes",
        "bytes",
        &["worker", "direction"],
        "Bytes that wait in the kernel's socket, with what it needs for them: sent ones for the NIC, received ones for the worker.",
        |status, rows| directions(status, rows, |io| io.queued_bytes),
    ),
    Series::gauge(
        "virga_socket_offload",
        "none",
        &["worker", "offload"],
        "1 if the kernel cuts sent runs into datagrams (`gso`) and hands over received runs (`gro`), else 0.",
        |status, rows| {
            for (number, one) in workers(status) {
                rows.put([&number, "gso"], one.socket.gso);
                rows.put([&number, "gro"], one.socket.gro);
            }
        },
    ),
];

/// Each worker with its number.
fn workers(status: &Status) -> impl Iterator<Item = (String, &OneWorker)> {
    let workers = status.workers.iter();
    workers.map(|one| (one.number.to_string(), one))
}

fn each_worker(status: &Status, rows: &mut Rows, figure: fn(&WorkerStatus) -> u64) {
    for (number, one) in workers(status) {
        rows.put([&number], figure(&one.worker));
    }
}

fn figures(status: &Status, rows: &mut Rows, name: &str) {
    for (number, one) in workers(status) {
        if let Some(&figure) = one.socket.figures.get(name) {
            rows.put([&number], figure);
        }
    }
}

fn both(one: &OneWorker) -> [(&'static str, &IoStatus); 2] {
    let socket = &one.socket;
    [("sent", &socket.sent), ("received", &socket.received)]
}

fn directions(status: &Status, rows: &mut Rows, figure: fn(&IoStatus) -> u64) {
    for (number, one) in workers(status) {
        for (direction, io) in both(one) {
            rows.put([&number, direction], figure(io));
        }
    }
}
