//! `virga init`: a node on a machine that has none, alone or by another node's invitation.

use super::{Failure, block_on, doctor, service};
use crate::{
    config::{Config, valid_address, valid_listen, valid_name},
    doctor::{Verdict, examine},
    enrol::{
        EnrolError, Invitation,
        exchange::{self, Joiner, Welcome},
        files::{FilesError, NewNode, NodeFile, Other},
    },
    keys::{self, EntityKey, KeyKind, Keys, NodeKey, Secret},
};
use std::{
    io::{self, BufRead as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::SystemTime,
};
use tokio::{net::TcpStream, time::timeout};

/// The mesh's UDP port.
const PORT: u16 = 4783;
/// The root, in which every node is that says nothing else.
const ROOT: &str = "0.0.0.0";
/// Bytes of the longest line that is read: many times an invitation.
const LINE_BYTES_MAX: u64 = 4096;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Join the network of the node that printed this invitation (`virga invite`); `-` reads it from
    /// standard input.
    #[arg(long, value_name = "LINE", conflicts_with = "network")]
    join: Option<String>,
    /// The node's name. Default: this host's, where that is one.
    #[arg(long, value_parser = valid_name)]
    name: Option<String>,
    /// Id of the new network.
    #[arg(long, value_name = "ID", default_value = "mesh")]
    network: String,
    /// Folder for the keys and node.toml; made when it is missing.
    #[arg(long, value_name = "FOLDER", default_value = keys::DIRECTORY)]
    dir: PathBuf,
    /// UDP address and port of the mesh. Default: port 4783 of all addresses.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = valid_listen)]
    listen: Option<SocketAddr>,
    /// Where the inviting node reaches this one, when that is not where it sees this one: behind a
    /// translation of addresses, with the port forwarded.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = valid_address, requires = "join")]
    address: Option<SocketAddr>,
    /// Forward transit packets in this interface's driver; may be given more than once.
    #[arg(long = "interface", value_name = "NAME")]
    interfaces: Vec<String>,
    /// Where the node's API listens. Default: /run/virga/NAME.sock.
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Folder of what the node keeps over a restart. Default: /var/lib/virga/NAME.
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    /// Leave the service alone, where there is one.
    #[arg(long)]
    no_service: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let invitation = arguments.join.as_deref().map(invitation).transpose()?;
    let name = match &arguments.name {
        Some(name) => name.clone(),
        None => host_name()?,
    };
    let listen = arguments.listen.unwrap_or_else(|| {
        let is_ipv6 = invitation.as_ref().is_some_and(|one| one.address.is_ipv6());
        let ip = if is_ipv6 {
            IpAddr::from(Ipv6Addr::UNSPECIFIED)
        } else {
            Ipv4Addr::UNSPECIFIED.into()
        };
        SocketAddr::new(ip, PORT)
    });
    let new = NewNode::begin(&arguments.dir)?;
    super::keygen::make_folder(&arguments.dir)?;
    let own = Own {
        arguments,
        name,
        listen,
        node: NodeKey::from(Secret::generate()?),
        entity: EntityKey::from(Secret::generate()?),
    };
    let config = match &invitation {
        None => own.found(new)?,
        Some(invitation) => own.join(new, invitation)?,
    };
    let mut out = io::stdout().lock();
    match arguments.no_service || !service::runs(&config.path) {
        true => writeln!(
            out,
            "run it: virga node run --config {}",
            config.path.display()
        )?,
        false => {
            service::enable()?;
            writeln!(out, "it runs, and starts with the machine (virga.service)")?;
        }
    }
    match (invitation.is_some(), config.channels.first()) {
        (true, Some(channel)) => writeln!(
            out,
            "try it: `virga sub {0}` at one of the two, `virga pub {0} --data hello` at the other",
            channel.name
        )?,
        _ => writeln!(
            out,
            "let another machine join: virga invite --config {}",
            config.path.display()
        )?,
    }
    writeln!(out, "\nvirga doctor says of this machine:")?;
    drop(out);
    let checks = examine(&arguments.interfaces, Some(&config));
    doctor::write_table(&checks)?;
    // The node is there whatever the machine lacks for it.
    if checks.iter().any(|check| check.verdict == Verdict::Fail) {
        writeln!(
            io::stderr(),
            "virga: the node is made; what FAILs above keeps it from running as it should"
        )?;
    }
    Ok(())
}

