//! When something grows. Of every figure of every node: the slope of the least-squares line through its points after the
//! warm-up; it grows where that line climbs by more than is allowed in an hour. Of every flow: the median of its samples
//! in the last quarter after the warm-up, beside that in the first.

use crate::sample::Series;

/// The first part of a run says nothing: this share of it, and no more than so many seconds.
const WARM_UP_SHARE: f64 = 0.25;
const WARM_UP_S: f64 = 600.0;
/// In a shorter run, caches that fill would look like growth.
const JUDGED_FROM_S: f64 = 600.0;
const HOUR_S: f64 = 3_600.0;
/// A run needs so many points after the warm-up to be judged by.
const POINTS_MIN: usize = 4;

/// What is asked of a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    /// Nothing: it explains others.
    None,
    /// Its line climbs by so much an hour at most. What runs shorter than an hour may climb as much.
    Hourly(f64),
    /// The same, and where less than half an hour is judged, nothing but that it is never above this.
    Bounded(f64, f64),
    /// The last quarter's median is at most so many times the first's, and so much.
    Drift(f64, f64),
}

/// One column.
#[derive(Debug, PartialEq)]
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) what: &'static str,
    pub(crate) rule: Rule,
}

const fn figure(name: &'static str, unit: &'static str, what: &'static str, rule: Rule) -> Figure {
    Figure {
        name,
        unit,
        what,
        rule,
    }
}

/// Most MiB that the kept log may have on disk: what is kept, the segment that is the oldest, the one that is written,
/// and one that is prepared.
const LOG_MIB_MAX: f64 = 16.0 + 3.0 * 64.0;

/// Of a node.
pub(crate) static DAEMON: [Figure; 16] = [
    figure("rss_mib", "MiB", "resident memory", Rule::Hourly(2.0)),
    figure(
        "anon_mib",
        "MiB",
        "of that, memory that is no file's",
        Rule::Hourly(2.0),
    ),
    figure(
        "descriptors",
        "descriptors",
        "open descriptors",
        Rule::Hourly(2.0),
    ),
    figure(
        "threads",
        "threads",
        "threads, idle ones of a pool too",
        Rule::Hourly(4.0),
    ),
    figure(
        "cpu_s",
        "s",
        "processor time since the process began",
        Rule::None,
    ),
    figure("sessions", "sessions", "sessions", Rule::Hourly(2.0)),
    figure(
        "streams",
        "streams",
        "streams of those, both directions",
        Rule::Hourly(8.0),
    ),
    figure(
        "queued_kib",
        "KiB",
        "what those streams hold for sending",
        Rule::Hourly(512.0),
    ),
    figure(
        "map_neighbours",
        "entries",
        "pinned map of neighbours",
        Rule::Hourly(1.0),
    ),
    figure(
        "map_destinations",
        "entries",
        "pinned map of destinations",
        Rule::Hourly(1.0),
    ),
    figure(
        "map_routes",
        "entries",
        "pinned map of routes",
        Rule::Hourly(1.0),
    ),
    figure(
        "map_next_hops",
        "entries",
        "pinned map of next hops",
        Rule::Hourly(1.0),
    ),
    figure(
        "map_pairs",
        "entries",
        "pinned map of admitted pairs",
        Rule::Hourly(1.0),
    ),
    figure(
        "map_channels",
        "entries",
        "pinned map of channels",
        Rule::Hourly(1.0),
    ),
    figure(
        "log_mib",
        "MiB",
        "kept logs on disk",
        Rule::Bounded(24.0, LOG_MIB_MAX),
    ),
    figure(
        "state_kib",
        "KiB",
        "the rest of the state folder on disk",
        Rule::Hourly(256.0),
    ),
];

/// Of a flow.
pub(crate) static FLOW: [Figure; 6] = [
    figure("sent", "events", "events that were published", Rule::None),
    figure("received", "events", "events that came", Rule::None),
    figure(
        "p50_ms",
        "ms",
        "median latency of a sample",
        Rule::Drift(1.5, 1.0),
    ),
    figure(
        "p99_ms",
        "ms",
        "99th percentile of it",
        Rule::Drift(2.0, 20.0),
    ),
    figure("max_ms", "ms", "the latest event of it", Rule::None),
    figure(
        "load",
        "threads",
        "the machine's own load average over a minute",
        Rule::None,
    ),
];

/// What was found of a series that something is asked of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Finding {
    pub(crate) subject: &'static str,
    pub(crate) figure: &'static Figure,
    /// Before and after: at the ends of the line, or of the quarters.
    pub(crate) from: f64,
    pub(crate) to: f64,
    /// An hour; none where the quarters are compared.
    pub(crate) slope: Option<f64>,
    pub(crate) is_met: bool,
}

/// What is asked, in words.
pub(crate) fn asked(rule: Rule, unit: &str) -> String {
    match rule {
        Rule::None => "-".to_owned(),
        Rule::Hourly(most) => format!("at most {most} {unit} an hour"),
        Rule::Bounded(most, bound) => {
            format!("at most {most} {unit} an hour, and never above {bound} {unit}")
        }
        Rule::Drift(times, beyond) => {
            format!("last quarter at most {times} times the first, and {beyond} {unit}")
        }
    }
}

/// When the warm-up of a run that took so many seconds is over.
pub(crate) fn warm_up_s(ran_s: f64) -> f64 {
    (ran_s * WARM_UP_SHARE).min(WARM_UP_S)
}

