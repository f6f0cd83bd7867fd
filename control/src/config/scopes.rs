//! The `[[scopes]]` blocks: what holds for a whole subtree of channels, and what becomes of a channel below them.
//!
//! Authority goes from broader scopes to narrower ones and only ever shrinks on the way: whoever wants something of
//! a channel needs what every scope around it asks, and what the channel itself asks. A narrower scope, or the
//! channel, can take more away and give nothing back.

use super::{
    CapabilityRules, ChannelConfig, Entity, Listed, channels, evidence, file,
    peers::Roster,
    problem::{Report, Section},
    rules::Checker,
    values,
};
use std::collections::{BTreeMap, BTreeSet};
use toml::Spanned;
use virga_ebpf::{
    limits::EXPORTS_PER_CHANNEL,
    subnet::{SubnetPrefix, Visibility},
};
use virga_transport::{ChannelName, Mode};

/// One `[[scopes]]` block, or one that an authority has declared: what a channel of this name and all below it allow at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopeConfig {
    /// Where it begins, `$node` expanded.
    pub name: ChannelName,
    /// Who may publish at most; anyone where nothing is said.
    pub publish: Listed,
    /// Who may subscribe at most; anyone where nothing is said.
    pub subscribe: Listed,
    /// Whose tokens count; where it is empty, the scope asks for none.
    pub issuers: Vec<Entity>,
    /// What it asks of capabilities.
    pub capabilities: CapabilityRules,
    /// How far packets go among subnets at most.
    pub visibility: Visibility,
    /// Where to at most, if it says `exported`.
    pub export_to: BTreeSet<SubnetPrefix>,
    /// Packets a second that one origin may send at most, on each channel.
    pub max_rate_pps: Option<u32>,
}

impl ScopeConfig {
    /// What of a channel's policy a whole subtree can have.
    #[must_use]
    pub fn of(policy: &ChannelConfig) -> Self {
        Self {
            name: policy.name.clone(),
            publish: policy.publish.clone(),
            subscribe: policy.subscribe.clone(),
            issuers: policy.issuers.clone(),
            capabilities: policy.capabilities.clone(),
            visibility: policy.visibility,
            export_to: policy.export_to.clone(),
            max_rate_pps: policy.max_rate_pps,
        }
    }

    /// The same as a channel's policy, of which nothing else counts.
    #[must_use]
    pub fn as_policy(&self) -> ChannelConfig {
        ChannelConfig {
            hash: self.name.hash(0),
            name: self.name.clone(),
            salt: 0,
            priority: 0,
            mode: Mode::ALL[0],
            hold_max_s: 0,
            fan_out: 0,
            max_rate_pps: self.max_rate_pps,
            visibility: self.visibility,
            export_to: self.export_to.clone(),
            publish: self.publish.clone(),
            subscribe: self.subscribe.clone(),
            issuers: self.issuers.clone(),
            capabilities: self.capabilities.clone(),
            keep: None,
            scopes: Vec::new(),
        }
    }
}

impl ChannelConfig {
    /// Puts the channel under the scopes around it: `scopes` are in the order of [`sorted`]. Doing it again changes
    /// nothing.
    pub(crate) fn narrow(&mut self, scopes: &[ScopeConfig]) {
        let around = scopes
            .iter()
            .filter(|scope| self.name.is_within(&scope.name));
        self.scopes = around.cloned().collect();
        for scope in &self.scopes {
            self.publish = both(&self.publish, &scope.publish);
            self.subscribe = both(&self.subscribe, &scope.subscribe);
            (self.visibility, self.export_to) = nearer(
                (self.visibility, &self.export_to),
                (scope.visibility, &scope.export_to),
            );
            let rates = self.max_rate_pps.into_iter().chain(scope.max_rate_pps);
            self.max_rate_pps = rates.min();
        }
    }

    /// Whether a token is asked for, by the channel or by a scope around it.
    #[must_use]
    pub fn asks_for_token(&self) -> bool {
        let mut scopes = self.scopes.iter();
        !self.issuers.is_empty() || scopes.any(|scope| !scope.issuers.is_empty())
    }

    /// Whether whoever publishes has to show a token, or that it is vouched for: to the channel or a scope around it.
    #[must_use]
    pub fn asks_publishers(&self) -> bool {
        let mut scopes = self.scopes.iter();
        let asks = |rules: &CapabilityRules| rules.publish.is_some();
        self.asks_for_token()
            || asks(&self.capabilities)
            || scopes.any(|scope| asks(&scope.capabilities))
    }
}

