//! The `[[channels]]` blocks: who may publish and subscribe where.

use super::{
    ChannelConfig, Entity, Listed, Replicated, ScopeConfig, evidence, file, keeping,
    peers::Roster,
    problem::{Report, Section, suggest},
    replicas,
    rules::Checker,
    values,
};
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ops::Range,
};
use toml::Spanned;
use virga_ebpf::{
    header::{ChannelHash, PRIORITY_CONTROL},
    limits,
    subnet::{SubnetPrefix, Visibility},
};
use virga_state::LogName;
use virga_transport::{ChannelName, Mode, NodeLimits};

/// A name's hexadecimal digits, when it is a key and not a name.
const KEY_DIGITS: usize = 64;

/// How long a subscriber that does not read may hold up a reliable channel.
const HOLD_MAX_S_DEFAULT: u32 = 30;
const HOLD_MAX_S_MAX: i64 = 86_400;
/// Nodes that one serves itself at most where others pass its events on, and passes those of others on to.
pub const FAN_OUT_MAX: u8 = 64;

/// Applies every rule to the blocks; complete only when nothing is wrong.
pub(super) fn resolve(
    blocks: Vec<Spanned<file::Channel>>,
    scopes: &[ScopeConfig],
    (own_name, roster): (Option<&str>, &Roster),
    report: &mut Report<'_>,
) -> (Vec<ChannelConfig>, Vec<Replicated>) {
    let mut replicated = Vec::new();
    let mut channels: Vec<Placed> = Vec::new();
    let mut names: HashMap<ChannelName, Range<usize>> = HashMap::new();
    for (index, block) in blocks.into_iter().enumerate() {
        let section = Section::new(format!("channels[{index}]"), block.span());
        let (block_span, mut block) = (block.span(), block.into_inner());
        let replicas = replicas::Keys::take(&mut block);
        let span = block.name.as_ref().map_or(block_span, Spanned::span);
        let Some(mut channel) = channel(&section, block, own_name, roster, report) else {
            continue;
        };
        let is_subscriber = |channel: &ChannelConfig| {
            let own = own_name.and_then(|name| roster.names.get(name)?.as_ref());
            own.is_some_and(|own| channel.subscribe.contains(&own.key))
        };
        let was_subscriber = is_subscriber(&channel);
        channel.narrow(scopes);
        if channel.keep.is_some() && was_subscriber && !is_subscriber(&channel) {
            let what = "is true, and a scope around the channel lets this node not subscribe";
            let fix = "let the scope's `subscribe` list name it, or keep the channel elsewhere";
            report.add(span.clone(), section.key("persist"), what, fix);
        }
        replicated.extend(replicas.resolve(&section, &channel, roster, report));
        match names.get(&channel.name) {
            Some(earlier) => {
                let name = channel.name.as_str();
                let what = format!(
                    "{name:?} is configured on line {} already",
                    report.line(earlier)
                );
                report.add(span, section.key("name"), what, "keep one block");
            }
            None => {
                names.insert(channel.name.clone(), span.clone());
                channels.push(Placed {
                    section,
                    span,
                    channel,
                });
            }
        }
    }
    check_collisions(&channels, report);
    if let Some(Some(own)) = own_name.and_then(|name| roster.names.get(name)) {
        check_streams(&channels, own, roster, report);
    }
    // Every entity takes one more, for its control traffic.
    let (publishers, entities) = (
        channels
            .iter()
            .map(|placed| placed.channel.publish.named().len()),
        roster.entities.len(),
    );
    let pairs = publishers.sum::<usize>() + entities;
    let pairs_max = usize::try_from(limits::PAIRS_MAX).unwrap_or(usize::MAX);
    if pairs > pairs_max {
        let what = format!("name {} publishers in all", pairs - entities);
        let fix = format!(
            "beside {entities} entities a node holds {}",
            pairs_max.saturating_sub(entities)
        );
        report.add(0..0, "channels", what, fix);
    }
    let channels = channels.into_iter().map(|placed| placed.channel);
    (channels.collect(), replicated)
}

/// A channel and where its name stands.
struct Placed {
    section: Section,
    span: Range<usize>,
    channel: ChannelConfig,
}

