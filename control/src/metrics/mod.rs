//! The node's figures as Prometheus reads them, and its health, over HTTP.
//!
//! - [`table`]: every series there is: its name, unit, labels and help, and where in a
//!   [`Status`] its values are.
//! - [`text`]: a status as the text that a scrape gets.
//! - [`page`]: the same table as a page to read.
//! - [`health`]: what keeps a node from being ready.
//! - [`server`]: answers for them, at an address of its own.
//!
//! A scrape is what `virga status` shows: the workers copy their counters out between two turns, the NIC's
//! counters are summed over the CPUs, and nothing of it happens while nobody asks.

pub mod health;
pub mod page;
pub mod server;
pub mod table;
pub mod text;

use crate::api::status::{Status, TimesStatus};
use std::{collections::BTreeMap, fmt};

/// One series: its name, what it means, and where its values are.
#[derive(Clone, Copy, Debug)]
pub struct Series {
    /// Its full name, as it is queried.
    pub name: &'static str,
    /// Whether it only grows.
    pub kind: Kind,
    /// What its values count.
    pub unit: &'static str,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it is, as a sentence.
    pub help: &'static str,
    read: fn(&Status, &mut Rows),
}

/// Whether a series only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, and begins anew with the daemon (or what the help names).
    Counter,
    /// It goes up and down.
    Gauge,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
        })
    }
}

impl Series {
    /// Its values now.
    #[must_use]
    pub fn rows(&self, status: &Status) -> Rows {
        let mut rows = Rows::default();
        (self.read)(status, &mut rows);
        rows
    }

    const fn counter(
        name: &'static str,
        unit: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
        read: fn(&Status, &mut Rows),
    ) -> Self {
        Self {
            name,
            kind: Kind::Counter,
            unit,
            labels,
            help,
            read,
        }
    }

    const fn gauge(
        name: &'static str,
        unit: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
        read: fn(&Status, &mut Rows),
    ) -> Self {
        Self {
            kind: Kind::Gauge,
            ..Self::counter(name, unit, labels, help, read)
        }
    }
}

/// A value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// A whole number.
    Whole(u64),
    /// Any other.
    Real(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<u32> for Value {
    fn from(value: u32) -> Self {
        Self::Whole(value.into())
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Whole(value as u64)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

/// The values of a series, by those of its labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows(BTreeMap<Vec<String>, Value>);

impl Rows {
    /// Each with the values of its labels.
    pub fn iter(&self) -> impl Iterator<Item = (&[String], Value)> {
        self.0.iter().map(|(labels, value)| (&**labels, *value))
    }

    fn put<const LABELS: usize>(&mut self, labels: [&str; LABELS], value: impl Into<Value>) {
        let labels = labels.map(str::to_owned).into();
        self.0.insert(labels, value.into());
    }

    /// Counts one more.
    fn count<const LABELS: usize>(&mut self, labels: [&str; LABELS]) {
        let labels = labels.map(str::to_owned).into();
        let value = self.0.entry(labels).or_insert(Value::Whole(0));
        if let Value::Whole(count) = value {
            *count += 1;
        }
    }
}

/// A time in seconds.
fn seconds(ns: u64) -> f64 {
    std::time::Duration::from_nanos(ns).as_secs_f64()
}

/// What is told of a histogram: the quantiles by Prometheus's name for them, in nanoseconds.
fn quantiles(times: &TimesStatus) -> [(&'static str, u64); 4] {
    [
        ("0.5", times.p50_ns),
        ("0.99", times.p99_ns),
        ("0.999", times.p999_ns),
        ("1", times.max_ns),
    ]
}

#[cfg(test)]
mod tests;