fn invitation(text: &str) -> Result<Invitation, Failure> {
    let mut line = zeroize::Zeroizing::new(String::new());
    if text == "-" {
        let input = io::stdin().lock();
        io::Read::take(input, LINE_BYTES_MAX).read_line(&mut line)?;
    } else {
        line.push_str(text);
    }
    Invitation::parse(&line).map_err(|error| Failure::Usage(error.into()))
}

/// What this host is called, as far as a node can be called so.
fn host_name() -> Result<String, Failure> {
    let host = rustix::system::uname();
    let host = host.nodename().to_string_lossy().to_lowercase();
    let first = host.split('.').next().unwrap_or_default();
    valid_name(first).map_err(|error| {
        Failure::Usage(
            format!("this host's name makes none for the node: {error}; say --name").into(),
        )
    })
}

/// The node that is to be.
struct Own<'a> {
    arguments: &'a Arguments,
    name: String,
    listen: SocketAddr,
    node: NodeKey,
    entity: EntityKey,
}

impl Own<'_> {
    /// What its file says of it.
    fn file<'a>(&'a self, network: &'a str) -> NodeFile<'a> {
        NodeFile {
            name: &self.name,
            network,
            psk_generation: 0,
            listen: self.listen,
            subnet: None,
            socket: self.arguments.socket.as_deref(),
            state: self.arguments.state.as_deref(),
            interfaces: &self.arguments.interfaces,
            routing: None,
        }
    }

    fn keys(&self, psk: Secret) -> Keys {
        Keys {
            node: self.node.clone(),
            entity: self.entity.clone(),
            psk,
        }
    }

    /// The first node of a network.
    fn found(&self, mut new: NewNode) -> Result<Config, Failure> {
        let psk = Secret::generate()?;
        let text = self.file(&self.arguments.network).text();
        self.write_keys(&mut new)?;
        new.write_key(KeyKind::Psk, &psk)?;
        let config = new.write_config(&text, self.keys(psk))?;
        new.keep();
        writeln!(
            io::stdout(),
            "node {} of the new network {:?}: {}",
            self.name,
            config.node.network,
            config.path.display()
        )?;
        Ok(config)
    }

    fn write_keys(&self, new: &mut NewNode) -> Result<(), FilesError> {
        new.write_key(KeyKind::Node, &self.node.secret)?;
        new.write_key(KeyKind::Entity, &self.entity.seed)
    }

    /// A node of the network of whoever invites.
    fn join(&self, mut new: NewNode, invitation: &Invitation) -> Result<Config, Failure> {
        if self.listen.is_ipv4() != invitation.address.is_ipv4() {
            let words = format!(
                "--listen {} is not of the family of the inviting node's address, {}: use IPv4 for both, or IPv6 for both",
                self.listen, invitation.address
            );
            return Err(Failure::Usage(words.into()));
        }
        // Whatever is in the way here is found before anybody is asked.
        self.write_keys(&mut new)?;
        block_on(self.ask(new, invitation))
    }

    async fn ask(&self, mut new: NewNode, invitation: &Invitation) -> Result<Config, Failure> {
        let address = invitation.address;
        let stream = timeout(exchange::PATIENCE, TcpStream::connect(address)).await;
        let stream = stream.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let stream = stream.map_err(|error| not_there(invitation, &error))?;
        let joiner = Joiner {
            name: self.name.clone(),
            entity_key: self.entity.public,
            address: self.address(),
            seen_here: stream.local_addr()?,
            port: self.listen.port(),
        };
        let welcomed = exchange::join(stream, invitation, &self.node, &joiner).await;
        let mut welcomed = welcomed.map_err(|error| not_let_in(invitation, error))?;
        let inviter = welcomed.welcome.name.clone();
        let config = match self.write(&mut new, &welcomed.welcome, invitation) {
            Ok(config) => config,
            Err(error) => {
                let why = crate::cause::chain(&error);
                // Whether it hears of it or not, it does not know this node.
                let _unheard = welcomed.failed(&why).await;
                return Err(error.into());
            }
        };
        // The words for the other end were used.
        welcomed.welcome.psk.clear();
        let network = &config.node.network;
        match welcomed.written().await {
            Ok(()) => {
                new.keep();
                writeln!(
                    io::stdout(),
                    "node {} of network {network:?}, with {inviter} as its peer: {}",
                    self.name,
                    config.path.display()
                )?;
                Ok(config)
            }
            Err(EnrolError::Refused(why)) => Err(Failure::runtime(why)),
            Err(error) => {
                new.keep();
                let path = config.path.display();
                let words = format!(
                    "the node is made ({path}), but whether {inviter} has written it down is not known: {error}; \
                     look whether {inviter}'s file names {}, and give it what `virga id --config {path}` prints if not",
                    self.name
                );
                Err(Failure::runtime(words))
            }
        }
    }

    /// Where others reach this node, as far as that is known here.
    fn address(&self) -> Option<SocketAddr> {
        let is_one = !self.listen.ip().is_unspecified();
        self.arguments.address.or(is_one.then_some(self.listen))
    }

    /// Writes what follows from the welcome.
    fn write(
        &self,
        new: &mut NewNode,
        welcome: &Welcome,
        invitation: &Invitation,
    ) -> Result<Config, WriteError> {
        let psk = welcome.psk()?;
        let subnet = Some(welcome.subnet.as_str()).filter(|subnet| *subnet != ROOT);
        let file = NodeFile {
            psk_generation: welcome.psk_generation,
            subnet,
            routing: welcome.routing,
            ..self.file(&welcome.network)
        };
        let inviter = Other {
            name: &welcome.name,
            node_key: invitation.node_key,
            entity_key: welcome.entity_key,
            address: invitation.address,
            subnet,
        };
        let text = file.text() + &inviter.blocks(&self.name, &self.name);
        new.write_key(KeyKind::Psk, &psk)?;
        Ok(new.write_config(&text, self.keys(psk))?)
    }
}

