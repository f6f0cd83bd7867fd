//! `virga sink`: what arrives of generated traffic.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use tokio::signal::unix::{SignalKind, signal};
use virga_ebpf::{limits::UDP_PORT, workload::FLOWS_MAX};

use super::{Failure, print_json};
use crate::generate::live::{Measured, Mode, Sink};

/// Count and drop generated packets at an interface: received, lost, reordered, how late.
///
/// Everything that is no mesh packet passes. `lost` are the gaps before the last packet that came of each flow, from its
/// first sequence on: start the sink first. What did not come after that, or of a flow of which nothing came, shows
/// only beside what was sent: --sent. Latency is of packets sent with --stamp on the same machine. As root.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Arguments {
    /// The interface; it must run no other XDP program.
    #[arg(long)]
    interface: String,
    /// The mesh's UDP port.
    #[arg(long, default_value_t = UDP_PORT)]
    port: u16,
    /// How many flows are followed, 8 bytes each.
    #[arg(long, default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1..=i64::from(FLOWS_MAX)))]
    flows: u32,
    /// In the driver, or after it.
    #[arg(long, value_enum, default_value = "native")]
    mode: Mode,
    /// Packets that were sent with the workload's origin: says how many of them did not come.
    #[arg(long, value_name = "N")]
    sent: Option<u64>,
    /// How long; an interrupt (Ctrl-C) or SIGTERM ends it sooner.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: u64,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// Counts, then says what it was.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments {
        interface,
        port,
        flows,
        mode,
        ..
    } = arguments;
    let sink = Sink::attach(interface, *port, *flows, *mode)?;
    super::block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(arguments.seconds)) => Ok(()),
            stopped = tokio::signal::ctrl_c() => Ok(stopped?),
            _ = terminated.recv() => Ok(()),
        }
    })?;
    let measured = sink.read()?;
    let missing = arguments
        .sent
        .map(|sent| sent.saturating_sub(measured.received));
    if arguments.json {
        return print_json(&Report { measured, missing });
    }
    Ok(io::stdout().write_all(table(&measured, missing).as_bytes())?)
}

#[derive(serde::Serialize)]
struct Report {
    #[serde(flatten)]
    measured: Measured,
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<u64>,
}

fn table(measured: &Measured, missing: Option<u64>) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| text += &format!("{name:<12} {value:>14}\n");
    for (name, count) in [
        ("received", measured.received),
        ("lost", measured.lost),
        ("reordered", measured.reordered),
        ("untracked", measured.untracked),
        ("strangers", measured.strangers),
        ("others", measured.others),
    ] {
        line(name, count.to_string());
    }
    if let Some(missing) = missing {
        line("missing", missing.to_string());
    }
    if let Some(latency) = measured.latency {
        for (name, ns) in [
            ("p50", latency.p50_ns),
            ("p99", latency.p99_ns),
            ("p99.9", latency.p999_ns),
            ("at most", latency.max_ns),
        ] {
            let us = Duration::from_nanos(ns).as_secs_f64() * 1e6;
            line(name, format!("{us:.1} us"));
        }
    }
    text
}
