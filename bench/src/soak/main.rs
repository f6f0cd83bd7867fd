//! `virga-soak`: a small mesh of real nodes under mixed traffic, faults and churn for a chosen time, and whether anything
//! grows. `scripts/soak` builds and runs it.
//!
//! - [`stage`]: the hosts, their links and files.
//! - [`load`]: what is published, and what its receivers hold it to.
//! - [`faults`]: what is broken, changed and attacked meanwhile.
//! - [`sample`]: what is read every few seconds; [`verdict`]: when it grows; [`page`]: the results page.

use std::{
    collections::BTreeMap,
    error::Error,
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use clap::Parser;

mod faults;
#[path = "../../../control/examples/demo/hosts.rs"]
mod hosts;
#[path = "../interrupt.rs"]
mod interrupt;
mod load;
mod page;
mod sample;
mod stage;
mod verdict;

use faults::Faults;
use hosts::Hosts;
use load::Shared;
use page::Outcome;
use sample::{Book, Sampler};
use virga_bench::report;

const HOUR_S: f64 = 3_600.0;
/// Between two samples at most, and in a short run this share of it.
const SAMPLE_S: f64 = 5.0;
const SAMPLES_MIN: f64 = 40.0;
/// Between two faults at most, and in a short run this share of it.
const PAUSE_S: f64 = 5.0;
const PAUSES_MIN: f64 = 100.0;
/// How often it is said how it stands.
const SAY_S: f64 = 60.0;

/// Runs a small mesh under mixed traffic, faults and churn, and says whether anything grows: exit code 1 then, or where
/// an event is lost that may not be. An interrupt ends it early, with the verdict so far.
#[derive(Debug, Parser)]
struct Options {
    /// How long, in hours. Default: two.
    #[arg(long, conflicts_with = "seconds")]
    hours: Option<f64>,
    /// How long, in seconds.
    #[arg(long)]
    seconds: Option<f64>,
    /// Write a results page into this folder: Markdown, plots as SVG, and every sample as CSV.
    #[arg(long, value_name = "FOLDER")]
    page: Option<PathBuf>,
    /// The `virga` that the nodes run. Default: the one beside this program.
    #[arg(long)]
    virga: Option<PathBuf>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    if !rustix::process::geteuid().is_root() {
        println!("skipped: namespaces and XDP need root");
        return ExitCode::from(3);
    }
    if let Err(problem) = interrupt::listen() {
        eprintln!("soak: signals cannot be listened for: {problem}");
        return ExitCode::FAILURE;
    }
    match soak(&options) {
        Ok(outcome) => {
            print!("{}", page::table(&outcome.findings));
            println!("soak: {}", outcome.verdict());
            if outcome.is_flat() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(problem) => {
            eprintln!("soak: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn beside() -> Result<PathBuf, Box<dyn Error>> {
    let virga = std::env::current_exe()?.with_file_name("virga");
    if virga.exists() {
        return Ok(virga);
    }
    Err(format!("{} is not built: name one with --virga", virga.display()).into())
}

fn soak(options: &Options) -> Result<Outcome, Box<dyn Error>> {
    let wanted_s = options
        .seconds
        .unwrap_or_else(|| options.hours.unwrap_or(2.0) * HOUR_S);
    let length = Duration::try_from_secs_f64(wanted_s)?;
    let virga = options.virga.clone().map_or_else(beside, Ok)?;
    let mut book = Book::new(options.page.as_deref())?;
    let mut hosts = Hosts::new("virga-soak", &virga)?;
    stage::build(&mut hosts)?;
    let sockets = stage::sockets(&hosts);
    let nodes = stage::HOSTS.map(|host| {
        let folder = hosts.folder.join(host);
        (host, (hosts.socket(host), hosts.node_name(host), folder))
    });
    let shared = Shared::new();
    let mut sampler = Sampler::new(&shared, nodes.into());
    let hosts = Mutex::new(hosts);
    let pause = Duration::from_secs_f64((wanted_s / PAUSES_MIN).min(PAUSE_S));
    let faults = Faults::new(&hosts, &shared, &sockets, pause);
    for host in stage::HOSTS.into_iter().filter(|host| *host != "guest") {
        faults.start(host)?;
    }
    faults.admit_publisher()?;
    let every = Duration::from_secs_f64((wanted_s / SAMPLES_MIN).min(SAMPLE_S));
    let rounds = thread::scope(|scope| {
        let ending = End(&shared, &hosts);
        load::start(scope, &shared, &sockets)?;
        let watching = scope.spawn(|| {
            let watched = watch(&shared, &mut sampler, &mut book, (length, every));
            shared.calm();
            watched
        });
        // On this thread: a node that is started ends with the thread that did so.
        let rounds = faults.run();
        shared.end();
        shared.await_ends();
        let watched = watching
            .join()
            .map_err(|_| "the thread that samples has ended")?;
        drop(ending);
        watched?;
        Ok::<u64, Box<dyn Error>>(rounds)
    })?;
    let ran_s = shared.elapsed().as_secs_f64();
    shared.judge_flows();
    verify_log(&hosts, &shared);
    let findings = book
        .series()
        .filter_map(|series| verdict::judge(series, ran_s));
    let outcome = Outcome {
        ran_s,
        wanted_s,
        rounds,
        findings: findings.collect(),
        failures: shared.failures(),
    };
    if let Some(folder) = &options.page {
        page::write(folder, &outcome, &book, &shared)?;
    }
    Ok(outcome)
}

/// Ends every node, so that whoever still waits for one does not wait on.
struct End<'a>(&'a Shared, &'a Mutex<Hosts>);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.calm();
        self.0.end();
        self.0.go();
        let mut hosts = self.1.lock().unwrap_or_else(PoisonError::into_inner);
        for host in stage::HOSTS {
            match hosts.stop(host) {
                Ok(true) => {}
                Ok(false) => self.0.fail(not_well(host, &hosts.log(host))),
                Err(error) => self.0.fail(format!("{host} cannot be stopped: {error}")),
            }
        }
    }
}

/// That a node did not end well, with its last words.
fn not_well(host: &str, log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let last = lines[lines.len().saturating_sub(5)..].join("\n");
    format!("{host} was asked to stop and did not end well; its last words:\n{last}")
}

/// Samples until the time is over, or an interrupt comes.
fn watch(
    shared: &Shared,
    sampler: &mut Sampler,
    book: &mut Book,
    (length, every): (Duration, Duration),
) -> io::Result<()> {
    let (mut samples, mut said) = (0_u32, 0.0);
    let begin = shared.elapsed();
    while shared.elapsed() - begin < length && interrupt::check().is_ok() {
        sampler.take(book)?;
        samples += 1;
        let at_s = shared.elapsed().as_secs_f64();
        if at_s - said >= SAY_S {
            said = at_s;
            say(at_s, book, shared);
        }
        let next = (begin + every * samples).min(begin + length);
        while shared.elapsed() < next && interrupt::check().is_ok() {
            thread::sleep(Duration::from_millis(50).min(next.saturating_sub(shared.elapsed())));
        }
    }
    Ok(())
}

fn say(at_s: f64, book: &Book, shared: &Shared) {
    let last: BTreeMap<&str, f64> = book
        .series()
        .filter(|series| series.figure.name == "rss_mib")
        .filter_map(|series| Some((series.subject, series.points.last()?.1)))
        .collect();
    let memory: Vec<String> = last
        .iter()
        .map(|(name, mib)| format!("{name} {mib:.1}"))
        .collect();
    let (sent, received) = shared.flow("reliable").counts();
    println!(
        "{at_s:>6.0} s: {received} of {sent} reliable events; MiB: {}; {} failures",
        memory.join(", "),
        shared.failures().1
    );
}

/// Reads every byte and every signature of what was kept; the node has ended.
fn verify_log(hosts: &Mutex<Hosts>, shared: &Shared) {
    let hosts = hosts.lock().unwrap_or_else(PoisonError::into_inner);
    let logs = hosts.folder.join("keeper").join("state").join("logs");
    let verified = |logs: &Path| {
        let virga = hosts.virga().to_string_lossy().into_owned();
        let name = load::channel("kept");
        hosts.run(
            "keeper",
            &virga,
            &["log", "verify", &name, "--logs", &logs.to_string_lossy()],
        )
    };
    if let Err(error) = verified(&logs) {
        shared.fail(format!("kept: the log is not as it was written: {error}"));
    }
}