fn channel(
    section: &Section,
    mut block: file::Channel,
    own_name: Option<&str>,
    roster: &Roster,
    report: &mut Report<'_>,
) -> Option<ChannelConfig> {
    let is_token_required = block.require_token.as_ref().is_some_and(|is| *is.get_ref());
    let asks_publishers = is_token_required || block.publish_caps.is_some();
    let asks_subscribers = is_token_required || block.subscribe_caps.is_some();
    let keeping = keeping::Keys::take(&mut block);
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
    let name = report.required(section, "name", block.name, "\"metrics/$node\"");
    let publish = match block.publish {
        None if asks_publishers => None,
        publish => report.required(section, "publish", publish, "[\"edge-a\"]"),
    };
    if let Some(empty) = publish.as_ref().filter(|names| names.get_ref().is_empty()) {
        let fix = "name who may publish, or remove the block";
        report.add(
            empty.span(),
            section.key("publish"),
            "is empty, so nothing can pass",
            fix,
        );
    }
    let mut listed = |key, words: Option<_>, asks| match words {
        None if asks => Listed::Anyone,
        words => Listed::Only(entities(section, key, words, roster, report)),
    };
    let publish = listed("publish", publish, asks_publishers);
    let subscribe = listed("subscribe", block.subscribe, asks_subscribers);
    let own = own_name.and_then(|name| roster.names.get(name)?.as_ref());
    let keep = keeping.resolve(section, &subscribe, own, report);
    let issuers = issuers(section, block.require_token, block.issuers, roster, report);
    // A node name that is wrong is reported where it stands; here any serves.
    let node = own_name.unwrap_or("node");
    let mut check = Checker { section, report };
    let name = check.text("name", name, |text| {
        ChannelName::expand(text, node).or_else(|error| {
            values::fault(
                error.to_string(),
                "write levels with single slashes between, such as \"metrics/edge-a\"",
            )
        })
    });
    let salt: u32 = check
        .number("salt", block.salt, 0, i64::from(u32::MAX))
        .unwrap_or_default();
    let priority_max = i64::from(PRIORITY_CONTROL) - 1;
    let priority = check
        .number("priority", block.priority, 0, priority_max)
        .unwrap_or_default();
    let reliable = block.reliable.is_none_or(Spanned::into_inner);
    let ordered_span = block.ordered.as_ref().map(Spanned::span);
    let signed_span = block
        .signed
        .as_ref()
        .filter(|is| *is.get_ref())
        .map(Spanned::span);
    let mode = match (reliable, block.ordered.is_none_or(Spanned::into_inner)) {
        (true, true) if signed_span.is_some() => Mode::Signed,
        (true, true) => Mode::Ordered,
        (true, false) => Mode::Unordered,
        (false, _) => Mode::Unreliable,
    };
    let hold_span = block.hold_max_s.as_ref().map(Spanned::span);
    let hold_max_s = check
        .number("hold_max_s", block.hold_max_s, 1, HOLD_MAX_S_MAX)
        .unwrap_or(HOLD_MAX_S_DEFAULT);
    let fan_span = block.fan_out.as_ref().map(Spanned::span);
    let fan_out: u8 = check
        .number("fan_out", block.fan_out, 0, FAN_OUT_MAX.into())
        .unwrap_or_default();
    let max_rate_pps = check.number("max_rate_pps", block.max_rate_pps, 1, i64::from(u32::MAX));
    let (visibility, export_to) = visibility(&mut check, block.visibility, block.export_to);
    if let Some(span) = hold_span.filter(|_| !reliable) {
        let what = "belongs to a reliable channel: this one waits for no subscriber";
        report.add(span, section.key("hold_max_s"), what, "remove it");
    }
    if let Some(span) = ordered_span.filter(|_| !reliable) {
        let what = "belongs to a reliable channel: this one delivers what arrives as it comes";
        report.add(span, section.key("ordered"), what, "remove it");
    }
    if let Some(span) = fan_span.filter(|_| fan_out > 0 && mode != Mode::Signed) {
        let what =
            "has other nodes pass events on, who can prove whose they are on signed channels alone";
        report.add(
            span,
            section.key("fan_out"),
            what,
            "add signed = true, or remove it",
        );
    }
    if let Some(span) = signed_span {
        if mode != Mode::Signed {
            let what = "belongs to a channel that is reliable and ordered";
            report.add(span.clone(), section.key("signed"), what, "remove it");
        }
        if let Some(error) = name.as_ref().and_then(|n| LogName::parse(n.as_str()).err()) {
            let what = format!("is true, and the name is none that can be signed: {error}");
            report.add(span, section.key("signed"), what, "give it another name");
        }
    }
    let name = name?;
    let hash = name.hash(salt);
    Some(ChannelConfig {
        name,
        salt,
        hash,
        priority,
        mode,
        hold_max_s,
        fan_out,
        max_rate_pps,
        visibility,
        export_to,
        publish,
        subscribe,
        issuers,
        capabilities,
        keep,
        scopes: Vec::new(),
    })
}

