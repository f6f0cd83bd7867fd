//! What a measurement gives: entries, as a table and as JSON, and remarks on what was left out or stood in.

use std::{
    fmt::Write as _,
    sync::{Mutex, PoisonError},
};

/// What is to be known of this run's figures: which figure, and what.
static REMARKS: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// Tells of a figure what its number does not say.
pub fn remark(name: &str, said: impl Into<String>) {
    let said = said.into();
    eprintln!("{name}: {said}");
    let mut remarks = REMARKS.lock().unwrap_or_else(PoisonError::into_inner);
    remarks.push((name.to_owned(), said));
}

/// Tells that a figure is left out, and why.
pub fn skipped(name: &str, reason: impl std::fmt::Display) {
    remark(name, format!("skipped: {reason}"));
}

/// All remarks so far.
pub(crate) fn remarks() -> Vec<(String, String)> {
    REMARKS
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

/// One figure.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Entry {
    /// `measurement.figure`.
    pub name: &'static str,
    /// Ours, in `unit`.
    pub ours: f64,
    /// The reference's, in `unit`; none where there is nothing to compare with.
    pub reference: Option<f64>,
    /// Unit of ours and reference.
    pub unit: &'static str,
    /// Ours over the reference.
    pub ratio: Option<f64>,
    /// What is asked: `ours` at most of a cost, `ratio` at least of a rate; none where nothing is asked.
    pub limit: Option<f64>,
    /// Of what was sent for `ours`, the share that did not come.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<f64>,
    /// The lowest and the highest round of what is asked of: `ours` of a cost, `ratio` of a rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<[f64; 2]>,
    /// The arithmetic that the limit comes of, or why there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
}

impl Entry {
    /// An entry, its ratio computed.
    #[must_use]
    pub fn new(name: &'static str, unit: &'static str, ours: f64) -> Self {
        Self {
            name,
            ours,
            reference: None,
            unit,
            ratio: None,
            limit: None,
            lost: None,
            spread: None,
            because: None,
        }
    }

    /// With the share of what was sent that did not come.
    #[must_use]
    pub fn lost(self, lost: f64) -> Self {
        Self {
            lost: Some(lost),
            ..self
        }
    }

    /// With what the rounds gave, each for itself.
    #[must_use]
    pub fn spread(self, rounds: &[f64]) -> Self {
        let low = rounds.iter().copied().reduce(f64::min);
        let high = rounds.iter().copied().reduce(f64::max);
        Self {
            spread: low.zip(high).map(|(low, high)| [low, high]),
            ..self
        }
    }

    /// Whether it is a rate, of which a ratio is asked, and not a cost.
    fn is_rate(&self) -> bool {
        self.unit.ends_with("/s")
    }

    /// Whether it is as asked; `None` where nothing is asked.
    pub(crate) fn is_met(&self) -> Option<bool> {
        let limit = self.limit?;
        Some(match self.ratio {
            Some(ratio) if self.is_rate() => ratio >= limit,
            _ => self.ours <= limit,
        })
    }

    /// What is asked of what, and whether it is met.
    pub(crate) fn asked(&self) -> String {
        let (Some(limit), Some(is_met)) = (self.limit, self.is_met()) else {
            return "-".to_owned();
        };
        let what = if self.is_rate() {
            format!("ratio at least {}", number(limit))
        } else {
            format!("at most {}", number(limit))
        };
        format!("{what}: {}", if is_met { "met" } else { "missed" })
    }

    /// Beside a reference.
    #[must_use]
    pub fn beside(self, reference: f64) -> Self {
        let ratio = Some(self.ours / reference).filter(|r| r.is_finite());
        Self {
            reference: Some(reference),
            ratio,
            ..self
        }
    }

    /// With a ratio that is the median of the rounds' own.
    #[must_use]
    pub fn ratio(self, ratio: f64) -> Self {
        Self {
            ratio: Some(ratio),
            ..self
        }
    }

