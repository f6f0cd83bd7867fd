//! `virga token`: rights that are signed, passed on and taken back.

mod revoke;
mod show;

use super::{Failure, block_on, client::Target};
use crate::{
    channel::explain::Given,
    hex,
    keys::{self, EntityKey, KeyKind, Secret},
    rights::{
        Chain, Grant, Link, Operation, Operations, Reach, Scope,
        file::{self, FileError},
        revocation::Entry,
    },
};
use std::{
    io::{self, Write as _},
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use virga_transport::ChannelName;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Give an entity a right, as an issuer that channels trust.
    Issue(Issue),
    /// Pass on a right that one holds, or a part of it.
    Delegate(Delegate),
    /// Show what a token says, without judging it.
    Inspect(show::Inspect),
    /// Ask whether a token gives a right, and why not.
    Verify(show::Verify),
    /// Have a running node hold a token for its entity, and show it to its peers.
    Present(Present),
    /// Have a revocation list count at a running node, and at all that it reaches.
    Announce(Announce),
    /// Take back tokens, by adding to the issuer's revocation list.
    Revoke(revoke::Arguments),
}

#[derive(Debug, clap::Args)]
pub(super) struct Present {
    /// The token's file.
    token: PathBuf,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub(super) struct Announce {
    /// The revocation list's file.
    list: PathBuf,
    #[command(flatten)]
    target: Target,
}

/// What a new link gives.
#[derive(Debug, clap::Args)]
struct What {
    /// Public key of the entity that gets the right (64 hex digits; `virga id` prints it).
    #[arg(long, value_name = "KEY", value_parser = public_key)]
    subject: [u8; 32],
    #[command(flatten)]
    scope: Where,
    /// What the right is to.
    #[arg(long, value_name = "OPERATION", required = true, value_delimiter = ',')]
    allow: Vec<Operation>,
    /// How many more links may follow; 0 to 7, and `delegate` must be allowed.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..8))]
    delegations: u8,
    /// How long it is valid, such as 24h or 30days.
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    lasts: Duration,
    /// From when on (RFC 3339, UTC). Default: now.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak)]
    from: Option<SystemTime>,
    /// Write the token there, not to standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Where {
    /// That channel alone.
    #[arg(long, value_name = "NAME", value_parser = channel_name)]
    channel: Option<ChannelName>,
    /// That channel and all below it.
    #[arg(long, value_name = "NAME", value_parser = channel_name)]
    subtree: Option<ChannelName>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Issue {
    /// The issuer's entity key file.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The issuer's generation of tokens: `virga token revoke --generation` ends all earlier ones.
    #[arg(long, value_name = "N", default_value_t = 0, conflicts_with = "list")]
    generation: u32,
    /// The issuer's revocation list: the generation is taken from there, and whoever is revoked there
    /// gets no token.
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    #[command(flatten)]
    what: What,
}

#[derive(Debug, clap::Args)]
pub(super) struct Delegate {
    /// The token that is passed on.
    token: PathBuf,
    /// The entity key file of its holder.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    what: What,
}

pub(super) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Issue(issue) => {
            let issuer = entity_key(&issue.key)?;
            let grant = issue.what.grant(issue.generation(&issuer)?)?;
            issue.what.write(&Chain::issue(grant, &issuer))
        }
        Command::Delegate(delegate) => {
            let token = file::read_token(&delegate.token)?;
            // The chain's own generation is taken.
            let grant = delegate.narrowed(&token, delegate.what.grant(0)?)?;
            let chain = token.delegate(grant, &entity_key(&delegate.key)?);
            delegate.what.write(&chain.map_err(usage)?)
        }
        Command::Inspect(inspect) => show::inspect(inspect),
        Command::Verify(verify) => show::verify(verify),
        Command::Present(Present { token, target }) => {
            let token = file::read_token(token)?;
            block_on(async { present(&target.open().await?.present(&token).await?, "token") })
        }
        Command::Announce(Announce { list, target }) => {
            let (_list, signed) = file::read_revocations(list)?;
            block_on(async { Ok(target.open().await?.announce(&signed).await?) })
        }
        Command::Revoke(arguments) => revoke::run(arguments),
    }
}

/// Says what something that was presented is good for; that it is good for nothing is a failure.
pub(super) fn present(given: &Given, what: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    for right in &given.rights {
        writeln!(out, "this node's entity {right}")?;
    }
    for one in &given.neighbours {
        writeln!(out, "{}: {}", one.peer, one.answer)?;
    }
    match &given.useless {
        Some(why) => {
            let words = format!("the node holds the {what}, and it gives nothing here now: {why}");
            Err(Failure::Runtime(words.into()))
        }
        None => Ok(()),
    }
}

impl Where {
    const fn name(&self) -> Option<&ChannelName> {
        match (&self.channel, &self.subtree) {
            (Some(name), _) | (None, Some(name)) => Some(name),
            (None, None) => None,
        }
    }

