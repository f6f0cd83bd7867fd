//! `virga-count`: instructions a call of what every packet meets, counted by callgrind and held against a
//! recorded budget. Times are the machine's, and noisy; instructions are the code's own.
//!
//! - [`operations`]: what is counted. - [`callgrind`]: how. - [`budget`]: what it may be.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;

mod budget;
mod callgrind;
mod operations;

use budget::{Budget, Counts, Judgement};

/// Makes this program run the operations: how it calls itself under callgrind.
const RUN: &str = "--run";

/// Counts instructions a call of what every packet meets, and holds them against the recorded budget.
#[derive(Debug, Parser)]
struct Options {
    /// Record the counts as the budget of this environment.
    #[arg(long)]
    record: bool,
    /// The recorded budget.
    #[arg(long, default_value_os_t = default_path())]
    budget: PathBuf,
    /// Run the operations and count nothing.
    #[arg(long, hide = true)]
    run: bool,
}

fn default_path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("budget.toml")
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.run {
        operations::run();
        return ExitCode::SUCCESS;
    }
    match check(&options) {
        Ok(code) => code,
        Err(reason) => {
            eprintln!("virga-count: {reason}");
            ExitCode::FAILURE
        }
    }
}

/// Why nothing can be held against anything, where that is nobody's fault.
fn obstacle() -> Option<String> {
    if !callgrind::is_there() {
        return Some("valgrind is not installed: scripts/setup installs it".to_owned());
    }
    // How it is linked changes none of the functions that are counted.
    let flags = env!("BUILT_WITH").replace("-C target-feature=+crt-static", "");
    if !flags.trim().is_empty() {
        return Some(format!(
            "built with RUSTFLAGS ({flags}), which change the code"
        ));
    }
    None
}

fn check(options: &Options) -> Result<ExitCode, String> {
    if cfg!(debug_assertions) {
        return Err("built without optimisation: build with --release".to_owned());
    }
    let environment = budget::environment();
    let mut budget = Budget::read(&options.budget)?;
    if let Some(reason) = obstacle() {
        println!("skipped: instruction counts: {reason}");
        return Ok(ExitCode::SUCCESS);
    }
    let counted = callgrind::count(RUN)?;
    if options.record {
        let before = budget.of(&environment).cloned().unwrap_or_default();
        print(&environment, &counted, &before);
        let counts = operations::NAMES
            .map(str::to_owned)
            .into_iter()
            .zip(counted);
        budget.record(environment, Counts::from_iter(counts));
        budget.write(&options.budget)?;
        println!("recorded in {}", options.budget.display());
        return Ok(ExitCode::SUCCESS);
    }
    let Some(recorded) = budget.of(&environment) else {
        compare(&environment, &counted, &budget);
        return Ok(ExitCode::SUCCESS);
    };
    if print(&environment, &counted, recorded) {
        return Ok(ExitCode::SUCCESS);
    }
    Err(format!(
        "counts and budget ({}) differ; to record anew: \
         cargo run --release -p virga-bench --bin virga-count -- --record",
        options.budget.display()
    ))
}

/// Holds counts against another environment's budget, for want of an own one: what is far above is told, and is no
/// failure.
fn compare(environment: &str, counted: &[f64], budget: &Budget) {
    println!(
        "skipped: instruction counts: no budget is recorded for {environment}: --record makes one"
    );
    let Some((nearest, recorded)) = budget.nearest(environment) else {
        return;
    };
    for (name, &count) in operations::NAMES.iter().zip(counted) {
        if let Some(&budget) = recorded.get(*name)
            && !Judgement::is_near(count, budget)
        {
            println!(
                "warning: {name}: {count:.1} instructions a call, where {nearest} has {budget:.1}"
            );
        }
    }
}

/// Prints counts beside their budget; gives whether all are within it.
fn print(environment: &str, counted: &[f64], recorded: &Counts) -> bool {
    println!("instructions a call ({environment}):");
    println!("{:<20} {:>10} {:>10}", "operation", "counted", "budget");
    let mut is_held = true;
    for (name, &count) in operations::NAMES.iter().zip(counted) {
        let budget = recorded.get(*name).copied();
        let judgement = Judgement::of(count, budget);
        is_held &= judgement == Judgement::Within;
        let budget = budget.map_or_else(|| "-".to_owned(), |b| format!("{b:.1}"));
        println!("{name:<20} {count:>10.1} {budget:>10}  {judgement}");
    }
    is_held
}