    /// With what is asked of it.
    #[must_use]
    pub fn limit(self, limit: f64) -> Self {
        Self {
            limit: Some(limit),
            ..self
        }
    }

    /// With the arithmetic of what is asked, or why nothing is.
    #[must_use]
    pub fn because(self, because: impl Into<String>) -> Self {
        Self {
            because: Some(because.into()),
            ..self
        }
    }
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum Skip {
    /// This machine does not have what it takes.
    #[error("{0}")]
    Missing(String),
    /// It went wrong.
    #[error("{0}")]
    Failed(String),
}

/// A failure, from whatever error.
#[must_use]
pub fn failed(error: impl std::fmt::Display) -> Skip {
    Skip::Failed(error.to_string())
}

/// For people.
#[must_use]
pub fn table(entries: &[Entry]) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "{:<34} {:>12} {:>12} {:>8} {:>8} {:<31} unit",
        "figure", "ours", "reference", "ratio", "lost", " asked"
    );
    for e in entries {
        let _ = writeln!(
            out,
            "{:<34} {:>12} {:>12} {:>8} {:>8}  {:<30} {}",
            e.name,
            number(e.ours),
            cell(e.reference),
            cell(e.ratio),
            percent(e.lost),
            e.asked(),
            e.unit
        );
    }
    for (name, because) in reasons(entries) {
        let _ = writeln!(out, "{name}: {because}");
    }
    out
}

/// What says where its limit comes from, or why it has none.
pub(crate) fn reasons(entries: &[Entry]) -> impl Iterator<Item = (&'static str, &str)> {
    entries
        .iter()
        .filter_map(|entry| Some((entry.name, entry.because.as_deref()?)))
}

/// A figure, or a dash.
pub(crate) fn cell(figure: Option<f64>) -> String {
    figure.map_or_else(|| "-".to_owned(), number)
}

/// A share as a percentage, or a dash.
pub(crate) fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0))
}

/// A figure with as many digits as it is good for.
pub(crate) fn number(figure: f64) -> String {
    if figure.abs() >= 1_000.0 {
        format!("{figure:.0}")
    } else {
        format!("{figure:.2}")
    }
}

/// The table; or the JSON, alone on standard output so that other programs read it, with the table beside it for people.
pub fn print(entries: &[Entry], is_json: bool) {
    if is_json {
        eprint!("{}", table(entries));
        println!("{}", json(entries));
    } else {
        print!("{}", table(entries));
    }
}

/// For machines: one line.
#[must_use]
pub fn json(entries: &[Entry]) -> String {
    serde_json::to_string(entries).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_asked_to_be_at_most_and_rates_to_reach_a_ratio() {
        let cost = Entry::new("a", "ns", 22.0);
        assert_eq!(cost.asked(), "-");
        assert_eq!(cost.clone().limit(22.0).asked(), "at most 22.00: met");
        let beside = cost.beside(1.0).limit(20.0);
        assert_eq!(beside.asked(), "at most 20.00: missed");
        let rate = Entry::new("b", "million packets/s", 7.0).beside(10.0);
        assert_eq!(rate.clone().limit(0.7).asked(), "ratio at least 0.70: met");
        assert_eq!(rate.limit(0.9).is_met(), Some(false));
    }

    #[test]
    fn json_has_the_keys_that_are_read_elsewhere() {
        let entry = Entry::new("a", "ns", 22.0).limit(20.0);
        let bare =
            r#"[{"name":"a","ours":22.0,"reference":null,"unit":"ns","ratio":null,"limit":20.0}]"#;
        assert_eq!(json(std::slice::from_ref(&entry)), bare);
        let more = entry.lost(0.25).spread(&[3.0, 1.0, 2.0]).because("4 x 5");
        let more = [more];
        assert!(json(&more).contains(r#""lost":0.25,"spread":[1.0,3.0],"because":"4 x 5"}"#));
        assert!(table(&more).ends_with("\na: 4 x 5\n"));
    }
}