/// Judges a series of a run that took so many seconds; none where nothing is asked, too little was seen, or the run is
/// shorter than ten minutes.
pub(crate) fn judge(series: &Series, ran_s: f64) -> Option<Finding> {
    if ran_s < JUDGED_FROM_S {
        return None;
    }
    let warm_s = warm_up_s(ran_s);
    let from = series.points.partition_point(|point| point.0 < warm_s);
    let points = &series.points[from..];
    let (first, last) = (points.first()?, points.last()?);
    let hours = (last.0 - first.0) / HOUR_S;
    if points.len() < POINTS_MIN || hours <= 0.0 {
        return None;
    }
    let line = Line::through(points);
    let finding = |from, to, slope, is_met| Finding {
        subject: series.subject,
        figure: series.figure,
        from,
        to,
        slope,
        is_met,
    };
    let climbs = |most: f64| line.slope_s * (last.0 - first.0) > most * hours.max(1.0);
    let of_line = |is_met| {
        let slope = Some(line.slope_s * HOUR_S);
        finding(line.at(first.0), line.at(last.0), slope, is_met)
    };
    match series.figure.rule {
        Rule::None => None,
        Rule::Hourly(most) => Some(of_line(!climbs(most))),
        Rule::Bounded(most, bound) => {
            let is_above = points.iter().any(|point| point.1 > bound);
            let climbs = hours >= 0.5 && climbs(most);
            Some(of_line(!is_above && !climbs))
        }
        Rule::Drift(times, beyond) => {
            let quarter = (points.len() / 4).max(1);
            let first = median(&points[..quarter]);
            let last = median(&points[points.len() - quarter..]);
            let is_met = last <= first * times + beyond;
            Some(finding(first, last, None, is_met))
        }
    }
}

fn median(points: &[(f64, f64)]) -> f64 {
    let mut values: Vec<f64> = points.iter().map(|point| point.1).collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A least-squares line.
#[derive(Clone, Copy, Debug)]
struct Line {
    middle_s: f64,
    middle: f64,
    slope_s: f64,
}

impl Line {
    #[expect(clippy::cast_precision_loss, reason = "some thousands of points")]
    fn through(points: &[(f64, f64)]) -> Self {
        let count = points.len() as f64;
        let middle_s = points.iter().map(|p| p.0).sum::<f64>() / count;
        let middle = points.iter().map(|p| p.1).sum::<f64>() / count;
        let spread: f64 = points.iter().map(|p| (p.0 - middle_s).powi(2)).sum();
        let together: f64 = points
            .iter()
            .map(|p| (p.0 - middle_s) * (p.1 - middle))
            .sum();
        Self {
            middle_s,
            middle,
            slope_s: if spread > 0.0 { together / spread } else { 0.0 },
        }
    }

    fn at(&self, at_s: f64) -> f64 {
        self.middle + self.slope_s * (at_s - self.middle_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> &'static Figure {
        let mut all = DAEMON.iter().chain(&FLOW);
        all.find(|figure| figure.name == name).unwrap()
    }

    fn series(name: &str, value: impl Fn(f64) -> f64) -> Series {
        let seconds = (0..1_440).map(|n| f64::from(n) * 5.0);
        Series {
            subject: "a",
            figure: named(name),
            points: seconds.map(|s| (s, value(s))).collect(),
        }
    }

    #[test]
    fn what_climbs_by_more_than_is_allowed_is_found_and_its_slope_is_said() {
        let found = judge(&series("rss_mib", |s| 30.0 + 3.0 * s / HOUR_S), 7_200.0).unwrap();
        assert!(!found.is_met);
        assert!((found.slope.unwrap() - 3.0).abs() < 1e-9);
        assert!((found.from - 30.5).abs() < 1e-9, "{found:?}");
        let found = judge(&series("rss_mib", |s| 30.0 + 1.9 * s / HOUR_S), 7_200.0).unwrap();
        assert!(found.is_met);
    }

    #[test]
    fn a_warm_up_and_what_comes_and_goes_are_no_growth() {
        let warm = |s: f64| if s < WARM_UP_S { s / 10.0 } else { 60.0 };
        assert!(judge(&series("rss_mib", warm), 7_200.0).unwrap().is_met);
        // A log that is cut each quarter of an hour.
        let saw = |s: f64| 40.0 + 64.0 * (s / 900.0).fract();
        assert!(judge(&series("log_mib", saw), 7_200.0).unwrap().is_met);
        let full = |s: f64| {
            if s > 7_000.0 {
                LOG_MIB_MAX + 1.0
            } else {
                100.0
            }
        };
        assert!(!judge(&series("log_mib", full), 7_200.0).unwrap().is_met);
    }

    #[test]
    fn latency_that_drifts_is_found_and_a_few_late_samples_are_not() {
        let late = |s: f64| if s % 100.0 < 5.0 { 900.0 } else { 0.4 };
        assert!(judge(&series("p50_ms", late), 7_200.0).unwrap().is_met);
        let drifts = |s: f64| 0.4 + s / 1_000.0;
        assert!(!judge(&series("p50_ms", drifts), 7_200.0).unwrap().is_met);
    }

    #[test]
    fn a_run_of_minutes_may_climb_by_what_an_hour_may_and_a_shorter_one_says_nothing() {
        let short = |climb: f64| Series {
            subject: "a",
            figure: named("descriptors"),
            points: (0..20)
                .map(|n| (f64::from(n) * 30.0, 20.0 + climb * f64::from(n)))
                .collect(),
        };
        assert!(judge(&short(0.1), 600.0).unwrap().is_met);
        assert!(!judge(&short(0.5), 600.0).unwrap().is_met);
        assert_eq!(judge(&short(0.5), 599.0), None);
        let mut few = short(0.5);
        few.points.truncate(7);
        assert_eq!(judge(&few, 600.0), None);
    }
}