/// How far the channel goes, and where to if it is exported.
pub(super) fn visibility(
    check: &mut Checker<'_, '_>,
    word: Option<Spanned<String>>,
    export_to: Option<Spanned<Vec<Spanned<String>>>>,
) -> (Visibility, BTreeSet<SubnetPrefix>) {
    let span = word.as_ref().map(Spanned::span);
    let visibility = check.text("visibility", word, values::visibility);
    let is_exported = visibility == Some(Visibility::Exported);
    let mut prefixes = BTreeSet::new();
    let most = usize::try_from(limits::EXPORTS_PER_CHANNEL).unwrap_or(usize::MAX);
    let fault = match &export_to {
        None if is_exported => values::fault(
            "is \"exported\", and no subnet is named: nothing would cross",
            "add export_to = [\"2.0.0.0/8\"], or write \"subnet-local\"",
        ),
        Some(named) if is_exported && named.get_ref().is_empty() => {
            values::fault("is empty: nothing would cross", "name a subnet")
        }
        Some(named) if named.get_ref().len() > most => values::fault(
            format!("names {} subnets", named.get_ref().len()),
            format!("name {most} at most: shorter prefixes, or visibility = \"global\""),
        ),
        // What is wrong with the visibility is said there.
        Some(_) if !is_exported && (visibility.is_some() || span.is_none()) => values::fault(
            "belongs to a channel that is exported",
            "add visibility = \"exported\", or remove it",
        ),
        _ => Ok(()),
    };
    let (key, place) = match &export_to {
        Some(named) => ("export_to", named.span()),
        None => ("visibility", span.unwrap_or_default()),
    };
    check.keep(key, place, fault);
    for text in export_to.into_iter().flat_map(Spanned::into_inner) {
        prefixes.extend(check.text("export_to", Some(text), values::subnet_prefix));
    }
    (visibility.unwrap_or(Visibility::Global), prefixes)
}

/// Whose tokens count: somebody's where a token is required, nobody's elsewhere.
pub(super) fn issuers(
    section: &Section,
    require_token: Option<Spanned<bool>>,
    words: Option<Spanned<Vec<Spanned<String>>>>,
    roster: &Roster,
    report: &mut Report<'_>,
) -> Vec<Entity> {
    let required = require_token.as_ref().filter(|is| *is.get_ref());
    match (required, &words) {
        (Some(required), None) => {
            let what = "nobody's tokens count, so nothing can pass";
            let fix = "name who may issue them: issuers = [\"root\"]";
            report.add(required.span(), section.key("require_token"), what, fix);
        }
        (Some(_), Some(names)) if names.get_ref().is_empty() => {
            let what = "is empty, so no token counts and nothing can pass";
            let fix = "name who may issue tokens, or remove `require_token`";
            report.add(names.span(), section.key("issuers"), what, fix);
        }
        (None, Some(names)) => {
            let what = "belongs to a channel that requires a token";
            let fix = "add require_token = true, or remove it";
            report.add(names.span(), section.key("issuers"), what, fix);
        }
        _ => {}
    }
    entities(section, "issuers", words, roster, report)
}

