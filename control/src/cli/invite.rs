//! `virga invite`: a line that lets one machine join, and the wait for it.

use super::{Failure, block_on, client::Target};
use crate::{
    cause,
    config::{Config, valid_address, valid_name},
    enrol::{
        Invitation,
        exchange::{self, Asking, ByEach, Welcome},
        files::{self, Other},
    },
    hex,
    keys::Secret,
};
use std::{
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    time::{Instant, sleep, sleep_until},
};
use virga_ebpf::header::Subnet;
use virga_routing::Aggregation;

/// Connections at once whose first message is awaited.
const CALLERS_MAX: usize = 64;
/// So many failed attempts are told one by one; the others are counted.
const TOLD_MAX: u64 = 10;
/// Longest life of an invitation: who forgets one leaves no door open for good.
const LIFE_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
/// When the system takes no connection, it is asked again after this.
const BREATH: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The node's configuration file; the new peer is written there.
    #[arg(long, value_name = "FILE", default_value = "/etc/virga/node.toml")]
    config: PathBuf,
    /// Where the other machine reaches this node, by UDP and TCP. Default: where the node listens, and
    /// where that is everywhere, the address that the default route has.
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = valid_address)]
    address: Option<SocketAddr>,
    /// How long it is waited, such as 30min; 7days at most.
    #[arg(long = "for", value_name = "TIME", value_parser = life, default_value = "10min")]
    life: Duration,
}

