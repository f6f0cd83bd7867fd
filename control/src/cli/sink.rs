//! `virga sink`: what arrives of generated traffic.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use virga_ebpf::{limits::UDP_PORT, workload::FLOWS_MAX};

use super::{Failure, print_json};
use crate::generate::live::{Measured, Mode, Sink};

/// Count and drop generated packets at an interface: received, lost, reordered, how late.
///
/// Everything that is no mesh packet passes. Loss and order are by each flow's sequence, from its first on: start the sink
/// first. Latency is of packets sent with --stamp on the same machine. As root.
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
    /// How long; an interrupt (Ctrl-C) ends it sooner.
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
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(arguments.seconds)) => Ok(()),
            stopped = tokio::signal::ctrl_c() => Ok(stopped?),
        }
    })?;
    let measured = sink.read()?;
    if arguments.json {
        return print_json(&measured);
    }
    Ok(io::stdout().write_all(table(&measured).as_bytes())?)
}

fn table(measured: &Measured) -> String {
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
