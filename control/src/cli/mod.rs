//! The command line: one file a command.
//!
//! Exit codes: 0 done, 1 it failed while running, 2 wrong usage or configuration. Errors go to
//! standard error as `virga: …`, with their causes.

mod bundle;
mod capability;
mod capture;
mod channel;
mod check_config;
mod client;
mod completions;
mod confirmations;
mod dissector;
mod doctor;
mod drops;
mod entity;
mod fan_out;
mod fold;
mod generate;
mod id;
mod init;
mod invite;
mod keygen;
mod lines;
mod log;
mod man;
mod metrics;
mod node;
mod peers;
mod publish;
mod reload;
mod routes;
mod service;
mod sink;
mod status;
mod subnet;
mod subscribe;
mod token;
mod top;
mod trace;
mod tune;
mod why;

use crate::{cause, config::ConfigError, keys::KeyError, mesh::MeshError};
use clap::{Parser, Subcommand};
use client::ClientError;
use std::{
    error::Error,
    io::{self, Write as _},
    process::ExitCode,
};

/// An encrypted mesh whose transit packets never reach the host's network stack.
#[derive(Debug, Parser)]
#[command(name = "virga", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a node on this machine: keys, configuration, service; alone, or by another node's invitation.
    Init(init::Arguments),
    /// Let one machine join: print the line to run there, and wait for it.
    Invite(invite::Arguments),
    /// Make a node's keys (and the network's pre-shared key).
    Keygen(keygen::Arguments),
    /// Print this node's public keys, and the [[peers]] block to give to others.
    Id(id::Arguments),
    /// Sign rights on channels, pass them on, look into them, take them back.
    #[command(subcommand)]
    Token(token::Command),
    /// Vouch for what entities are and have, look into it, list it.
    #[command(subcommand)]
    Capability(capability::Command),
    /// Vouch for the subnets that nodes are in, look into it.
    #[command(subcommand)]
    Subnet(subnet::Command),
    /// List a running node's channels; make, change and remove them, as an authority.
    #[command(subcommand)]
    Channel(channel::Command),
    /// Say what an entity may do on a channel, and which check refuses what it may not.
    Why(why::Arguments),
    /// Look into the logs below a folder, check, export and fill them.
    #[command(subcommand)]
    Log(log::Command),
    /// Move an entity to another node, or give it another key; every node that it is told follows.
    #[command(subcommand)]
    Entity(entity::Command),
    /// Say what a fold makes of logs.
    Fold(fold::Arguments),
    /// Run a node, detach it from its interfaces, take its links in or out of use.
    #[command(subcommand)]
    Node(node::Command),
    /// Publish events on a channel.
    Pub(publish::Arguments),
    /// Subscribe to a channel and print its events.
    Sub(subscribe::Arguments),
    /// Show which neighbour leads to which node, and by whose word.
    Routes(routes::Arguments),
    /// Show the way that packets for a node take, link by link; or time a channel's events, stage by stage.
    Trace(trace::Arguments),
    /// Watch a running node: its peers, links, drops and workers.
    Top(top::Arguments),
    /// Show what a running node is doing.
    Status(status::Arguments),
    /// Show what a running node drops, by reason, and what to do about it.
    Drops(drops::Arguments),
    /// Show packets as a running node decides upon them, or write them to a file for Wireshark.
    Capture(capture::Arguments),
    /// List the series that a node with [metrics] gives to Prometheus.
    Metrics,
    /// Show how packets get to each peer, and what is known of the links to neighbours.
    Peers(peers::Arguments),
    /// Have a running node read its configuration file anew: all that has changed counts, or nothing does.
    Reload(reload::Arguments),
    /// Check a configuration file, list everything that is wrong with it, and what a running node has otherwise.
    CheckConfig(check_config::Arguments),
    /// Check this machine, and print the line that fixes what it lacks.
    Doctor(doctor::Arguments),
    /// Write an archive for support: what the node is told, does and runs on, without its keys.
    Bundle(bundle::Arguments),
    /// Print the host settings that a router wants of an interface, and why; apply or undo them.
    Tune(tune::Arguments),
    /// Print a dissector that shows mesh headers in Wireshark and tshark.
    Dissector(dissector::Arguments),
    Gen(generate::Arguments),
    Sink(sink::Arguments),
    /// Write the manual's pages into a folder.
    #[command(hide = true)]
    Man(man::Arguments),
    /// Print what has a shell complete this command's words.
    #[command(hide = true)]
    Completions(completions::Arguments),
}

