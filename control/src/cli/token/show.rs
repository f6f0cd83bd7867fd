//! `virga token inspect` and `verify`.

use super::{Failure, channel_name, now_s, public_key, written};
use crate::{
    cli::print_json,
    hex,
    rights::{Chain, Operation, Question, Revocations, file},
};
use std::{
    io::{self, Write as _},
    path::PathBuf,
};
use virga_transport::ChannelName;

#[derive(Debug, clap::Args)]
pub(crate) struct Inspect {
    /// The token's file.
    token: PathBuf,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Verify {
    /// The token's file.
    token: PathBuf,
    /// Public key of an issuer that the channel trusts; several times for several.
    #[arg(long, value_name = "KEY", required = true, value_parser = public_key)]
    issuer: Vec<[u8; 32]>,
    /// Public key of whoever shows the token. Default: the one it was given to.
    #[arg(long, value_name = "KEY", value_parser = public_key)]
    holder: Option<[u8; 32]>,
    /// Where the right is wanted.
    #[arg(long, value_name = "NAME", value_parser = channel_name)]
    channel: ChannelName,
    /// What it is wanted for.
    #[arg(long, value_name = "OPERATION")]
    operation: Operation,
    /// Revocation lists of issuers.
    #[arg(long, value_name = "FILE")]
    revocations: Vec<PathBuf>,
}

#[derive(serde::Serialize)]
struct Shown {
    issuer: String,
    links: Vec<ShownLink>,
    /// The first thing that is wrong with signatures or delegation.
    fault: Option<String>,
}

#[derive(serde::Serialize)]
struct ShownLink {
    id: String,
    subject: String,
    scope: String,
    operations: Vec<&'static str>,
    delegations: u8,
    not_before_s: u64,
    not_after_s: u64,
    generation: u32,
    bytes: usize,
}

pub(super) fn inspect(arguments: &Inspect) -> Result<(), Failure> {
    let chain = file::read_token(&arguments.token)?;
    let shown = shown(&chain);
    if arguments.json {
        return print_json(&shown);
    }
    let mut out = io::stdout().lock();
    writeln!(out, "issuer      {}", shown.issuer)?;
    for (number, link) in (1..).zip(&shown.links) {
        writeln!(out, "link {number}      {} ({} bytes)", link.id, link.bytes)?;
        writeln!(out, "  subject     {}", link.subject)?;
        writeln!(out, "  scope       {}", link.scope)?;
        writeln!(out, "  operations  {}", link.operations.join(", "))?;
        writeln!(out, "  delegations {}", link.delegations)?;
        let (from, until) = (written(link.not_before_s), written(link.not_after_s));
        writeln!(out, "  valid       {from} to {until}")?;
        writeln!(out, "  generation  {}", link.generation)?;
    }
    match shown.fault {
        Some(fault) => writeln!(out, "worthless: {fault}")?,
        None => writeln!(
            out,
            "signatures and delegation are right, scopes not compared; `virga token verify` asks the rest"
        )?,
    }
    Ok(())
}

fn shown(chain: &Chain) -> Shown {
    let links = chain.links().iter().map(|link| {
        let grant = link.grant();
        ShownLink {
            id: link.id().to_string(),
            subject: hex::encode(&grant.subject),
            scope: grant.scope.to_string(),
            operations: grant.operations.iter().map(Operation::name).collect(),
            delegations: grant.delegations,
            not_before_s: grant.not_before_s,
            not_after_s: grant.not_after_s,
            generation: grant.generation,
            bytes: link.as_bytes().len(),
        }
    });
    let fault = chain.clone().authenticate().err();
    Shown {
        issuer: hex::encode(chain.issuer()),
        links: links.collect(),
        fault: fault.map(|refusal| refusal.to_string()),
    }
}

pub(super) fn verify(arguments: &Verify) -> Result<(), Failure> {
    let chain = file::read_token(&arguments.token)?;
    let mut revocations = Revocations::default();
    for path in &arguments.revocations {
        let (list, _signed) = file::read_revocations(path)?;
        let _learned = revocations.learn(list);
    }
    let authentic = chain.authenticate().map_err(Failure::runtime)?;
    let holder = arguments
        .holder
        .as_ref()
        .unwrap_or_else(|| authentic.holder());
    let question = Question {
        holder,
        operation: arguments.operation,
        channel: &arguments.channel,
        now_s: now_s(),
        issuers: &arguments.issuer,
        revocations: &revocations,
    };
    authentic.allows(&question).map_err(Failure::runtime)?;
    let (holder, until) = (hex::encode(holder), written(authentic.not_after_s()));
    let operation = arguments.operation.name();
    let channel = &arguments.channel;
    Ok(writeln!(
        io::stdout().lock(),
        "{holder} may {operation} on {channel} until {until}"
    )?)
}
