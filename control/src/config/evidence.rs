//! Signed evidence that the file names: tokens and statements of this node's entity, and what channels ask
//! of the capabilities of others.

use super::{
    Entity,
    file::Texts,
    peers::Roster,
    problem::{Report, Section},
    rules::Checker,
    secrets,
};
use crate::{
    capability::{Filter, Statements},
    cause,
    channel::capabilities::STATEMENTS_MAX,
    identity,
    membership::{MEMBERSHIPS_MAX, Memberships},
    rights::{Authentic, file as rights_file, identity::Claim},
};
use std::{ops::Range, path::Path};
use toml::Spanned;

/// What a channel asks of the capabilities of whoever publishes or subscribes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CapabilityRules {
    /// Of publishers.
    pub publish: Option<Filter>,
    /// Of subscribers.
    pub subscribe: Option<Filter>,
    /// Whose word counts; somebody's where something is asked.
    pub issuers: Vec<Entity>,
}

/// Whether a key is, or was, this entity's.
fn is_of(kept: &[Claim], key: &[u8; 32], own: &[u8; 32]) -> bool {
    key == own || identity::has_followed(kept, key, own)
}

/// The tokens in the files that `tokens` names; each must be authentic, and this entity's, by the key that it
/// has or by one that it had.
pub(super) fn tokens(
    section: &Section,
    files: Option<Spanned<Vec<Spanned<String>>>>,
    directory: &Path,
    (entity, kept): (Option<[u8; 32]>, &[Claim]),
    report: &mut Report<'_>,
) -> Vec<Authentic> {
    let mut tokens = Vec::new();
    for file in files.into_iter().flat_map(Spanned::into_inner) {
        let span = file.span();
        let mut check = Checker { section, report };
        let named = check.text("tokens", Some(file), |text| secrets::file(directory, text));
        let Some(path) = named.map(|named| named.path) else {
            continue;
        };
        let chain = rights_file::read_token(&path).map_err(|error| cause::chain(&error));
        let token = chain.and_then(|chain| {
            let authentic = chain.authenticate();
            authentic.map_err(|refusal| format!("{}: {refusal}", path.display()))
        });
        match token {
            Ok(token) if entity.is_some_and(|own| !is_of(kept, token.holder(), &own)) => {
                let holder = crate::hex::encode(token.holder());
                let what = format!("{} belongs to another entity, {holder}", path.display());
                let fix = "`virga token inspect` shows whose it is; name this node's own tokens";
                report.add(span, section.key("tokens"), what, fix);
            }
            Ok(token) => tokens.push(token),
            Err(what) => {
                let fix = "make it again: virga token issue, or virga token delegate";
                report.add(span, section.key("tokens"), what, fix);
            }
        }
    }
    tokens
}

/// The statements in the files that `capabilities` names; each must be authentic, and about this entity.
pub(super) fn statements(
    section: &Section,
    files: Option<Spanned<Vec<Spanned<String>>>>,
    directory: &Path,
    (entity, kept): (Option<[u8; 32]>, &[Claim]),
    report: &mut Report<'_>,
) -> Statements {
    let mut statements = Statements::default();
    for file in files.into_iter().flat_map(Spanned::into_inner) {
        let span = file.span();
        let mut check = Checker { section, report };
        let named = check.text("capabilities", Some(file), |text| {
            secrets::file(directory, text)
        });
        let Some(path) = named.map(|named| named.path) else {
            continue;
        };
        let key = section.key("capabilities");
        let statement = match rights_file::read_statement(&path) {
            Ok(statement) => statement,
            Err(error) => {
                let fix = "make it again: virga capability issue, or virga capability announce";
                report.add(span, key, cause::chain(&error), fix);
                continue;
            }
        };
        let subject = statement.claim().subject;
        if entity.is_some_and(|own| !is_of(kept, &subject, &own)) {
            let subject = crate::hex::encode(&subject);
            let what = format!("{} is about another entity, {subject}", path.display());
            let fix = "`virga capability inspect` shows whom it is about; name this node's own";
            report.add(span, key, what, fix);
        } else if statements.len() >= STATEMENTS_MAX && !statements.replaces(&statement) {
            let what = format!("{} is one more than {STATEMENTS_MAX}", path.display());
            report.add(span, key, what, "peers take no more: leave some out");
        } else if !statements.learn(statement) {
            let what = format!("{} says nothing that another does not", path.display());
            let fix = "leave it out: of each signer's the one with the highest version counts";
            report.add(span, key, what, fix);
        }
    }
    statements
}

