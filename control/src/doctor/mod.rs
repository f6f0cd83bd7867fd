//! What this machine has and lacks for a node, each with the exact line that fixes it.
//!
//! - [`host`]: the kernel and this process's rights.
//! - [`interface`]: the facts about one interface; [`rules`]: what follows from them.
//!   What is known of drivers comes from [`crate::hw`].
//! - `running`: the node itself, where it runs.

pub mod host;
pub mod interface;
mod link;
pub mod rules;
mod running;

use crate::config::{Config, ForwardingMode, Reach};
use std::{collections::BTreeSet, fmt};

/// What a check came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Depends on what this process cannot look into; where and how to look is said.
    Info,
    /// Could not be found out.
    Unknown,
    /// Works, with less than there could be.
    Warn,
    /// Does not work.
    Fail,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Info => "info",
            Self::Unknown => "unknown",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        })
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Check {
    /// The interface that was looked at; none when it is about the host.
    pub interface: Option<String>,
    /// What was looked at.
    pub name: &'static str,
    /// What it came to.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// The line that fixes it, or what to do where no line does.
    pub fix: Option<String>,
}

impl Check {
    pub(crate) fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            interface: None,
            name,
            verdict: Verdict::Ok,
            found: found.into(),
            fix: None,
        }
    }

    pub(crate) fn new(
        name: &'static str,
        verdict: Verdict,
        found: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        let fix = Some(fix.into());
        Self {
            interface: None,
            name,
            verdict,
            found: found.into(),
            fix,
        }
    }
}

/// What the node wants of the NIC path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// It does not start without.
    Required,
    /// It falls back to user space.
    Preferred,
    /// It does not use it.
    None,
}

impl Need {
    /// What a lack of something that the NIC path needs comes to.
    #[must_use]
    pub const fn lack(self) -> Verdict {
        match self {
            Self::Required => Verdict::Fail,
            Self::Preferred => Verdict::Warn,
            Self::None => Verdict::Ok,
        }
    }
}

impl From<ForwardingMode> for Need {
    fn from(mode: ForwardingMode) -> Self {
        match mode {
            ForwardingMode::Native | ForwardingMode::Generic => Self::Required,
            ForwardingMode::Auto => Self::Preferred,
            ForwardingMode::Userspace => Self::None,
        }
    }
}

/// Looks at the host, at the configuration's node where it runs, then at each interface: those named, those of the configuration, and when
/// there are neither, all that are up.
#[must_use]
pub fn examine(named: &[String], config: Option<&Config>) -> Vec<Check> {
    let need = config.map_or(Need::Required, |config| config.forwarding.mode.into());
    let mut checks = host::examine(need, config);
    checks.extend(config.map(running::examine).unwrap_or_default());
    let mut interfaces: BTreeSet<String> = named.iter().cloned().collect();
    interfaces.extend(config.map(configured).unwrap_or_default());
    if interfaces.is_empty() && config.is_none() {
        interfaces = interface::all_up();
    }
    for name in interfaces {
        let mut found = match interface::facts(&name) {
            Ok(facts) => rules::judge(&facts, need),
            Err(error) => vec![Check::new(
                "exists",
                need.lack().max(Verdict::Unknown),
                error.to_string(),
                error.fix(),
            )],
        };
        for check in &mut found {
            check.interface = Some(name.clone());
        }
        checks.append(&mut found);
    }
    checks
}

/// The interfaces that a configuration names.
#[must_use]
pub fn configured(config: &Config) -> BTreeSet<String> {
    let of_peers = config.peers.iter().filter_map(|peer| match &peer.reach {
        Reach::Adjacent { interface, .. } => interface.as_ref(),
        Reach::Via { .. } | Reach::Learned => None,
    });
    let interfaces = config.forwarding.interfaces.iter().chain(of_peers);
    interfaces.cloned().collect()
}

/// Which of these interfaces send packets whose checksums nobody has finished; with its fix.
#[must_use]
pub fn unfinished_checksums(interfaces: BTreeSet<String>) -> Vec<Check> {
    let checks = interfaces.into_iter().filter_map(|name| {
        let check = rules::checksums(&interface::facts(&name).ok()?)?;
        (check.verdict == Verdict::Warn).then_some(Check {
            interface: Some(name),
            ..check
        })
    });
    checks.collect()
}