fn life(text: &str) -> Result<Duration, String> {
    let life = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match life >= Duration::from_secs(1) && life <= LIFE_MAX {
        true => Ok(life),
        false => Err("say 1s to 7days".into()),
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let config = Config::load(&arguments.config)?;
    let address = match arguments.address {
        Some(address) => address,
        None => reached_at(config.node.listen)?,
    };
    if address.is_ipv4() != config.node.listen.is_ipv4() {
        let words = format!(
            "--address {address} is not of the family that the node speaks: it listens on {}",
            config.node.listen
        );
        return Err(Failure::Usage(words.into()));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let ends = now.unwrap_or_default() + arguments.life;
    let invitation = Invitation {
        address,
        node_key: config.keys.node.public,
        secret: Secret::generate()?,
        ends_s: ends.as_secs(),
    };
    block_on(wait(arguments, config, invitation))
}

/// Where others reach a node that listens on `listen`.
fn reached_at(listen: SocketAddr) -> Result<SocketAddr, Failure> {
    if !listen.ip().is_unspecified() {
        return Ok(listen);
    }
    // Nothing is sent there: they are addresses of documentation, behind the default route.
    let (any, outside): (IpAddr, IpAddr) = match listen {
        SocketAddr::V4(_) => (
            Ipv4Addr::UNSPECIFIED.into(),
            Ipv4Addr::new(192, 0, 2, 1).into(),
        ),
        SocketAddr::V6(_) => (
            Ipv6Addr::UNSPECIFIED.into(),
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into(),
        ),
    };
    let ask = || {
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect((outside, listen.port()))?;
        socket.local_addr()
    };
    ask().map_or_else(
        |error| {
            let words = format!(
                "the node listens on {listen}, and this machine has no default route that says where others reach it ({error}): say --address"
            );
            Err(Failure::Usage(words.into()))
        },
        |local| Ok(SocketAddr::new(local.ip(), listen.port())),
    )
}

async fn wait(
    arguments: &Arguments,
    config: Config,
    invitation: Invitation,
) -> Result<(), Failure> {
    let listen = config.node.listen;
    let listener = TcpListener::bind(listen).await.map_err(|error| {
        let words = format!(
            "cannot listen on {listen} (TCP) for who joins: {error}; does another `virga invite` run?"
        );
        Failure::runtime(io::Error::new(error.kind(), words))
    })?;
    let mut out = io::stdout().lock();
    writeln!(out, "virga init --join {}", *invitation.line())?;
    out.flush()?;
    drop(out);
    let end = Instant::now() + arguments.life;
    writeln!(
        io::stderr(),
        "virga: run that line as root on the machine that is to join; it serves once, within {}, and reaches {} by TCP and UDP.\n\
         Whoever reads it before may join instead. This command waits; ending it takes the invitation back.",
        humantime::format_duration(arguments.life),
        invitation.address
    )?;
    let mut host = Host {
        invitation: Arc::new(invitation),
        slots: Arc::new(Semaphore::new(CALLERS_MAX)),
        config: Arc::new(config),
        failed: 0,
    };
    // One at a time is let in; the next waits until it is known whether that one has joined.
    let (heard, mut callers) = mpsc::channel(1);
    loop {
        tokio::select! {
            Some(caller) = callers.recv() => if host.answer(caller).await? {
                return Ok(());
            },
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => host.hear(stream, from, &heard),
                Err(_) => sleep(BREATH).await,
            },
            () = sleep_until(end) => {
                let words = format!("nobody has joined within {}: the invitation is void ({})",
                    humantime::format_duration(arguments.life), host.attempts());
                return Err(Failure::runtime(words));
            }
        }
    }
}

type Caller = (SocketAddr, Result<Asking, exchange::EnrolError>);

/// Who invites, while it waits.
struct Host {
    invitation: Arc<Invitation>,
    config: Arc<Config>,
    slots: Arc<Semaphore>,
    /// Attempts to join that led to nothing.
    failed: u64,
}

impl Host {
    /// Awaits a caller's first message, beside others'.
    fn hear(&mut self, stream: TcpStream, from: SocketAddr, heard: &mpsc::Sender<Caller>) {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            return self.tell(from, "too many connect at once");
        };
        let (invitation, config) = (Arc::clone(&self.invitation), Arc::clone(&self.config));
        let heard = heard.clone();
        tokio::spawn(async move {
            let asking = exchange::hear(stream, from, &invitation, &config.keys.node).await;
            // Nobody listens when somebody has joined meanwhile.
            let _ended = heard.send((from, asking)).await;
            drop(slot);
        });
    }

    /// Says why an attempt led to nothing; the first few of them.
    fn tell(&mut self, from: SocketAddr, why: &str) {
        self.failed += 1;
        if self.failed <= TOLD_MAX {
            // Without standard error there is nobody to tell.
            let _nobody = writeln!(io::stderr(), "virga: {from} has not joined: {why}");
        }
    }

    fn attempts(&self) -> String {
        format!("{} failed", super::counted(self.failed, "attempt"))
    }

    /// Whether the caller has joined.
    async fn answer(&mut self, (from, asking): Caller) -> Result<bool, Failure> {
        let asking = match asking {
            Ok(asking) => asking,
            Err(error) => {
                self.tell(from, &error.to_string());
                return Ok(false);
            }
        };
        let peer = match self.judge(&asking) {
            Ok(peer) => peer,
            Err(why) => {
                self.tell(from, &why);
                // It may be gone.
                let _unheard = asking.refuse(&why).await;
                return Ok(false);
            }
        };
        let ready = match asking.welcome(self.welcome()).await {
            Ok(ready) => ready,
            Err(error) => {
                self.tell(from, &error.to_string());
                return Ok(false);
            }
        };
        if let Err(why) = self.write(&peer) {
            self.tell(from, &why);
            let _unheard = ready.tell(Err(&why)).await;
            return Err(Failure::runtime(why));
        }
        // It is a peer whether it hears this or not.
        let told = ready.tell(Ok(())).await;
        let mut out = io::stdout();
        writeln!(
            out,
            "{} has joined, at {}: {}",
            peer.name,
            peer.address,
            self.config.path.display()
        )?;
        if let Err(error) = told {
            writeln!(
                out,
                "it may not know that yet ({error}); its files are there"
            )?;
        }
        self.follow(&mut out).await?;
        Ok(true)
    }

    /// Who would be a peer, or why not. Nothing is written yet.
    fn judge(&self, asking: &Asking) -> Result<Peer, String> {
        let joiner = &asking.joiner;
        let name = valid_name(&joiner.name)?;
        let config = self.config()?;
        if config.entities.iter().any(|one| one.name == name) {
            return Err(format!(
                "it knows a node called {name} already: choose another name with --name"
            ));
        }
        let (there, here) = (joiner.seen_here.ip(), asking.from.ip());
        let address = match joiner.address {
            Some(address) => address,
            None if there.to_canonical() == here.to_canonical() => {
                SocketAddr::new(here.to_canonical(), joiner.port)
            }
            None => {
                return Err(format!(
                    "addresses are translated between the two: {there} there is {here} here; forward a UDP port to {name}, and say that address and port there with --address"
                ));
            }
        };
        let address = valid_address(&address.to_string())?;
        let peer = Peer {
            name,
            node_key: asking.node_key,
            entity_key: joiner.entity_key,
            address,
        };
        self.text(&config, &peer)?;
        Ok(peer)
    }

    /// The node's configuration as it is now.
    fn config(&self) -> Result<Config, String> {
        Config::load(&self.config.path).map_err(|error| cause::chain(&error))
    }

    /// What its file would be.
    fn text(&self, config: &Config, peer: &Peer) -> Result<String, String> {
        let subnet = subnet(config.node.subnet);
        let other = Other {
            name: &peer.name,
            node_key: peer.node_key,
            entity_key: peer.entity_key,
            address: peer.address,
            subnet: subnet.as_deref(),
        };
        let blocks = other.blocks(&config.node.name, &peer.name);
        files::with_blocks(config, &blocks).map_err(|error| cause::chain(&error))
    }

    fn welcome(&self) -> Welcome {
        let config = &self.config;
        let told = match config.routing.aggregation {
            Aggregation::Exact => ByEach::Node,
            Aggregation::BySubnet => ByEach::Subnet,
        };
        Welcome {
            network: config.node.network.clone(),
            psk: hex::encode(config.keys.psk.expose()),
            psk_generation: config.node.psk_generation,
            name: config.node.name.clone(),
            entity_key: config.keys.entity.public,
            subnet: levels(config.node.subnet),
            routing: config.routing.is_enabled.then_some(told),
        }
    }

    /// Writes the peer down.
    fn write(&self, peer: &Peer) -> Result<(), String> {
        // Somebody may have changed the file since it was looked at.
        let config = self.config()?;
        let text = self.text(&config, peer)?;
        files::replace(&config.path, &text).map_err(|error| cause::chain(&error))
    }

    /// Has the node read its file, where it runs.
    async fn follow(&self, out: &mut impl io::Write) -> Result<(), Failure> {
        let socket = &self.config.node.socket;
        if std::os::unix::net::UnixStream::connect(socket).is_err() {
            return Ok(());
        }
        let target = Target {
            socket: Some(socket.clone()),
            node: None,
        };
        match target.open().await?.reload().await {
            Ok(_) => writeln!(out, "the node has read its file again")?,
            Err(error) => {
                let why = cause::chain(&error);
                writeln!(
                    out,
                    "the node did not take up its file: {why}; restart it, and it knows the new peer"
                )?;
            }
        }
        Ok(())
    }
}

/// Who is to be a peer.
struct Peer {
    name: String,
    node_key: [u8; 32],
    entity_key: [u8; 32],
    address: SocketAddr,
}

/// A subnet's levels.
fn levels(subnet: Subnet) -> String {
    Ipv4Addr::from_bits(subnet.0).to_string()
}

/// The same, when it is not the root.
fn subnet(subnet: Subnet) -> Option<String> {
    (subnet != Subnet::default()).then(|| levels(subnet))
}