/// Why the welcome led to no node.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Files(#[from] FilesError),
    #[error(transparent)]
    Welcome(#[from] EnrolError),
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Files(error) => error.into(),
            WriteError::Welcome(error) => Self::runtime(error),
        }
    }
}

impl From<FilesError> for Failure {
    fn from(error: FilesError) -> Self {
        match error {
            FilesError::Key(error) => error.into(),
            FilesError::Config(error) => error.into(),
            FilesError::Exists { .. } => Self::Usage(error.into()),
            FilesError::Io { .. } => Self::Runtime(error.into()),
        }
    }
}

/// When the invitation ends or ended, by this machine's clock.
fn time(invitation: &Invitation) -> String {
    let end = std::time::Duration::from_secs(invitation.ends_s);
    let Some(end) = SystemTime::UNIX_EPOCH.checked_add(end) else {
        return "its time is over".into();
    };
    let words = match end <= SystemTime::now() {
        true => "its time was over at",
        false => "its time is over at",
    };
    let shown = humantime::format_rfc3339_seconds(end);
    format!("{words} {shown}")
}

fn not_there(invitation: &Invitation, error: &io::Error) -> Failure {
    let words = format!(
        "nobody waits at {} (TCP) for who has this invitation: {error}; it serves once, while `virga invite` \
         runs there ({}), and a firewall in between must let TCP and UDP through",
        invitation.address,
        time(invitation)
    );
    Failure::runtime(words)
}

fn not_let_in(invitation: &Invitation, error: EnrolError) -> Failure {
    let closed = |error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
        )
    };
    match error {
        // What is not sealed with the waiting invitation's secret is not answered.
        EnrolError::Io(error) if closed(&error) => {
            let words = format!(
                "whoever waits at {} did not take this invitation: it was used, or another one is open there now ({})",
                invitation.address,
                time(invitation)
            );
            Failure::runtime(words)
        }
        error => Failure::runtime(error),
    }
}
