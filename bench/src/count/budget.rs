//! The recorded budget: instructions a call, by environment, since another compiler or C library makes
//! other code.

use std::{
    collections::BTreeMap,
    fmt::{self, Write as _},
    fs,
    path::Path,
    process::Command,
};

/// Share above the budget from which on a count has grown, and the least that counts as growth.
const OVER: f64 = 0.02;
/// Share below the budget from which on the budget says nothing any more.
const STALE: f64 = 0.10;
/// The same beside another environment's budget, whose compiler and library make other code.
const FAR: f64 = 0.10;
/// Instructions that a count may differ by, however small the budget.
const SLACK: f64 = 1.0;

const HEAD: &str = "\
# Instructions a call of what every packet meets, as callgrind counts them: the recorded budget of
# `cargo run --release -p virga-bench --bin virga-count`, which fails where a count is more than 2 % above it
# or 10 % below it. With `-- --record` it writes this file anew for the environment that it runs in.
";

/// What makes counts comparable: compiler, C library (it copies and allocates), processor. `ring` picks its
/// assembly by the processor's features, and callgrind shows it no more than AVX2.
pub(crate) fn environment() -> String {
    let libc = Command::new("getconf")
        .arg("GNU_LIBC_VERSION")
        .output()
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default();
    let libc = if libc.is_empty() {
        "another C library"
    } else {
        &libc
    };
    format!("{}, {libc}, {}", env!("BUILT_BY"), processor())
}

#[cfg(target_arch = "x86_64")]
fn processor() -> &'static str {
    if std::is_x86_feature_detected!("avx2") {
        "x86_64 with AVX2"
    } else {
        "x86_64 without AVX2"
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn processor() -> &'static str {
    std::env::consts::ARCH
}

/// Instructions a call, by operation.
pub(crate) type Counts = BTreeMap<String, f64>;

/// Counts by environment.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Budget(BTreeMap<String, Counts>);

/// What a count says beside its budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// As recorded, more or less.
    Within,
    /// More instructions than there may be.
    Over,
    /// So much less that the budget would hide growth.
    Stale,
    /// There is no budget for it.
    Unrecorded,
}

impl Judgement {
    /// Whether a count is as another environment's budget lets expect.
    pub(crate) fn is_near(count: f64, budget: f64) -> bool {
        count - budget <= SLACK.max(budget * FAR)
    }

    pub(crate) fn of(count: f64, budget: Option<f64>) -> Self {
        match budget {
            None => Self::Unrecorded,
            Some(budget) if count - budget > SLACK.max(budget * OVER) => Self::Over,
            Some(budget) if budget - count > SLACK.max(budget * STALE) => Self::Stale,
            Some(_) => Self::Within,
        }
    }
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Within => "within",
            Self::Over => "over: make it cheaper, or record anew and say why",
            Self::Stale => "far below: record anew",
            Self::Unrecorded => "not recorded: record anew",
        })
    }
}

