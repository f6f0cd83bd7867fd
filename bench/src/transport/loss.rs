//! A reliable stream over a simulated path that loses, beside QUIC over the same; and over one that reorders.

use std::process::Command;

use virga_bench::lossy::{self, goodput};

use crate::{
    report::{self, Entry, Skip, failed},
    rounds::median,
};

/// Each loses other datagrams.
const SEEDS: [u64; 5] = [1, 2, 3, 4, 5];
const UNIT: &str = "simulated MB/s";

/// Measures. Without the other program QUIC is left out.
pub(super) fn measure() -> Result<Vec<Entry>, Skip> {
    let of = |weather| SEEDS.map(|seed| goodput(weather, seed) / 1e6);
    let (calm, lossy, overtaking) = (of(lossy::CALM), of(lossy::LOSSY), of(lossy::OVERTAKING));
    let mut loss = Entry::new("transport.loss_1pct", UNIT, median(&lossy));
    match quic() {
        Ok(theirs) => {
            let ratios: Vec<f64> = lossy.iter().zip(&theirs).map(|(a, b)| a / b).collect();
            loss = loss
                .beside(median(&theirs))
                .ratio(median(&ratios))
                .limit(1.0);
        }
        Err(Skip::Missing(reason)) => {
            report::skipped("QUIC beside transport.loss_1pct", reason);
        }
        Err(failure) => return Err(failure),
    }
    let ratios: Vec<f64> = overtaking.iter().zip(&calm).map(|(a, b)| a / b).collect();
    let reorder = Entry::new("transport.reorder_5pct", UNIT, median(&overtaking))
        .beside(median(&calm))
        .ratio(median(&ratios));
    Ok(vec![loss, reorder])
}

/// What quinn-proto carries, as `virga-peers-path` says, in MB/s for each seed.
fn quic() -> Result<Vec<f64>, Skip> {
    let here = std::env::current_exe().map_err(failed)?;
    let program = here.with_file_name("virga-peers-path");
    let output = Command::new(&program)
        .args(SEEDS.map(|seed| seed.to_string()))
        .output()
        .map_err(|e| Skip::Missing(format!("{}: {e}", program.display())))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let rates: Result<Vec<f64>, _> = said.lines().map(str::parse).collect();
    match rates {
        Ok(rates) if output.status.success() && rates.len() == SEEDS.len() => {
            Ok(rates.iter().map(|rate| rate / 1e6).collect())
        }
        _ => Err(failed(format!(
            "{}: {said}{}",
            program.display(),
            String::from_utf8_lossy(&output.stderr)
        ))),
    }
}