/// The memberships in the files that `memberships` names; each must be authentic, and this entity's.
pub(super) fn memberships(
    section: &Section,
    files: Option<Spanned<Vec<Spanned<String>>>>,
    directory: &Path,
    (entity, kept): (Option<[u8; 32]>, &[Claim]),
    report: &mut Report<'_>,
) -> Memberships {
    let mut memberships = Memberships::default();
    for file in files.into_iter().flat_map(Spanned::into_inner) {
        let span = file.span();
        let mut check = Checker { section, report };
        let named = check.text("memberships", Some(file), |text| {
            secrets::file(directory, text)
        });
        let Some(path) = named.map(|named| named.path) else {
            continue;
        };
        let key = section.key("memberships");
        let membership = match rights_file::read_membership(&path) {
            Ok(membership) => membership,
            Err(error) => {
                let fix = "make it again: virga subnet issue";
                report.add(span, key, cause::chain(&error), fix);
                continue;
            }
        };
        let subject = membership.claim().subject;
        if entity.is_some_and(|own| !is_of(kept, &subject, &own)) {
            let subject = crate::hex::encode(&subject);
            let what = format!("{} is another entity's, {subject}", path.display());
            let fix = "`virga subnet inspect` shows whose it is; name this node's own";
            report.add(span, key, what, fix);
        } else if memberships.len() >= MEMBERSHIPS_MAX && !memberships.replaces(&membership) {
            let what = format!("{} is one more than {MEMBERSHIPS_MAX}", path.display());
            report.add(span, key, what, "peers take no more: leave some out");
        } else if !memberships.learn(membership) {
            let what = format!("{} says nothing that another does not", path.display());
            let fix = "leave it out: of each issuer's the one with the highest version counts";
            report.add(span, key, what, fix);
        }
    }
    memberships
}

/// What is asked of publishers and subscribers, and whose word counts, as a block has them.
type Asked = (
    Option<Spanned<Texts>>,
    Option<Spanned<Texts>>,
    Option<Spanned<Vec<Spanned<String>>>>,
);

/// What a channel or a scope asks of capabilities: whose word counts is said where something is asked, and only there.
pub(super) fn capability_rules(
    section: &Section,
    (publish, subscribe, names): Asked,
    roster: &Roster,
    report: &mut Report<'_>,
) -> CapabilityRules {
    let asks = [&publish, &subscribe];
    let asked = asks.into_iter().flatten().next().map(Spanned::span);
    let has_issuers = names.as_ref().is_some_and(|n| !n.get_ref().is_empty());
    match (asked, &names) {
        (Some(span), _) if !has_issuers => {
            let what = "nobody's word about capabilities counts";
            let fix = "name whose does: capability_issuers = [\"root\"]";
            report.add(span, section.key("capability_issuers"), what, fix);
        }
        (None, Some(names)) => {
            let what = "belongs to a channel that asks for capabilities";
            let fix = "add publish_caps or subscribe_caps, or remove it";
            report.add(names.span(), section.key("capability_issuers"), what, fix);
        }
        _ => {}
    }
    CapabilityRules {
        publish: filter(section, "publish_caps", publish, report),
        subscribe: filter(section, "subscribe_caps", subscribe, report),
        issuers: super::channels::entities(section, "capability_issuers", names, roster, report),
    }
}

/// One filter, or several of which all must hold.
fn filter(
    section: &Section,
    key: &str,
    texts: Option<Spanned<Texts>>,
    report: &mut Report<'_>,
) -> Option<Filter> {
    let texts = texts?;
    let span = texts.span();
    let texts = match texts.into_inner() {
        Texts::One(text) => vec![Spanned::new(span.clone(), text)],
        Texts::Many(texts) => texts,
    };
    if texts.is_empty() {
        let fix = "write a filter such as \"hardware.gpu\", or remove it";
        report.add(span, section.key(key), "is empty", fix);
        return None;
    }
    let mut all: Option<Filter> = None;
    for text in texts {
        let at = text.span();
        let parsed = match Filter::parse(text.get_ref()) {
            Ok(parsed) => parsed,
            Err(error) => {
                let at = place(&text, error.column);
                report.add(at, section.key(key), error.to_string(), "");
                continue;
            }
        };
        all = match all {
            None => Some(parsed),
            Some(before) => match before.and(parsed) {
                Some(both) => Some(both),
                None => {
                    let what = "has too many parts in all";
                    report.add(at, section.key(key), what, "leave some out");
                    return None;
                }
            },
        };
    }
    all
}

/// Where in the file a column of a text is; where the text is written with escapes, the whole of it.
fn place(text: &Spanned<String>, column: usize) -> Range<usize> {
    let (span, text) = (text.span(), text.get_ref());
    let quotes = 2;
    if span.len() != text.len() + quotes {
        return span;
    }
    let before: usize = text.chars().take(column - 1).map(char::len_utf8).sum();
    let at = span.start + 1 + before;
    at..span.end
}
