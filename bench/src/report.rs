//! What a measurement gives: entries, as a table and as JSON.

use std::fmt::Write as _;

/// One figure.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Entry {
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
}

impl Entry {
    /// An entry, its ratio computed.
    pub(crate) fn new(name: &'static str, unit: &'static str, ours: f64) -> Self {
        Self {
            name,
            ours,
            reference: None,
            unit,
            ratio: None,
            limit: None,
        }
    }

    /// Beside a reference.
    pub(crate) fn beside(self, reference: f64) -> Self {
        let ratio = Some(self.ours / reference).filter(|r| r.is_finite());
        Self {
            reference: Some(reference),
            ratio,
            ..self
        }
    }

    /// With a ratio that is the median of the rounds' own.
    pub(crate) fn ratio(self, ratio: f64) -> Self {
        Self {
            ratio: Some(ratio),
            ..self
        }
    }

    /// With what is asked of it.
    pub(crate) fn limit(self, limit: f64) -> Self {
        Self {
            limit: Some(limit),
            ..self
        }
    }
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Skip {
    /// This machine does not have what it takes.
    #[error("{0}")]
    Missing(String),
    /// It went wrong.
    #[error("{0}")]
    Failed(String),
}

/// A failure, from whatever error.
pub(crate) fn failed(error: impl std::fmt::Display) -> Skip {
    Skip::Failed(error.to_string())
}

/// For people.
pub(crate) fn table(entries: &[Entry]) -> String {
    let mut out = String::new();
    let cell = |figure: Option<f64>| figure.map_or_else(|| "-".to_owned(), number);
    let _ = writeln!(
        out,
        "{:<34} {:>12} {:>12} {:>8} {:>10}  unit",
        "figure", "ours", "reference", "ratio", "limit"
    );
    for e in entries {
        let _ = writeln!(
            out,
            "{:<34} {:>12} {:>12} {:>8} {:>10}  {}",
            e.name,
            number(e.ours),
            cell(e.reference),
            e.ratio
                .map_or_else(|| "-".to_owned(), |r| format!("{r:.2}")),
            cell(e.limit),
            e.unit
        );
    }
    out
}

/// A figure with as many digits as it is good for.
pub(crate) fn number(figure: f64) -> String {
    if figure.abs() >= 1_000.0 {
        format!("{figure:.0}")
    } else {
        format!("{figure:.2}")
    }
}

/// For machines: one line.
pub(crate) fn json(entries: &[Entry]) -> String {
    serde_json::to_string(entries).unwrap_or_default()
}
