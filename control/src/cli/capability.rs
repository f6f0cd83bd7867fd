//! `virga capability`: what entities are and have, said by issuers and by themselves.

use super::{
    Failure, block_on,
    client::Target,
    print_json,
    token::{entity_key, now_s, present, public_key, written},
};
use crate::{
    api::rights::NamedStatement,
    capability::{
        Capabilities, Capability, Statement,
        statement::{By, Claim},
    },
    hex,
    rights::file,
};
use std::{
    io::{self, Write as _},
    path::PathBuf,
    time::Duration,
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Vouch for what an entity is and has, as an issuer that channels trust with it.
    Issue(Issue),
    /// Have a running node tell others what its entity says of itself. That lets it in nowhere.
    Announce(Announce),
    /// Show what a statement or an announcement says.
    Inspect(Inspect),
    /// Have a running node hold a statement about its entity, and show it to its peers.
    Present(Present),
    /// List what a running node knows of its own entity and of its peers'.
    Ls(List),
}

/// What is said.
#[derive(Debug, clap::Args)]
struct What {
    /// A tag or a value, such as hardware.gpu or software.cuda=12.4; several times for several.
    #[arg(long = "has", value_name = "CAPABILITY", required = true, value_parser = capability)]
    has: Vec<Capability>,
    /// How long it is valid, such as 24h or 30days.
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    lasts: Duration,
    /// The one with the highest version counts. Default: the time, in seconds after 1970.
    #[arg(long, value_name = "N")]
    version: Option<u64>,
    /// Write it there, not to standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Issue {
    /// The issuer's entity key file.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Public key of the entity that it is about (64 hex digits; `virga id` prints it).
    #[arg(long, value_name = "KEY", value_parser = public_key)]
    subject: [u8; 32],
    /// The issuer's generation of rights: `virga token revoke --generation` ends all earlier ones.
    #[arg(long, value_name = "N", default_value_t = 0)]
    generation: u32,
    #[command(flatten)]
    what: What,
}

#[derive(Debug, clap::Args)]
pub(super) struct Announce {
    /// The entity's own key file.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub(super) struct Inspect {
    /// The statement's file.
    statement: PathBuf,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Present {
    /// The statement's file.
    statement: PathBuf,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Print a JSON list.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Issue(issue) => {
            let claim = issue.what.claim(issue.subject)?;
            let issuer = entity_key(&issue.key)?;
            let statement = Statement::issue(claim, issue.generation, &issuer);
            issue.what.write(&statement)
        }
        Command::Announce(announce) => {
            let entity = entity_key(&announce.key)?;
            let claim = announce.what.claim(entity.public)?;
            let statement = Statement::announce(claim, &entity);
            // As a file it is for the configuration, and no node need run.
            if announce.what.out.is_some() {
                return announce.what.write(&statement);
            }
            block_on(async {
                let mesh = announce.target.open().await?;
                mesh.present_statement(&statement).await?;
                Ok(())
            })
        }
        Command::Inspect(inspect) => self::inspect(inspect),
        Command::Present(Present { statement, target }) => {
            let statement = file::read_statement(statement)?;
            block_on(async {
                let given = target.open().await?.present_statement(&statement).await?;
                match statement.by() {
                    By::Itself => Ok(()),
                    By::Issuer(_) => present(&given, "statement"),
                }
            })
        }
        Command::Ls(list) => ls(list),
    }
}

impl What {
    fn claim(&self, subject: [u8; 32]) -> Result<Claim, Failure> {
        let capabilities = Capabilities::new(self.has.clone());
        let now_s = now_s();
        Ok(Claim {
            subject,
            version: self.version.unwrap_or(now_s),
            not_before_s: now_s,
            not_after_s: now_s.saturating_add(self.lasts.as_secs()),
            capabilities: capabilities.map_err(|error| Failure::Usage(error.into()))?,
        })
    }

    fn write(&self, statement: &Statement) -> Result<(), Failure> {
        let line = file::statement_line(statement);
        match &self.out {
            Some(path) => Ok(file::replace(path, &line)?),
            None => Ok(io::stdout().lock().write_all(line.as_bytes())?),
        }
    }
}

fn capability(text: &str) -> Result<Capability, String> {
    Capability::parse(text).map_err(|error| error.to_string())
}

#[derive(serde::Serialize)]
struct Shown {
    id: String,
    issuer: Option<String>,
    subject: String,
    version: u64,
    generation: u32,
    not_before_s: u64,
    not_after_s: u64,
    capabilities: Vec<String>,
    bytes: usize,
}

fn inspect(arguments: &Inspect) -> Result<(), Failure> {
    let statement = file::read_statement(&arguments.statement)?;
    let claim = statement.claim();
    let all = claim.capabilities.as_slice().iter();
    let shown = Shown {
        id: statement.id().to_string(),
        issuer: match statement.by() {
            By::Itself => None,
            By::Issuer(issuer) => Some(hex::encode(&issuer)),
        },
        subject: hex::encode(&claim.subject),
        version: claim.version,
        generation: statement.generation(),
        not_before_s: claim.not_before_s,
        not_after_s: claim.not_after_s,
        capabilities: all.map(ToString::to_string).collect(),
        bytes: statement.as_bytes().len(),
    };
    if arguments.json {
        return print_json(&shown);
    }
    let mut out = io::stdout().lock();
    writeln!(out, "statement     {} ({} bytes)", shown.id, shown.bytes)?;
    match &shown.issuer {
        Some(issuer) => writeln!(out, "issuer        {issuer}")?,
        None => writeln!(out, "issuer        none: the subject says it of itself")?,
    }
    writeln!(out, "subject       {}", shown.subject)?;
    for capability in &shown.capabilities {
        writeln!(out, "capability    {capability}")?;
    }
    let (from, until) = (written(shown.not_before_s), written(shown.not_after_s));
    writeln!(out, "valid         {from} to {until}")?;
    writeln!(out, "version       {}", shown.version)?;
    writeln!(out, "generation    {}", shown.generation)?;
    Ok(writeln!(out, "its signature is right")?)
}

fn ls(arguments: &List) -> Result<(), Failure> {
    block_on(async {
        let all = arguments.target.open().await?.capabilities().await?;
        if arguments.json {
            return print_json(&all);
        }
        let mut out = io::stdout().lock();
        for one in &all {
            let NamedStatement {
                subject_name,
                issuer_name,
                statement,
            } = one;
            let subject = subject_name.as_ref().unwrap_or(&statement.subject);
            let by = match &statement.issuer {
                None => "announced by itself".to_owned(),
                Some(key) => format!("vouched for by {}", issuer_name.as_ref().unwrap_or(key)),
            };
            let (until, has) = (
                written(statement.not_after_s),
                statement.capabilities.join(", "),
            );
            writeln!(out, "{subject}: {has}; {by}, until {until}")?;
            if let (Some(why), Some(_)) = (&statement.discounted, &statement.issuer) {
                writeln!(out, "  counts nowhere here: {why}")?;
            }
        }
        Ok(())
    })
}
