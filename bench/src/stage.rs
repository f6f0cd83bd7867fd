//! The chains that forwarding is measured over: generator -- forwarder -- sink, three hosts as network
//! namespaces joined by veth pairs, one chain a forwarder, so that nothing is changed between rounds.

use std::{
    net::IpAddr,
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use aya::{Ebpf, programs::XdpMode};
use virga::{
    generate::{
        live::{Attached, Generator, Measured, Mode, Sent, Sink, Until},
        plan::{Path, Plan, Spread},
    },
    nic::{
        FORWARD,
        maps::{self, Maps},
    },
};
use virga_ebpf::{
    image::{Image, Place},
    limits::UDP_PORT,
    publish::Publisher,
    tables::{Address, NextHop},
};

use virga_bench::world::{self, CHANNEL, FIRST_DESTINATION, MEMBER};

use crate::{
    hosts::Hosts,
    report::{Skip, failed},
    xdp_tools,
};

/// Destinations that our forwarder has routes to, however many of them a plan sends to.
pub(crate) const DESTINATIONS: u32 = 1 << 20;
const A: &str = "10.78.1.2";
const ROUTER_A: &str = "10.78.1.1";
const ROUTER_B: &str = "10.78.2.1";
const B: &str = "10.78.2.2";
/// The channel of the user-space forwarder's configuration.
const NAME: &str = "bench/load";

/// Who forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Our XDP program.
    Ours,
    /// One redirect, nothing read, nothing written.
    Bare,
    /// The kernel's own IPv4 forwarding.
    KernelIp,
    /// `xdp-bench redirect` of xdp-tools.
    XdpBench,
    /// Our forwarder in user space, over a UDP socket.
    Userspace,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Bare => "bare",
            Self::KernelIp => "kernel",
            Self::XdpBench => "xdpbench",
            Self::Userspace => "user",
        }
    }
}