/// How a command ended when it did not succeed.
#[derive(Debug)]
enum Failure {
    /// The arguments or the configuration are wrong: nothing was tried.
    Usage(Box<dyn Error + Send + Sync>),
    /// It was tried, and failed.
    Runtime(Box<dyn Error + Send + Sync>),
    /// The same, and the output has said all there is to say.
    Told(u8),
}

impl Failure {
    fn runtime(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Runtime(error.into())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.into())
    }
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Io { .. } => Self::Runtime(error.into()),
            _ => Self::Usage(error.into()),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Runtime(error.into())
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        // Nobody reads the output any more: an I/O error that is told apart below.
        Self::Runtime(io::Error::from(error).into())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::NoNode
            | ClientError::SeveralNodes(_)
            | ClientError::Mesh(MeshError::Name(_)) => Self::Usage(error.into()),
            _ => Self::Runtime(error.into()),
        }
    }
}

impl From<MeshError> for Failure {
    fn from(error: MeshError) -> Self {
        ClientError::from(error).into()
    }
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Init(arguments) => init::run(&arguments),
        Command::Invite(arguments) => invite::run(&arguments),
        Command::Keygen(arguments) => keygen::run(&arguments),
        Command::Id(arguments) => id::run(&arguments),
        Command::Token(command) => token::run(&command),
        Command::Capability(command) => capability::run(&command),
        Command::Subnet(command) => subnet::run(&command),
        Command::Channel(command) => channel::run(&command),
        Command::Why(arguments) => why::run(&arguments),
        Command::Log(command) => log::run(&command),
        Command::Entity(command) => entity::run(&command),
        Command::Fold(arguments) => fold::run(&arguments),
        Command::Node(command) => node::run(&command),
        Command::Pub(arguments) => publish::run(&arguments),
        Command::Sub(arguments) => subscribe::run(&arguments),
        Command::Routes(arguments) => routes::run(&arguments),
        Command::Trace(arguments) => trace::run(&arguments),
        Command::Top(arguments) => top::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Drops(arguments) => drops::run(&arguments),
        Command::Capture(arguments) => capture::run(&arguments),
        Command::Metrics => metrics::run(),
        Command::Peers(arguments) => peers::run(&arguments),
        Command::Reload(arguments) => reload::run(&arguments),
        Command::CheckConfig(arguments) => check_config::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Bundle(arguments) => bundle::run(&arguments),
        Command::Tune(arguments) => tune::run(&arguments),
        Command::Dissector(arguments) => dissector::run(&arguments),
        Command::Gen(arguments) => generate::run(&arguments),
        Command::Sink(arguments) => sink::run(&arguments),
        Command::Man(arguments) => man::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments),
    };
    match result.and_then(|()| Ok(io::stdout().flush()?)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Told(code)) => ExitCode::from(code),
        Err(Failure::Usage(error)) => tell(error.as_ref(), 2),
        // `virga sub … | head` has what it wanted.
        Err(Failure::Runtime(error)) if is_broken_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(Failure::Runtime(error)) => tell(error.as_ref(), 1),
    }
}

/// Prints an error with its causes, and what to do where it is a lack of rights.
fn tell(error: &(dyn Error + 'static), code: u8) -> ExitCode {
    let mut text = cause::chain(error);
    if cause::is_not_permitted(error) && !text.contains("run as root") {
        text.push_str("; run as root (sudo virga ...), or as a user who may");
    }
    // Without standard error there is nobody to tell.
    let _nobody = writeln!(io::stderr(), "virga: {text}");
    ExitCode::from(code)
}

fn is_broken_pipe(error: &(dyn Error + Send + Sync + 'static)) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// A value as one line of JSON on standard output.
fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value)?;
    Ok(writeln!(out)?)
}

/// A share, given as so many of a million.
fn percent(ppm: u32) -> String {
    format!("{}.{:02} %", ppm / 10_000, ppm % 10_000 / 100)
}

/// A number of things, as a sentence has it.
fn counted<N: std::fmt::Display + PartialEq + From<u8>>(count: N, thing: &str) -> String {
    let plural = if count == N::from(1) { "" } else { "s" };
    format!("{count} {thing}{plural}")
}

/// Runs a client of the local API.
fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(future)
}