/// The broadest first: of two around one channel the one with the shorter name.
pub(crate) fn sorted(mut scopes: Vec<ScopeConfig>) -> Vec<ScopeConfig> {
    scopes.sort_by_key(|scope| scope.name.as_str().len());
    scopes
}

/// Whom both lists let in.
fn both(one: &Listed, other: &Listed) -> Listed {
    match (one, other) {
        (Listed::Anyone, listed) | (listed, Listed::Anyone) => listed.clone(),
        (Listed::Only(entities), _) => {
            let shared = entities.iter().filter(|entity| other.contains(&entity.key));
            Listed::Only(shared.copied().collect())
        }
    }
}

/// What both let through. What no visibility says exactly (to ancestors that are also exported to; to more subnets
/// than a router holds) is less than both.
fn nearer(
    (one, to): (Visibility, &BTreeSet<SubnetPrefix>),
    (other, other_to): (Visibility, &BTreeSet<SubnetPrefix>),
) -> (Visibility, BTreeSet<SubnetPrefix>) {
    use Visibility::{Exported, Global, ParentVisible, SubnetLocal};
    match (one, other) {
        (Global, _) => (other, other_to.clone()),
        (_, Global) => (one, to.clone()),
        (ParentVisible, ParentVisible) => (ParentVisible, BTreeSet::new()),
        (Exported, Exported) => {
            let pairs = to
                .iter()
                .flat_map(|a| other_to.iter().map(move |b| (*a, *b)));
            let shared = pairs.filter_map(|(a, b)| {
                let (wide, narrow) = if a.mask <= b.mask { (a, b) } else { (b, a) };
                wide.contains(narrow.subnet).then_some(narrow)
            });
            let shared: BTreeSet<_> = shared.collect();
            let most = usize::try_from(EXPORTS_PER_CHANNEL).unwrap_or(usize::MAX);
            match shared.is_empty() {
                true => (SubnetLocal, shared),
                false => (Exported, shared.into_iter().take(most).collect()),
            }
        }
        _ => (SubnetLocal, BTreeSet::new()),
    }
}

/// Applies every rule to the blocks; complete only when nothing is wrong.
pub(super) fn resolve(
    blocks: Vec<Spanned<file::Scope>>,
    own_name: Option<&str>,
    roster: &Roster,
    report: &mut Report<'_>,
) -> Vec<ScopeConfig> {
    let mut scopes = BTreeMap::new();
    for (index, block) in blocks.into_iter().enumerate() {
        let section = Section::new(format!("scopes[{index}]"), block.span());
        let block = block.into_inner();
        let span = block.name.as_ref().map(Spanned::span).unwrap_or_default();
        let Some(scope) = scope(&section, block, own_name, roster, report) else {
            continue;
        };
        let name = scope.name.as_str().to_owned();
        if scopes.insert(scope.name.clone(), scope).is_some() {
            let what = format!("{name:?} has a block already");
            report.add(span, section.key("name"), what, "keep one block");
        }
    }
    sorted(scopes.into_values().collect())
}

fn scope(
    section: &Section,
    mut block: file::Scope,
    own_name: Option<&str>,
    roster: &Roster,
    report: &mut Report<'_>,
) -> Option<ScopeConfig> {
    let capabilities = evidence::capability_rules(
        section,
        (
            block.publish_caps.take(),
            block.subscribe_caps.take(),
            block.capability_issuers.take(),
        ),
        roster,
        report,
    );
    let name = report.required(section, "name", block.name, "\"sensors\"");
    let mut listed = |key, words: Option<_>| match words {
        None => Listed::Anyone,
        words => Listed::Only(channels::entities(section, key, words, roster, report)),
    };
    let publish = listed("publish", block.publish);
    let subscribe = listed("subscribe", block.subscribe);
    let issuers = channels::issuers(section, block.require_token, block.issuers, roster, report);
    let mut check = Checker { section, report };
    let max_rate_pps = check.number("max_rate_pps", block.max_rate_pps, 1, i64::from(u32::MAX));
    let (visibility, export_to) =
        channels::visibility(&mut check, block.visibility, block.export_to);
    // A node name that is wrong is reported where it stands; here any serves.
    let name = check.text("name", name, |text| {
        ChannelName::expand(text, own_name.unwrap_or("node")).or_else(|error| {
            values::fault(
                error.to_string(),
                "write levels with single slashes between, such as \"sensors/$node\"",
            )
        })
    })?;
    Some(ScopeConfig {
        name,
        publish,
        subscribe,
        issuers,
        capabilities,
        visibility,
        export_to,
        max_rate_pps,
    })
}
