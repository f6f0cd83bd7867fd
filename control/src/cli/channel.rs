//! `virga channel`: channels of a running node: what there are, whether it keeps them, and, for authorities, new ones.

mod keep;

use super::{Failure, block_on, client::Target, print_json};
use crate::{
    api::channels::{ChannelView, ChannelsView, PolicyView},
    capability::Filter,
    config::{CapabilityRules, ChannelConfig, Entity, Listed, ScopeConfig, values},
    hex,
    keys::{self, EntityKey, KeyKind},
    mesh::Mesh,
    rights::Declaration,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use std::{
    collections::BTreeSet,
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};
use virga_ebpf::subnet::{SubnetPrefix, Visibility};
use virga_transport::{ChannelName, Mode};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make a channel, as an authority that the nodes' configurations name for it.
    Create(Box<Create>),
    /// Change a channel that one has made; what is not said stays.
    Set(Change),
    /// Remove a channel that one has made.
    Rm(Remove),
    /// Have the node keep a log of a channel, from now on and over restarts, or no more.
    Keep(keep::Keep),
    /// List the channels that the node knows.
    Ls(Ls),
    /// Show what the node knows of a channel.
    Show(Show),
}

#[derive(Debug, clap::Args)]
pub(super) struct Create {
    #[command(flatten)]
    change: Change,
    /// Have the node that is asked keep a log of it, as `virga channel keep` does.
    #[arg(long)]
    persist: bool,
    #[command(flatten)]
    how: keep::How,
}

#[derive(Debug, clap::Args)]
pub(super) struct Change {
    /// The channel's full name; `$node` stands for the name of the node that is asked.
    name: String,
    /// The authority's entity key file.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Not a channel, but what holds for this name and all below it: what is said here is asked beside what each
    /// channel asks, and nobody is let in by it.
    #[arg(long)]
    subtree: bool,
    #[command(flatten)]
    policy: Policy,
    #[command(flatten)]
    target: Target,
}

