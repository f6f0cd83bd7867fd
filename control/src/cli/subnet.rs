//! `virga subnet`: which subnets nodes are in, said by issuers.

use super::{
    Failure, block_on,
    client::Target,
    print_json,
    token::{entity_key, now_s, present, public_key, written},
};
use crate::{
    config::PeerSubnet,
    hex,
    membership::{Claim, Membership},
    rights::file,
};
use std::{
    io::{self, Write as _},
    path::PathBuf,
    time::Duration,
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Vouch for the subnet that an entity's node is in, as one of its neighbours' [subnets] issuers.
    Issue(Issue),
    /// Show what a membership says.
    Inspect(Inspect),
    /// Have a running node hold a membership of its entity, and show it to its peers.
    Present(Present),
}

#[derive(Debug, clap::Args)]
pub(super) struct Issue {
    /// The issuer's entity key file.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Public key of the entity whose node it is (64 hex digits; `virga id` prints it).
    #[arg(long, value_name = "KEY", value_parser = public_key)]
    subject: [u8; 32],
    /// Its subnet, such as 1.1.0.0; with fewer bits for a router that brings others' packets: 1.1.0.0/8.
    #[arg(long, value_name = "SUBNET", value_parser = PeerSubnet::parse)]
    subnet: PeerSubnet,
    /// How long it is valid, such as 24h or 30days.
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    lasts: Duration,
    /// The one with the highest version counts. Default: the time, in seconds after 1970.
    #[arg(long, value_name = "N")]
    version: Option<u64>,
    /// The issuer's generation of rights: `virga token revoke --generation` ends all earlier ones.
    #[arg(long, value_name = "N", default_value_t = 0)]
    generation: u32,
    /// Write it there, not to standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Inspect {
    /// The membership's file.
    membership: PathBuf,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(super) struct Present {
    /// The membership's file.
    membership: PathBuf,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Issue(issue) => self::issue(issue),
        Command::Inspect(inspect) => self::inspect(inspect),
        Command::Present(Present { membership, target }) => {
            let membership = file::read_membership(membership)?;
            block_on(async {
                let given = target.open().await?.present_membership(&membership).await?;
                present(&given, "membership")
            })
        }
    }
}

fn issue(arguments: &Issue) -> Result<(), Failure> {
    let now_s = now_s();
    let claim = Claim {
        subject: arguments.subject,
        version: arguments.version.unwrap_or(now_s),
        not_before_s: now_s,
        not_after_s: now_s.saturating_add(arguments.lasts.as_secs()),
        place: arguments.subnet,
    };
    let issuer = entity_key(&arguments.key)?;
    let membership = Membership::issue(claim, arguments.generation, &issuer);
    let line = file::membership_line(&membership);
    match &arguments.out {
        Some(path) => Ok(file::replace(path, &line)?),
        None => Ok(io::stdout().lock().write_all(line.as_bytes())?),
    }
}

#[derive(serde::Serialize)]
struct Shown {
    id: String,
    issuer: String,
    subject: String,
    subnet: String,
    version: u64,
    generation: u32,
    not_before_s: u64,
    not_after_s: u64,
}

fn inspect(arguments: &Inspect) -> Result<(), Failure> {
    let membership = file::read_membership(&arguments.membership)?;
    let claim = membership.claim();
    let shown = Shown {
        id: membership.id().to_string(),
        issuer: hex::encode(membership.issuer()),
        subject: hex::encode(&claim.subject),
        subnet: claim.place.to_string(),
        version: claim.version,
        generation: membership.generation(),
        not_before_s: claim.not_before_s,
        not_after_s: claim.not_after_s,
    };
    if arguments.json {
        return print_json(&shown);
    }
    let mut out = io::stdout().lock();
    writeln!(out, "membership    {}", shown.id)?;
    writeln!(out, "issuer        {}", shown.issuer)?;
    writeln!(out, "subject       {}", shown.subject)?;
    writeln!(out, "subnet        {}", shown.subnet)?;
    let (from, until) = (written(shown.not_before_s), written(shown.not_after_s));
    writeln!(out, "valid         {from} to {until}")?;
    writeln!(out, "version       {}", shown.version)?;
    writeln!(out, "generation    {}", shown.generation)?;
    Ok(writeln!(out, "its signature is right")?)
}
