//! What is read of the nodes and the flows every few seconds, kept as series and written to two CSV files as it comes.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::PoisonError,
};

use virga::{mesh::blocking::Mesh, nic::fill};

use crate::{
    load::Shared,
    stage::DESTINATIONS,
    verdict::{DAEMON, FLOW, Figure},
};

/// Samples of which one asks how full the maps are: each entry of each is a system call.
const MAPS_EVERY: u64 = 6;
const KIB: f64 = 1_024.0;
const MS: f64 = 1e6;

/// What a row is of.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Daemon,
    Flow,
}

/// One figure of one node or flow, over time.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub(crate) subject: &'static str,
    pub(crate) figure: &'static Figure,
    /// Seconds since the beginning, and the value.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Everything that was read.
#[derive(Debug, Default)]
pub(crate) struct Book {
    series: BTreeMap<(&'static str, &'static str), Series>,
    files: Option<[File; 2]>,
}

impl Book {
    /// A book that is also written to `daemons.csv` and `flows.csv` in a folder.
    ///
    /// # Errors
    /// When a file cannot be made.
    pub(crate) fn new(folder: Option<&Path>) -> io::Result<Self> {
        let Some(folder) = folder else {
            return Ok(Self::default());
        };
        fs::create_dir_all(folder)?;
        let begin = |name: &str, subject: &str, figures: &[Figure]| {
            let mut file = File::create(folder.join(name))?;
            let names: Vec<&str> = figures.iter().map(|f| f.name).collect();
            writeln!(file, "seconds,{subject},{}", names.join(","))?;
            Ok::<_, io::Error>(file)
        };
        Ok(Self {
            series: BTreeMap::new(),
            files: Some([
                begin("daemons.csv", "daemon", &DAEMON)?,
                begin("flows.csv", "flow", &FLOW)?,
            ]),
        })
    }

    /// All series, by figure and then subject.
    pub(crate) fn series(&self) -> impl Iterator<Item = &Series> {
        self.series.values()
    }

    fn note(
        &mut self,
        at_s: f64,
        subject: &'static str,
        kind: Kind,
        values: &[Option<f64>],
    ) -> io::Result<()> {
        let figures = match kind {
            Kind::Daemon => &DAEMON[..],
            Kind::Flow => &FLOW[..],
        };
        let mut line = format!("{at_s:.1},{subject}");
        for (figure, value) in figures.iter().zip(values) {
            line.push(',');
            let Some(value) = value else { continue };
            line += &format!("{:.3}", value);
            // A whole number has no digits behind the point.
            line.truncate(line.trim_end_matches('0').trim_end_matches('.').len());
            let series = self.series.entry((figure.name, subject));
            let series = series.or_insert_with(|| Series {
                subject,
                figure,
                points: Vec::new(),
            });
            series.points.push((at_s, *value));
        }
        match (&mut self.files, kind) {
            (Some([daemons, _]), Kind::Daemon) => writeln!(daemons, "{line}"),
            (Some([_, flows]), Kind::Flow) => writeln!(flows, "{line}"),
            (None, _) => Ok(()),
        }
    }
}

/// Reads everything at its time.
#[derive(Debug)]
pub(crate) struct Sampler<'a> {
    shared: &'a Shared,
    /// Each node's socket, the name that its pins go by, and its folder.
    nodes: BTreeMap<&'static str, (PathBuf, String, PathBuf)>,
    taken: u64,
    ticks_per_second: f64,
}