/// What it shall be.
#[derive(Debug, clap::Args)]
struct Policy {
    /// Who may publish: entities' names as the node's configuration has them, or public keys. Left out
    /// where --issuer or --publish-caps is given: whoever has the token or the capabilities.
    #[arg(long, value_name = "ENTITY", value_delimiter = ',')]
    publish: Option<Vec<String>>,
    /// Who may subscribe, likewise; nobody else where no token is required.
    #[arg(long, value_name = "ENTITY", value_delimiter = ',')]
    subscribe: Option<Vec<String>>,
    /// Require a token of one of these entities.
    #[arg(long, value_name = "ENTITY", value_delimiter = ',')]
    issuer: Option<Vec<String>>,
    /// What must be vouched for of a publisher's entity.
    #[arg(long, value_name = "FILTER", value_parser = filter)]
    publish_caps: Option<Filter>,
    /// What must be vouched for of a subscriber's entity.
    #[arg(long, value_name = "FILTER", value_parser = filter)]
    subscribe_caps: Option<Filter>,
    /// Whose word about capabilities counts.
    #[arg(long, value_name = "ENTITY", value_delimiter = ',')]
    capability_issuer: Option<Vec<String>>,
    /// How far its packets go: subnet-local, parent-visible, exported or global.
    #[arg(long, value_name = "WORD", value_parser = visibility)]
    visibility: Option<Visibility>,
    /// Where an exported channel goes, such as 2.0.0.0/8.
    #[arg(long, value_name = "SUBNET", value_delimiter = ',', value_parser = prefix)]
    export_to: Option<Vec<SubnetPrefix>>,
    /// What is promised of its events.
    #[arg(long, value_enum)]
    mode: Option<ModeWord>,
    /// Class 0 to 6: higher ones get more of a session.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..7))]
    priority: Option<u8>,
    /// Keeps the channel apart from another of the same hash.
    #[arg(long, value_name = "N")]
    salt: Option<u32>,
    /// How many seconds a subscriber that does not read may hold up a reliable channel.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    hold_max_s: Option<u32>,
    /// Packets a second of each publisher; 0: as many as it likes.
    #[arg(long, value_name = "N")]
    max_rate_pps: Option<u32>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum ModeWord {
    Ordered,
    Unordered,
    Unreliable,
    /// Ordered, and signed by whoever publishes.
    Signed,
}

#[derive(Debug, clap::Args)]
pub(super) struct Remove {
    /// The channel's full name; `$node` stands for the name of the node that is asked.
    name: String,
    /// The authority's entity key file.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub(super) struct Ls {
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub(super) struct Show {
    /// The channel's full name; `$node` stands for the name of the node that is asked.
    name: String,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(command: &Command) -> Result<(), Failure> {
    block_on(async {
        match command {
            Command::Create(asked) => create(asked).await,
            Command::Keep(asked) => keep::run(asked).await,
            Command::Set(change) => set(change).await,
            Command::Rm(remove) => rm(remove).await,
            Command::Ls(ls) => {
                let all = ls.target.open().await?.channels().await?;
                match ls.json {
                    true => print_json(&all.channels),
                    false => Ok(list(&all.channels)?),
                }
            }
            Command::Show(show) => {
                let all = show.target.open().await?.channels().await?;
                let name = expand(&show.name, &all)?;
                let mut named = all.channels;
                named.retain(|channel| channel.name == name.as_str());
                match (named.is_empty(), show.json) {
                    (true, _) => Err(unknown(&name)),
                    (false, true) => print_json(&named),
                    (false, false) => Ok(named.iter().try_for_each(tell)?),
                }
            }
        }
    })
}

async fn create(
    Create {
        change,
        persist,
        how,
    }: &Create,
) -> Result<(), Failure> {
    let words = how.words(*persist)?;
    if *persist && change.subtree {
        let what = "a subtree has no log: say --persist of the channels in it";
        return Err(Failure::Usage(what.into()));
    }
    let (mesh, all, owner) = asked(&change.target, &change.key).await?;
    let name = expand(&change.name, &all)?;
    let before = declared(&all, &name, &owner)?;
    if before.as_ref().is_some_and(|before| !before.is_removed()) {
        let what = format!("{name} is there already; change it with: virga channel set");
        return Err(Failure::Usage(what.into()));
    }
    if change.subtree {
        let scope = change.policy.over_scope(&everything(&name), &all)?;
        let declaration = match before {
            Some(removed) => removed.next_scope(&scope),
            None => Declaration::of_scope(owner.public, now_ns(), &scope),
        };
        return declare(&mesh, &declaration, &owner).await;
    }
    let has_token = change.policy.issuer.is_some();
    let asks_publishers = has_token || change.policy.publish_caps.is_some();
    if change.policy.publish.is_none() && !asks_publishers {
        let what =
            "say who may publish (--publish, --publish-caps), or who issues tokens (--issuer)";
        return Err(Failure::Usage(what.into()));
    }
    let others = |asks| match asks {
        true => Listed::Anyone,
        false => Listed::Only(Vec::new()),
    };
    let policy = ChannelConfig {
        salt: 0,
        hash: name.hash(0),
        priority: 0,
        mode: Mode::Ordered,
        hold_max_s: HOLD_MAX_S_DEFAULT,
        fan_out: 0,
        keep: None,
        scopes: Vec::new(),
        max_rate_pps: None,
        visibility: Visibility::Global,
        export_to: BTreeSet::new(),
        publish: others(asks_publishers),
        subscribe: others(has_token || change.policy.subscribe_caps.is_some()),
        issuers: Vec::new(),
        capabilities: CapabilityRules::default(),
        name: name.clone(),
    };
    let policy = change.policy.over(policy, &all)?;
    let declaration = match before {
        Some(removed) => removed.next(Some(policy)),
        None => Declaration::new(owner.public, now_ns(), policy),
    };
    declare(&mesh, &declaration, &owner).await?;
    match persist {
        true => keep::begin(&mesh, &name, &words).await,
        false => Ok(()),
    }
}

/// What the configuration file has where nothing is said.
const HOLD_MAX_S_DEFAULT: u32 = 30;

async fn set(change: &Change) -> Result<(), Failure> {
    let (mesh, all, owner) = asked(&change.target, &change.key).await?;
    let name = expand(&change.name, &all)?;
    let before = declared(&all, &name, &owner)?.ok_or_else(|| unknown(&name))?;
    if let Some(scope) = before.scope() {
        let scope = change.policy.over_scope(&scope, &all)?;
        return declare(&mesh, &before.next_scope(&scope), &owner).await;
    }
    if change.subtree {
        let what = format!("{name} is a channel, not a subtree");
        return Err(Failure::Usage(what.into()));
    }
    let policy = before.policy().cloned().ok_or_else(|| unknown(&name))?;
    let policy = change.policy.over(policy, &all)?;
    declare(&mesh, &before.next(Some(policy)), &owner).await
}

async fn rm(remove: &Remove) -> Result<(), Failure> {
    let (mesh, all, owner) = asked(&remove.target, &remove.key).await?;
    let name = expand(&remove.name, &all)?;
    let before = declared(&all, &name, &owner)?.filter(|before| !before.is_removed());
    let before = before.ok_or_else(|| unknown(&name))?;
    declare(&mesh, &before.next(None), &owner).await?;
    let is_kept = |view: &ChannelView| view.kept.as_ref().is_some_and(|kept| kept.by_command);
    let mut named = all.channels.iter().filter(|one| one.name == name.as_str());
    match named.any(is_kept) {
        true => keep::end(&mesh, &name).await,
        false => Ok(()),
    }
}

/// The node, what it knows, and who asks.
async fn asked(target: &Target, key: &Path) -> Result<(Mesh, ChannelsView, EntityKey), Failure> {
    let owner = EntityKey::from(keys::read(KeyKind::Entity, key)?);
    let mesh = target.open().await?;
    let all = mesh.channels().await?;
    Ok((mesh, all, owner))
}

async fn declare(mesh: &Mesh, declaration: &Declaration, owner: &EntityKey) -> Result<(), Failure> {
    let signed = declaration.sign(owner);
    let signed = signed.map_err(|error| Failure::Usage(error.into()))?;
    mesh.declare(&signed).await?;
    let what = match (declaration.is_removed(), declaration.version()) {
        (true, _) => "removed",
        (false, 1) => "made",
        (false, _) => "changed",
    };
    let kind = match declaration.scope() {
        Some(_) => "scope",
        None => "channel",
    };
    Ok(writeln!(
        io::stdout(),
        "{kind} {} is {what}: version {}, which peers are told of",
        declaration.name(),
        declaration.version()
    )?)
}

/// The owner's newest declaration of a name.
fn declared(
    all: &ChannelsView,
    name: &ChannelName,
    owner: &EntityKey,
) -> Result<Option<Declaration>, Failure> {
    let key = hex::encode(&owner.public);
    let is_it = |channel: &&ChannelView| {
        channel.name == name.as_str() && channel.owner.as_ref() == Some(&key)
    };
    let Some(signed) = all
        .channels
        .iter()
        .find(is_it)
        .and_then(|channel| channel.signed.as_ref())
    else {
        return Ok(None);
    };
    let bytes = URL_SAFE_NO_PAD.decode(signed).map_err(Failure::runtime)?;
    Declaration::parse(&bytes)
        .map(Some)
        .map_err(Failure::runtime)
}

fn unknown(name: &ChannelName) -> Failure {
    let what = format!("there is no channel {name} of this owner at the node: virga channel ls");
    Failure::Usage(what.into())
}

fn expand(text: &str, all: &ChannelsView) -> Result<ChannelName, Failure> {
    ChannelName::expand(text, &all.node).map_err(|error| Failure::Usage(error.into()))
}

fn now_ns() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH);
    unix.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// A scope that takes nothing away yet.
fn everything(name: &ChannelName) -> ScopeConfig {
    ScopeConfig {
        name: name.clone(),
        publish: Listed::Anyone,
        subscribe: Listed::Anyone,
        issuers: Vec::new(),
        capabilities: CapabilityRules::default(),
        visibility: Visibility::Global,
        export_to: BTreeSet::new(),
        max_rate_pps: None,
    }
}

impl Policy {
    /// A scope, changed to what was said.
    fn over_scope(&self, scope: &ScopeConfig, all: &ChannelsView) -> Result<ScopeConfig, Failure> {
        let before = scope.as_policy();
        let policy = self.over(before, all)?;
        let scope = ScopeConfig::of(&policy);
        match scope.as_policy() == policy {
            true => Ok(scope),
            false => {
                let what = "a subtree has lists, tokens, capabilities, visibility and a rate: leave out --mode, --priority, --salt and --hold-max-s";
                Err(Failure::Usage(what.into()))
            }
        }
    }