impl Budget {
    /// Reads the file; none is an empty budget.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Self::parse(&text).map_err(|e| format!("{}: {e}", path.display()))
    }

    fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text).map(Self)
    }

    /// What is recorded for an environment.
    pub(crate) fn of(&self, environment: &str) -> Option<&Counts> {
        self.0.get(environment)
    }

    /// What is recorded for the environment that is most like one: of the same processor, the last by name.
    pub(crate) fn nearest(&self, environment: &str) -> Option<(&str, &Counts)> {
        let processor = |name: &str| name.rsplit(", ").next().map(str::to_owned);
        let own = processor(environment);
        let mut like = self
            .0
            .iter()
            .rev()
            .filter(|(name, _)| processor(name) == own);
        like.next().map(|(name, counts)| (name.as_str(), counts))
    }

    /// Records counts in place of those of the same environment.
    pub(crate) fn record(&mut self, environment: String, counts: Counts) {
        self.0.insert(environment, counts);
    }

    /// Writes the file.
    pub(crate) fn write(&self, path: &Path) -> Result<(), String> {
        fs::write(path, self.text()).map_err(|e| format!("{}: {e}", path.display()))
    }

    fn text(&self) -> String {
        let mut text = HEAD.to_owned();
        for (environment, counts) in &self.0 {
            let _ = writeln!(text, "\n[{environment:?}]");
            for (operation, count) in counts {
                let _ = writeln!(text, "{operation:?} = {count:.1}");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_and_stale_budgets_are_told_from_what_is_within() {
        let of = |count| Judgement::of(count, Some(1_000.0));
        assert_eq!(of(1_000.0), Judgement::Within);
        assert_eq!(
            (of(1_020.0), of(1_020.1)),
            (Judgement::Within, Judgement::Over)
        );
        assert_eq!(
            (of(900.0), of(899.9)),
            (Judgement::Within, Judgement::Stale)
        );
        assert_eq!(Judgement::of(5.0, None), Judgement::Unrecorded);
    }

    #[test]
    fn one_instruction_of_a_few_is_no_growth_and_two_are() {
        let of = |count| Judgement::of(count, Some(5.0));
        assert_eq!((of(6.0), of(7.0)), (Judgement::Within, Judgement::Over));
        assert_eq!((of(4.0), of(3.0)), (Judgement::Within, Judgement::Stale));
    }

    #[test]
    fn what_is_written_is_read_again_and_other_environments_stay() {
        let counts = |count| Counts::from([("seal.64".to_owned(), count)]);
        let mut budget = Budget::default();
        budget.record("rustc 1.95.0, glibc 2.36".to_owned(), counts(1.0));
        budget.record("rustc 1.96.0, glibc 2.36".to_owned(), counts(2.0));
        budget.record("rustc 1.95.0, glibc 2.36".to_owned(), counts(3.5));
        let read = Budget::parse(&budget.text()).unwrap();
        assert_eq!(read, budget);
        assert_eq!(read.of("rustc 1.95.0, glibc 2.36"), Some(&counts(3.5)));
        assert_eq!(read.of("rustc 1.96.0, glibc 2.36"), Some(&counts(2.0)));
        assert_eq!(read.of("rustc 1.97.0, glibc 2.36"), None);
    }

    /// The number between two texts of a suite's limit.
    fn named(suite: &str, before: &str, after: &str) -> f64 {
        let limit = suite.replace("\n//! ", " ");
        let (_, rest) = limit.split_once(before).unwrap();
        rest.split_once(after).unwrap().0.parse().unwrap()
    }

    #[test]
    fn the_instructions_that_limits_go_by_are_the_budgets() {
        let budget = Budget::parse(include_str!("../../budget.toml")).unwrap();
        let decide = include_str!("../../benches/decide.rs");
        let forward = named(decide, "by the ", " instructions of `budget.toml`");
        let seal = include_str!("../../benches/seal.rs");
        let a_byte = named(seal, "`ring` takes ", " instructions a byte");
        assert!(!budget.0.is_empty());
        for counts in budget.0.values() {
            let recorded = counts["decide.forward"];
            assert!((forward / recorded - 1.0).abs() < 0.1, "{recorded}");
            let recorded = (counts["seal.1400"] - counts["seal.64"]) / f64::from(1_400 - 64);
            assert!((a_byte - recorded).abs() < 0.1, "{recorded}");
        }
    }

    #[test]
    fn the_nearest_environment_has_the_same_processor() {
        let mut budget = Budget::default();
        for environment in [
            "rustc 1.95.0, glibc 2.36, aarch64",
            "rustc 1.95.0, glibc 2.36, x86_64",
        ] {
            budget.record(environment.to_owned(), Counts::new());
        }
        let nearest = |environment| budget.nearest(environment).map(|(name, _)| name);
        let found = nearest("rustc 1.97.0, glibc 2.41, x86_64");
        assert_eq!(found, Some("rustc 1.95.0, glibc 2.36, x86_64"));
        assert_eq!(nearest("rustc 1.97.0, glibc 2.41, riscv64"), None);
        assert!(Judgement::is_near(1_100.0, 1_000.0) && !Judgement::is_near(1_101.0, 1_000.0));
    }
}