    fn scope(&self) -> Option<Scope> {
        let reach = match self.channel {
            Some(_) => Reach::Channel,
            None => Reach::Subtree,
        };
        self.name().map(|name| Scope::new(name, reach))
    }
}

impl Issue {
    fn generation(&self, issuer: &EntityKey) -> Result<u32, Failure> {
        let Some(path) = &self.list else {
            return Ok(self.generation);
        };
        let (list, _signed) = file::read_revocations(path)?;
        let shown = path.display();
        if *list.issuer() != issuer.public {
            let other = format!("{shown} is another issuer's list");
            return Err(Failure::Usage(other.into()));
        }
        let subject = Entry::Subject(self.what.subject);
        if list.entries().any(|(entry, _)| entry == subject) {
            let void = format!("{shown} has {subject}: a token of it would be void");
            return Err(Failure::Usage(void.into()));
        }
        Ok(list.generation())
    }
}

impl Delegate {
    /// The grant within the time of what it is delegated from; its scope has to lie within.
    fn narrowed(&self, token: &Chain, mut grant: Grant) -> Result<Grant, Failure> {
        let Some(last) = token.links().last().map(Link::grant) else {
            return Ok(grant);
        };
        let scopes = token.links().iter().map(|link| &link.grant().scope);
        let name = self.what.scope.name();
        for scope in scopes {
            if name.is_some_and(|name| !grant.scope.is_within(scope, name)) {
                let wide = format!("{} is more than the token covers: {scope}", grant.scope);
                return Err(Failure::Usage(wide.into()));
            }
        }
        if grant.not_before_s >= last.not_after_s {
            let ended = written(last.not_after_s);
            let late = format!("the token that would be passed on ends at {ended}");
            return Err(Failure::Usage(late.into()));
        }
        grant.not_before_s = grant.not_before_s.max(last.not_before_s);
        if grant.not_after_s > last.not_after_s {
            grant.not_after_s = last.not_after_s;
            let ends = written(last.not_after_s);
            // Without standard error there is nobody to tell.
            let _nobody = writeln!(
                io::stderr(),
                "virga: it ends with the token that it is delegated from, at {ends}"
            );
        }
        Ok(grant)
    }
}

impl What {
    fn grant(&self, generation: u32) -> Result<Grant, Failure> {
        let missing = |what: &str| Failure::Usage(format!("{what} is missing").into());
        let operations = Operations::new(&self.allow).ok_or_else(|| missing("--allow"))?;
        let is_delegable = operations.contains(Operation::Delegate);
        if is_delegable != (self.delegations > 0) {
            let words =
                "--delegations N and --allow delegate go together: who may delegate, and how often";
            return Err(Failure::Usage(words.into()));
        }
        let not_before_s = self.from.map_or_else(now_s, unix_s);
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(Failure::runtime)?;
        Ok(Grant {
            subject: self.subject,
            scope: self
                .scope
                .scope()
                .ok_or_else(|| missing("--channel or --subtree"))?,
            operations,
            delegations: self.delegations,
            not_before_s,
            not_after_s: not_before_s.saturating_add(self.lasts.as_secs()),
            generation,
            nonce,
        })
    }

    fn write(&self, chain: &Chain) -> Result<(), Failure> {
        let line = file::token_line(chain);
        match &self.out {
            Some(path) => Ok(file::replace(path, &line)?),
            None => Ok(io::stdout().lock().write_all(line.as_bytes())?),
        }
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Io { .. } => Self::Runtime(error.into()),
            _ => Self::Usage(error.into()),
        }
    }
}

fn usage(error: impl std::error::Error + Send + Sync + 'static) -> Failure {
    Failure::Usage(error.into())
}

pub(super) fn entity_key(path: &std::path::Path) -> Result<EntityKey, Failure> {
    let seed: Secret = keys::read(KeyKind::Entity, path)?;
    Ok(EntityKey::from(seed))
}

pub(super) fn public_key(text: &str) -> Result<[u8; 32], String> {
    hex::decode(text).map_err(|error| error.to_string())
}

pub(super) fn channel_name(text: &str) -> Result<ChannelName, String> {
    ChannelName::parse(text).map_err(|error| error.to_string())
}

pub(super) fn now_s() -> u64 {
    unix_s(SystemTime::now())
}

pub(super) fn unix_s(time: SystemTime) -> u64 {
    // No token is older than Unix.
    time.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// A time of a token, for people.
pub(super) fn written(unix_s: u64) -> String {
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(unix_s));
    // RFC 3339 ends with the year 9999.
    const LAST_S: u64 = 253_402_300_799;
    match time.filter(|_| unix_s <= LAST_S) {
        Some(time) => humantime::format_rfc3339_seconds(time).to_string(),
        None => format!("{unix_s} s after 1970"),
    }
}