impl<'a> Sampler<'a> {
    pub(crate) fn new(
        shared: &'a Shared,
        nodes: BTreeMap<&'static str, (PathBuf, String, PathBuf)>,
    ) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "100")]
        let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
        Self {
            shared,
            nodes,
            taken: 0,
            ticks_per_second,
        }
    }

    /// Reads everything once; a node that has ended without being asked is a failure.
    ///
    /// # Errors
    /// When the files cannot be written on.
    pub(crate) fn take(&mut self, book: &mut Book) -> io::Result<()> {
        let at_s = self.shared.elapsed().as_secs_f64();
        let is_maps = self.taken.is_multiple_of(MAPS_EVERY);
        self.taken += 1;
        let lives = self.lives();
        for (&name, &pid) in &lives {
            match self.daemon(name, pid, is_maps) {
                Some(values) => book.note(at_s, name, Kind::Daemon, &values)?,
                // Killed meanwhile by who may, or started again.
                None if self.lives().get(name) != lives.get(name) => {}
                None => self.ended(name),
            }
        }
        for (&name, flow) in &self.shared.flows {
            let late = flow.take();
            let (sent, received) = flow.counts();
            let at = |quantile: f64| {
                (!late.is_empty()).then(|| number(late.value_at_quantile(quantile)) / MS)
            };
            let values = [
                Some(number(sent)),
                Some(number(received)),
                at(0.5),
                at(0.99),
                at(1.0),
                load_average(),
            ];
            book.note(at_s, name, Kind::Flow, &values)?;
        }
        Ok(())
    }

    fn lives(&self) -> BTreeMap<&'static str, u32> {
        let lives = self.shared.lives.lock();
        lives.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn ended(&self, name: &'static str) {
        let lives = self.shared.lives.lock();
        lives.unwrap_or_else(PoisonError::into_inner).remove(name);
        let log = self
            .nodes
            .get(name)
            .map(|(_, _, folder)| folder.join("log"));
        let log = log
            .and_then(|log| fs::read_to_string(log).ok())
            .unwrap_or_default();
        let mut last: Vec<&str> = log.lines().rev().take(5).collect();
        last.reverse();
        self.shared.fail(format!(
            "the node {name} has ended, and nobody asked it to; its last words:\n{}",
            last.join("\n")
        ));
    }

    /// In the order of [`DAEMON`]; none where the process is gone.
    fn daemon(&self, name: &str, pid: u32, is_maps: bool) -> Option<Vec<Option<f64>>> {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let status = fs::read_to_string(proc.join("status")).ok()?;
        let field = |wanted: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(wanted))?;
            line.split_whitespace().next()?.parse::<f64>().ok()
        };
        // A process that has ended and was not waited for has no memory.
        let rss = field("VmRSS:")?;
        let descriptors = fs::read_dir(proc.join("fd")).ok()?.count();
        let stat = fs::read_to_string(proc.join("stat")).ok()?;
        let after_name = stat.rsplit_once(')')?.1;
        let ticks = after_name.split_whitespace().skip(11).take(2);
        let ticks: f64 = ticks.filter_map(|n| n.parse::<f64>().ok()).sum();
        let (socket, pins, folder) = self.nodes.get(name)?;
        // One that is being started or ended does not answer.
        let told = Mesh::open(socket).and_then(|mesh| mesh.status()).ok();
        let told = told.as_ref();
        let sum = |of: fn(&virga::api::status::SessionStatus) -> u64| {
            told.map(|t| number(t.sessions.iter().map(of).sum()))
        };
        let fill = is_maps.then(|| fill::of(pins, DESTINATIONS).ok()).flatten();
        let map = |name: &str| {
            let found = fill.as_ref()?.iter().find(|f| f.map == name);
            found.map(|f| f64::from(f.used))
        };
        Some(vec![
            Some(rss / KIB),
            field("RssAnon:").map(|kib| kib / KIB),
            Some(number(descriptors as u64)),
            field("Threads:"),
            Some(ticks / self.ticks_per_second),
            told.map(|t| number(t.sessions.len() as u64)),
            sum(|s| (s.streams_sending + s.streams_receiving) as u64),
            sum(|s| s.queued_bytes).map(|bytes| bytes / KIB),
            map("neighbours"),
            map("destinations"),
            map("routes"),
            map("next_hops"),
            map("pairs"),
            map("channels"),
            Some(disk_kib(&folder.join("state").join("logs")) / KIB),
            Some(disk_kib(&folder.join("state")))
                .map(|all| all - disk_kib(&folder.join("state").join("logs"))),
        ])
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn number(count: u64) -> f64 {
    count as f64
}

/// KiB on disk below a folder, as the file system counts them.
fn disk_kib(folder: &Path) -> f64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let each = entries.map(|entry| match entry.metadata() {
        Ok(found) if found.is_dir() => disk_kib(&entry.path()),
        Ok(found) => number(found.blocks()) / 2.0,
        Err(_) => 0.0,
    });
    each.fold(0.0, |all, one| all + one)
}

/// Of the whole machine, over a minute: whether others were busy.
fn load_average() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}
