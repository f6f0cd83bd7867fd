//! `[handshake]`: how sessions begin, and what a peer's block says of that.

use super::{
    file,
    problem::{Report, Section, suggest},
    rules::Checker,
    values::{self, Fault},
};
use toml::Spanned;
use virga_transport::{HandshakePolicy, Pattern, Pq};

/// What the configuration calls a node that takes IK or XX by what it knows.
const AUTO: &str = "auto";

/// The section; what is not said is as it is by default.
pub(super) fn resolve(
    section: Option<Spanned<file::Handshake>>,
    report: &mut Report<'_>,
) -> HandshakePolicy {
    let default = HandshakePolicy::default();
    let Some(section) = section else {
        return default;
    };
    let span = section.span();
    let file::Handshake { pattern, pq } = section.into_inner();
    let section = Section::new("handshake", span);
    let mut check = Checker {
        section: &section,
        report,
    };
    of_peer(&mut check, (pattern, pq), default).unwrap_or(default)
}

/// What one peer's block says, the rest as `own`; none where it says nothing.
pub(super) fn of_peer(
    check: &mut Checker<'_, '_>,
    (pattern, pq): (Option<Spanned<String>>, Option<Spanned<String>>),
    own: HandshakePolicy,
) -> Option<HandshakePolicy> {
    let is_said = pattern.is_some() || pq.is_some();
    let pattern = check.text("pattern", pattern, read_pattern);
    let pq = check.text("pq", pq, read_pq);
    is_said.then(|| HandshakePolicy {
        pattern: pattern.unwrap_or(own.pattern),
        pq: pq.unwrap_or(own.pq),
    })
}

fn read_pattern(text: &str) -> Result<Option<Pattern>, Fault> {
    if text == AUTO {
        return Ok(None);
    }
    let found = Pattern::ALL.into_iter().find(|p| p.name() == text);
    found.map(Some).ok_or_else(|| Fault {
        what: format!("{text:?} is no handshake pattern"),
        fix: suggest(
            text,
            [AUTO].into_iter().chain(Pattern::ALL.map(Pattern::name)),
        ),
    })
}

fn read_pq(text: &str) -> Result<Pq, Fault> {
    match Pq::ALL.into_iter().find(|pq| pq.name() == text) {
        Some(pq) => Ok(pq),
        None => values::fault(
            format!("{text:?} does not say whether ML-KEM-768 is mixed in"),
            suggest(text, Pq::ALL.map(Pq::name)),
        ),
    }
}