    /// A policy, changed to what was said.
    fn over(
        &self,
        mut policy: ChannelConfig,
        all: &ChannelsView,
    ) -> Result<ChannelConfig, Failure> {
        if let Some(publish) = &self.publish {
            policy.publish = Listed::Only(entities(publish, all)?);
        }
        if let Some(subscribe) = &self.subscribe {
            policy.subscribe = Listed::Only(entities(subscribe, all)?);
        }
        if let Some(issuers) = &self.issuer {
            policy.issuers = entities(issuers, all)?;
        }
        let asked = &mut policy.capabilities;
        for (said, filter) in [
            (&self.publish_caps, &mut asked.publish),
            (&self.subscribe_caps, &mut asked.subscribe),
        ] {
            if let Some(said) = said {
                *filter = Some(said.clone());
            }
        }
        if let Some(issuers) = &self.capability_issuer {
            asked.issuers = entities(issuers, all)?;
        }
        policy.visibility = self.visibility.unwrap_or(policy.visibility);
        if let Some(export_to) = &self.export_to {
            policy.export_to = export_to.iter().copied().collect();
        }
        policy.mode = match self.mode {
            Some(ModeWord::Ordered) => Mode::Ordered,
            Some(ModeWord::Unordered) => Mode::Unordered,
            Some(ModeWord::Unreliable) => Mode::Unreliable,
            Some(ModeWord::Signed) => Mode::Signed,
            None => policy.mode,
        };
        policy.priority = self.priority.unwrap_or(policy.priority);
        policy.salt = self.salt.unwrap_or(policy.salt);
        policy.hash = policy.name.hash(policy.salt);
        policy.hold_max_s = self.hold_max_s.unwrap_or(policy.hold_max_s);
        if let Some(rate) = self.max_rate_pps {
            policy.max_rate_pps = (rate > 0).then_some(rate);
        }
        Ok(policy)
    }
}

fn filter(text: &str) -> Result<Filter, String> {
    Filter::parse(text).map_err(|error| error.to_string())
}

fn visibility(text: &str) -> Result<Visibility, String> {
    values::visibility(text).map_err(|fault| fault.to_string())
}

fn prefix(text: &str) -> Result<SubnetPrefix, String> {
    values::subnet_prefix(text).map_err(|fault| fault.to_string())
}

/// Entities by their names or keys, in the order in which they are signed.
fn entities(words: &[String], all: &ChannelsView) -> Result<Vec<Entity>, Failure> {
    let mut found = Vec::new();
    for word in words {
        let key = all.entities.get(word).unwrap_or(word);
        let key = hex::decode(key).map_err(|_| {
            let what = format!(
                "{word:?} is neither an entity's name at the node nor a key of 64 hex digits"
            );
            Failure::Usage(what.into())
        })?;
        found.push(Entity::from_key(key));
    }
    found.sort_by_key(|entity| entity.key);
    found.dedup();
    Ok(found)
}

fn list(channels: &[ChannelView]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for channel in channels {
        let version = channel
            .version
            .map_or_else(|| "-".to_owned(), |v| v.to_string());
        let kind = if channel.is_scope { ", a subtree" } else { "" };
        let kept = channel.kept.as_ref();
        let kept = kept.map_or_else(String::new, |kept| format!(", {}", kept.words()));
        writeln!(
            out,
            "{:<40} version {version:<6} {}{kind}{kept}",
            channel.name, channel.standing
        )?;
    }
    Ok(())
}

fn tell(channel: &ChannelView) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}: {}", channel.name, channel.standing)?;
    if let (Some(owner), Some(version)) = (&channel.owner, channel.version) {
        writeln!(out, "  owner {owner}, version {version}")?;
    }
    if let Some(kept) = &channel.kept {
        writeln!(out, "  {}", kept.words())?;
    }
    let Some(policy) = &channel.policy else {
        return Ok(());
    };
    let PolicyView {
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
        publish_caps,
        subscribe_caps,
        capability_issuers,
        scopes,
    } = policy;
    let names = |names: &Option<Vec<String>>| match names {
        None => "whoever has what is asked for".to_owned(),
        Some(names) if names.is_empty() => "nobody".to_owned(),
        Some(names) => names.join(", "),
    };
    if channel.is_scope {
        writeln!(out, "  holds for this name and all below it")?;
    } else {
        writeln!(
            out,
            "  hash {hash} (salt {salt}), priority {priority}, {mode}"
        )?;
    }
    writeln!(out, "  publish: {}", names(publish))?;
    writeln!(out, "  subscribe: {}", names(subscribe))?;
    if !issuers.is_empty() {
        writeln!(out, "  requires a token of: {}", issuers.join(", "))?;
    }
    for (who, filter) in [("publisher", publish_caps), ("subscriber", subscribe_caps)] {
        if let Some(filter) = filter {
            let vouchers = capability_issuers.join(", ");
            writeln!(
                out,
                "  asks of a {who}: {filter}, by the word of {vouchers}"
            )?;
        }
    }
    if !scopes.is_empty() {
        writeln!(out, "  narrowed by the scopes: {}", scopes.join(", "))?;
    }
    match export_to.is_empty() {
        true => writeln!(out, "  visibility: {visibility}")?,
        false => writeln!(
            out,
            "  visibility: {visibility}, to {}",
            export_to.join(", ")
        )?,
    }
    if mode != Mode::Unreliable.name() && !channel.is_scope {
        writeln!(
            out,
            "  waits {hold_max_s} s for a subscriber that does not read"
        )?;
    }
    if *fan_out > 0 {
        writeln!(
            out,
            "  this node serves {fan_out} nodes itself, and passes the events of others on to {fan_out}"
        )?;
    }
    if let Some(rate) = max_rate_pps {
        writeln!(out, "  at most {rate} packets a second of each publisher")?;
    }
    Ok(())
}