/// Who is meant by a list of names and keys.
pub(super) fn entities(
    section: &Section,
    key: &str,
    words: Option<Spanned<Vec<Spanned<String>>>>,
    roster: &Roster,
    report: &mut Report<'_>,
) -> Vec<Entity> {
    let mut entities = Vec::new();
    let mut seen = HashSet::new();
    for word in words.into_iter().flat_map(Spanned::into_inner) {
        let (span, text) = (word.span(), word.get_ref().clone());
        let entity = if text.len() == KEY_DIGITS {
            let mut check = Checker { section, report };
            check
                .text(key, Some(word), values::entity_key)
                .map(Entity::from_key)
        } else if let Some(known) = roster.names.get(&text) {
            // A known name without an entity has a wrong key, reported where that stands.
            *known
        } else {
            let what = format!(
                "{text:?} is neither a peer's name, nor this node's, nor an entity key of 64 hex digits"
            );
            let fix = suggest(&text, roster.names.keys().map(String::as_str));
            report.add(span.clone(), section.key(key), what, fix);
            None
        };
        let Some(entity) = entity else { continue };
        if seen.insert(entity.key) {
            entities.push(entity);
        } else {
            report.add(
                span,
                section.key(key),
                format!("{text:?} is in the list already"),
                "name each once",
            );
        }
    }
    entities
}

/// Each channel from one entity to another is a stream of their session, which carries only so many.
fn check_streams(channels: &[Placed], own: &Entity, roster: &Roster, report: &mut Report<'_>) {
    let streams_max = NodeLimits::default().streams_max;
    let (mut sent, mut received) = (HashMap::new(), HashMap::new());
    for placed in channels {
        let ChannelConfig {
            publish, subscribe, ..
        } = &placed.channel;
        let ways = [
            (publish, subscribe, &mut sent, "to"),
            (subscribe, publish, &mut received, "from"),
        ];
        for (ours, theirs, streams, way) in ways {
            if !ours.contains(&own.key) {
                continue;
            }
            let theirs = match theirs {
                Listed::Only(entities) => entities,
                Listed::Anyone => &roster.entities.iter().map(|e| e.entity).collect(),
            };
            for entity in theirs.iter().filter(|entity| entity.key != own.key) {
                let streams: &mut usize = streams.entry(entity.key).or_default();
                *streams += 1;
                if *streams == streams_max + 1 {
                    let what = format!(
                        "is channel {streams} {way} {}, and a session carries {streams_max} each way",
                        name_of(entity, roster)
                    );
                    let fix = "configure fewer channels, or another entity for some of them";
                    let key = placed.section.key("name");
                    report.add(placed.span.clone(), key, what, fix);
                }
            }
        }
    }
}

/// What the file calls an entity.
fn name_of(entity: &Entity, roster: &Roster) -> String {
    let named = roster
        .names
        .iter()
        .find(|(_, known)| known.is_some_and(|known| known.key == entity.key));
    named.map_or_else(|| crate::hex::encode(&entity.key), |(name, _)| name.clone())
}

/// The 16-bit hash is all that a forwarder sees: two channels on one could not be told apart.
fn check_collisions(channels: &[Placed], report: &mut Report<'_>) {
    let mut holders: HashMap<ChannelHash, &Placed> = HashMap::new();
    let mut taken: BTreeSet<u16> = channels
        .iter()
        .map(|placed| placed.channel.hash.0)
        .collect();
    for placed in channels {
        let channel = &placed.channel;
        let Some(earlier) = holders.get(&channel.hash) else {
            holders.insert(channel.hash, placed);
            continue;
        };
        let what = format!(
            "{:?} and {:?} (line {}) share the hash {}",
            channel.name.as_str(),
            earlier.channel.name.as_str(),
            report.line(&earlier.span),
            channel.hash,
        );
        let fix = match free_salt(&channel.name, &mut taken) {
            Some(salt) => format!(
                "set salt = {salt} on {:?}, on every node",
                channel.name.as_str()
            ),
            None => "no hash is free; configure fewer channels".into(),
        };
        report.add(placed.span.clone(), placed.section.key("salt"), what, fix);
    }
}

/// The smallest salt whose hash nobody has, taken for the channel.
fn free_salt(name: &ChannelName, taken: &mut BTreeSet<u16>) -> Option<u32> {
    const TRIES: u32 = 1 << 20;
    let salt = (0..TRIES).find(|salt| !taken.contains(&name.hash(*salt).0))?;
    taken.insert(name.hash(salt).0);
    Some(salt)
}
