//! `virga node`: run, detach, links.

use super::{Failure, block_on, client::Target, entity};
use crate::{
    api::status::LinkState,
    config::{Config, valid_name},
    daemon,
    nic::{self, kernel},
};
use std::{
    io::{self, Write as _},
    path::PathBuf,
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Run a node until SIGTERM; what it attached to interfaces goes on forwarding.
    Run {
        /// The configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Take a node's programs off its interfaces and remove its pins.
    Detach {
        /// The node's name.
        #[arg(value_parser = valid_name)]
        name: String,
    },
    /// Make the node a new key, and say that its entity lives where that key is.
    RotateKey(entity::RotateNode),
    /// Take the next hop to a neighbour in or out of use.
    Link {
        /// The node's name.
        #[arg(value_parser = valid_name)]
        name: String,
        /// The neighbour's name.
        #[arg(value_parser = valid_name)]
        peer: String,
        /// Used when the kernel knows the way, or not used at all.
        state: State,
        /// The node's socket, when it is not in /run/virga.
        #[arg(long, value_name = "PATH")]
        socket: Option<PathBuf>,
    },
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum State {
    Up,
    Down,
}

pub(super) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::Run { config } => {
            let config = Config::load(config)?;
            daemon::run(config).map_err(Failure::runtime)
        }
        Command::Detach { name } => {
            let was_there = nic::detach(name).map_err(Failure::runtime)?;
            let words = match was_there {
                true => "detached; its pins are removed",
                false => "nothing was attached or pinned",
            };
            writeln!(io::stdout(), "{name}: {words}")?;
            if was_there {
                let release = async { kernel::release_all().await.map_err(Failure::runtime) };
                block_on(release)?;
            }
            Ok(())
        }
        Command::RotateKey(arguments) => entity::rotate_node(arguments),
        Command::Link {
            name,
            peer,
            state,
            socket,
        } => {
            let (socket, node) = (socket.clone(), Some(name.clone()));
            let state = match state {
                State::Up => LinkState::Up,
                State::Down => LinkState::Down,
            };
            block_on(async move {
                let mesh = Target { socket, node }.open().await?;
                mesh.set_link(peer, state).await?;
                Ok(writeln!(
                    io::stdout(),
                    "{name}: next hop {peer} is {}",
                    state.name()
                )?)
            })
        }
    }
}