/// What keeps forwarding as long as it lives.
enum Forwarder {
    Ours { _ebpf: Ebpf, _maps: Box<Maps> },
    Bare { _redirect: Attached },
    KernelIp { _programs: [Attached; 2] },
    XdpBench(Child),
    XdpBenchProgram { _ebpf: Ebpf },
    Userspace { _null: Attached },
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        if let Self::XdpBench(child) = self {
            // It takes its program off on a signal; one that is killed leaves it, and the namespace ends.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// One chain.
pub(crate) struct Chain {
    pub(crate) kind: Kind,
    generator: Generator,
    sink: Sink,
    plan: Plan,
    router: String,
    a: String,
    _forwarder: Forwarder,
}

/// What one run gave.
pub(crate) struct Run {
    pub(crate) sent: Sent,
    pub(crate) measured: Measured,
}

impl Run {
    /// Packets that arrived, a second.
    pub(crate) fn rate(&self) -> f64 {
        per_second(self.measured.received, self.sent.elapsed_ns)
    }
}

/// A count over nanoseconds, a second.
#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
pub(crate) fn per_second(count: u64, elapsed_ns: u64) -> f64 {
    count as f64 * 1e9 / elapsed_ns.max(1) as f64
}

impl Chain {
    /// Makes a chain; its hosts are added to `hosts`.
    pub(crate) fn new(hosts: &mut Hosts, kind: Kind) -> Result<Self, Skip> {
        let [a, router, b] = ["a", "r", "b"].map(|host| format!("{host}-{}", kind.name()));
        for host in [&a, &router, &b] {
            hosts.add(host).map_err(failed)?;
        }
        for (edge, edge_address, interface, address) in
            [(&a, A, "ma", ROUTER_A), (&b, B, "mb", ROUTER_B)]
        {
            let with_prefix = |address: &str| format!("{address}/24");
            hosts
                .join(
                    (edge, "m0", &with_prefix(edge_address)),
                    (&router, interface, &with_prefix(address)),
                )
                .map_err(failed)?;
        }
        let macs = Macs::of(hosts, &a, &router, &b)?;
        let forwarder = forwarder(hosts, kind, [&a, &router, &b], &macs)?;
        let path = Path {
            source_mac: macs.a,
            target_mac: macs.ma,
            vlan: 0,
            source: ip(A),
            // The kernel routes by the outer address, all others are the target themselves.
            target: ip(if kind == Kind::KernelIp { B } else { ROUTER_A }),
            port: UDP_PORT,
        };
        let plan = match kind {
            Kind::Userspace => {
                let channel = virga_ebpf::hash::channel_hash(0, NAME);
                let (destination, origin) = (hosts.host(&b).node.id, hosts.host(&a).entity.origin);
                Plan::new(path, destination, origin, channel)
            }
            _ => Plan::new(path, FIRST_DESTINATION, MEMBER, CHANNEL),
        };
        let sink = hosts.inside(&b, || {
            Sink::attach("m0", UDP_PORT, DESTINATIONS, Mode::Native)
        });
        let sink = sink.map_err(failed)?.map_err(failed)?;
        let generator = hosts.inside(&a, || Generator::new("m0", &plan, &[0]));
        let generator = generator.map_err(failed)?.map_err(failed)?;
        Ok(Self {
            kind,
            generator,
            sink,
            plan,
            router,
            a,
            _forwarder: forwarder,
        })
    }

    /// Sends by the plan, as `change` makes it; what arrived is counted when nothing more comes.
    pub(crate) fn run(
        &mut self,
        hosts: &Hosts,
        until: Until,
        change: impl Fn(Plan) -> Plan,
    ) -> Result<Run, Skip> {
        let mut plan = change(self.plan.clone());
        if self.kind == Kind::Userspace {
            plan.spread = Spread::Sessions;
        }
        self.sink.clear().map_err(failed)?;
        let generator = &mut self.generator;
        let sent = hosts.inside(&self.a, || {
            generator.set_plan(&plan, &[0])?;
            generator.run(until)
        });
        let sent = sent.map_err(failed)?.map_err(failed)?;
        let mut measured = self.sink.read().map_err(failed)?;
        loop {
            thread::sleep(Duration::from_millis(20));
            let now = self.sink.read().map_err(failed)?;
            if now == measured {
                break;
            }
            measured = now;
        }
        if measured.received == 0 {
            return Err(failed(format!(
                "{}: nothing of {} packets arrived at the sink",
                self.router, sent.authorised
            )));
        }
        Ok(Run { sent, measured })
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or(IpAddr::from([0, 0, 0, 0]))
}

struct Macs {
    a: [u8; 6],
    ma: [u8; 6],
    mb: [u8; 6],
    b: [u8; 6],
}

impl Macs {
    fn of(hosts: &Hosts, a: &str, router: &str, b: &str) -> Result<Self, Skip> {
        Ok(Self {
            a: hosts.mac(a, "m0").map_err(failed)?,
            ma: hosts.mac(router, "ma").map_err(failed)?,
            mb: hosts.mac(router, "mb").map_err(failed)?,
            b: hosts.mac(b, "m0").map_err(failed)?,
        })
    }
}

fn forwarder(
    hosts: &mut Hosts,
    kind: Kind,
    [a, router, b]: [&str; 3],
    macs: &Macs,
) -> Result<Forwarder, Skip> {
    match kind {
        Kind::Ours => hosts.inside(router, || ours(macs)).map_err(failed)?,
        Kind::Bare => {
            let redirect = hosts.inside(router, || Attached::redirect("ma", "mb", Mode::Native));
            Ok(Forwarder::Bare {
                _redirect: redirect.map_err(failed)?.map_err(failed)?,
            })
        }
        Kind::KernelIp => {
            hosts
                .run(router, "sysctl", &["-qw", "net.ipv4.ip_forward=1"])
                .and_then(|_| hosts.run(router, "ping", &["-c", "1", "-w", "5", B]))
                .map_err(failed)?;
            // A live frame reaches a veth's other end only where a native program runs there.
            let programs = hosts.inside(router, || {
                Ok::<_, virga::generate::live::LiveError>([
                    Attached::null("ma", Mode::Native)?,
                    Attached::null("mb", Mode::Native)?,
                ])
            });
            Ok(Forwarder::KernelIp {
                _programs: programs.map_err(failed)?.map_err(failed)?,
            })
        }
        Kind::XdpBench => xdp_bench(hosts, router),
        Kind::Userspace => {
            let peer = |name: &str, address: &str| {
                format!(
                    "[[peers]]\nname = \"{name}\"\nnode_key = \"{{{name}.node}}\"\n\
                     entity_key = \"{{{name}.entity}}\"\naddress = \"{address}:{UDP_PORT}\"\n"
                )
            };
            let rest = format!(
                "worker_cores = [1]\n[forwarding]\nmode = \"userspace\"\n{}{}[[channels]]\nname = \"{NAME}\"\n\
                 reliable = false\npublish = [\"{{{a}.entity}}\"]\nsubscribe = [\"{{{b}.entity}}\"]\n",
                peer(a, A),
                peer(b, B)
            );
            hosts
                .configure(router, &format!("0.0.0.0:{UDP_PORT}"), &rest)
                .map_err(failed)?;
            hosts.start(router).map_err(failed)?;
            hosts
                .run(router, "ping", &["-c", "1", "-w", "5", B])
                .map_err(failed)?;
            let null = hosts.inside(router, || Attached::null("ma", Mode::Native));
            Ok(Forwarder::Userspace {
                _null: null.map_err(failed)?.map_err(failed)?,
            })
        }
    }
}

fn xdp_bench(hosts: &Hosts, router: &str) -> Result<Forwarder, Skip> {
    let mut child = hosts
        .command(router, "xdp-bench")
        .args(["redirect", "ma", "mb"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    // It says nothing once it runs.
    thread::sleep(Duration::from_secs(1));
    if child.try_wait().map_err(failed)?.is_none() {
        return Ok(Forwarder::XdpBench(child));
    }
    let said = child.wait_with_output().map_err(failed)?.stderr;
    let said = String::from_utf8_lossy(&said);
    let why = said.lines().rfind(|line| line.contains("failed"));
    eprintln!(
        "xdp-bench itself does not run here ({}): its program is attached without it",
        why.unwrap_or("it said nothing").trim()
    );
    let redirect = || xdp_tools::redirect(ifindex("ma")?, ifindex("mb")?);
    Ok(Forwarder::XdpBenchProgram {
        _ebpf: hosts.inside(router, redirect).map_err(failed)??,
    })
}

/// Our program on the router, with a route to every destination.
fn ours(macs: &Macs) -> Result<Forwarder, Skip> {
    let (mut ebpf, mut maps) = maps::load(None, DESTINATIONS).map_err(failed)?;
    let [ma, mb] = [ifindex("ma")?, ifindex("mb")?];
    let mut publisher = Publisher::recover(&maps).map_err(failed)?;
    publisher
        .apply(&mut maps, &image(macs, ma, mb), world::entropy())
        .map_err(failed)?;
    maps.set_egress(0, mb).map_err(failed)?;
    maps::program(&mut ebpf, FORWARD)
        .map_err(failed)?
        .attach_to_if_index(ma, XdpMode::Driver)
        .map_err(failed)?;
    Ok(Forwarder::Ours {
        _ebpf: ebpf,
        _maps: Box::new(maps),
    })
}

fn ifindex(name: &str) -> Result<u32, Skip> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").map_err(failed)?;
    rustix::net::netdevice::name_to_index(&socket, name).map_err(failed)
}

fn image(macs: &Macs, ma: u32, mb: u32) -> Image {
    let address = |text| Address::from(ip(text));
    let next_hop = NextHop {
        source: address(ROUTER_B),
        target: address(B),
        source_mac: macs.mb,
        target_mac: macs.b,
        ifindex: mb,
        ..NextHop::default()
    };
    let neighbour = Place::new(ma, address(A));
    world::router(address(ROUTER_A), neighbour, next_hop, DESTINATIONS.into())
}
