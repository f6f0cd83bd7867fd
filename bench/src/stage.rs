//! The chains that forwarding is measured over: generator -- forwarder -- sink, three hosts as network
//! namespaces joined by veth pairs, one chain a forwarder, so that nothing is changed between rounds.

use std::{
    fs,
    net::IpAddr,
    process::{Child, Stdio},
    thread,
    time::Duration,
};

use aya::{Ebpf, programs::XdpMode};
use rustix::process::Pid;
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
    cpus::{allowed_cpus, pin_to},
    hosts::Hosts,
    interrupt,
    report::{Skip, failed, remark},
    xdp_tools,
};

/// Destinations that our forwarder has routes to, however many of them a plan sends to.
pub(crate) const DESTINATIONS: u32 = 1 << 20;
const A: &str = "10.78.1.2";
const ROUTER_A: &str = "10.78.1.1";
const ROUTER_B: &str = "10.78.2.1";
const B: &str = "10.78.2.2";
/// Calls of which the middle one says what a call takes.
const CALLS: usize = 5;
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
    /// Where the generator runs.
    cpu: u32,
    /// Nanoseconds that a call of the generator takes whatever it sends.
    call_ns: u64,
    _forwarder: Forwarder,
}

/// What one run gave.
pub(crate) struct Run {
    sent: Sent,
    pub(crate) measured: Measured,
    /// Nanoseconds that sending took, without the fixed cost of its calls.
    elapsed_ns: u64,
}

impl Run {
    /// Packets that arrived, a second.
    pub(crate) fn rate(&self) -> f64 {
        per_second(self.measured.received, self.elapsed_ns)
    }

    /// Packets that came to the router, a second: also those that met its full ring.
    pub(crate) fn arrivals(&self) -> f64 {
        per_second(self.sent.authorised + self.sent.hostile, self.elapsed_ns)
    }

    /// Those of them that were authorised.
    pub(crate) fn authorised(&self) -> f64 {
        per_second(self.sent.authorised, self.elapsed_ns)
    }

    /// The share of the authorised that did not arrive.
    pub(crate) fn lost(&self) -> f64 {
        1.0 - self.rate() / self.authorised()
    }
}

/// A count over nanoseconds, a second.
#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn per_second(count: u64, elapsed_ns: u64) -> f64 {
    count as f64 * 1e9 / elapsed_ns.max(1) as f64
}

impl Chain {
    /// Makes a chain, all on one CPU; its hosts are added to `hosts`.
    pub(crate) fn new(hosts: &mut Hosts, kind: Kind) -> Result<Self, Skip> {
        let cpus = allowed_cpus(1).map_err(failed)?;
        Self::of(hosts, kind, kind.name(), cpus[0])
    }

    /// Makes a chain of our forwarder with the generator on one CPU, router and sink on another.
    pub(crate) fn on_two_cpus(hosts: &mut Hosts) -> Result<Self, Skip> {
        let cpus = allowed_cpus(2).map_err(|e| Skip::Missing(e.to_string()))?;
        let chain = Self::of(hosts, Kind::Ours, "split", cpus[0])?;
        poll_on(hosts, &chain.router, "ma", cpus[1])?;
        Ok(chain)
    }

    fn of(hosts: &mut Hosts, kind: Kind, name: &str, cpu: u32) -> Result<Self, Skip> {
        let [a, router, b] = ["a", "r", "b"].map(|host| format!("{host}-{name}"));
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
        let generator = hosts.inside(&a, || Generator::new("m0", &plan, &[cpu]));
        let generator = generator.map_err(failed)?.map_err(failed)?;
        Ok(Self {
            kind,
            generator,
            sink,
            plan,
            router,
            a,
            cpu,
            call_ns: 0,
            _forwarder: forwarder,
        })
    }

    /// Measures what a call of the generator takes that sends one packet; what runs take is less by that
    /// from then on.
    pub(crate) fn measure_call(&mut self, hosts: &Hosts) -> Result<(), Skip> {
        let mut calls = Vec::new();
        for _ in 0..CALLS {
            let sent = self.send(hosts, &self.plan.clone(), Until::Count(1))?;
            calls.push(sent.elapsed_ns);
        }
        calls.sort_unstable();
        self.call_ns = calls[CALLS / 2];
        Ok(())
    }

    fn send(&mut self, hosts: &Hosts, plan: &Plan, until: Until) -> Result<Sent, Skip> {
        let (generator, cpu) = (&mut self.generator, self.cpu);
        let sent = hosts.inside(&self.a, || {
            generator.set_plan(plan, &[cpu])?;
            generator.run(until)
        });
        sent.map_err(failed)?.map_err(failed)
    }

    /// Sends by the plan, as `change` makes it; what arrived is counted when nothing more comes.
    pub(crate) fn run(
        &mut self,
        hosts: &Hosts,
        until: Until,
        change: impl Fn(Plan) -> Plan,
    ) -> Result<Run, Skip> {
        interrupt::check()?;
        let mut plan = change(self.plan.clone());
        if self.kind == Kind::Userspace {
            plan.spread = Spread::Sessions;
        }
        self.sink.clear().map_err(failed)?;
        let sent = self.send(hosts, &plan, until)?;
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
        let fixed_ns = sent.calls.saturating_mul(self.call_ns);
        let elapsed_ns = sent.elapsed_ns.saturating_sub(fixed_ns);
        if elapsed_ns < fixed_ns {
            return Err(failed(format!(
                "{}: a run of {} ns is too short beside the {fixed_ns} ns that its calls take anyway",
                self.router, sent.elapsed_ns
            )));
        }
        Ok(Run {
            sent,
            measured,
            elapsed_ns,
        })
    }
}

/// Has an interface of a router polled by a kernel thread of its own, on that CPU: what arrives there is
/// not handled by its sender. The interface must run a program.
fn poll_on(hosts: &Hosts, router: &str, interface: &str, cpu: u32) -> Result<(), Skip> {
    let before = pollers(interface);
    let threaded = format!("echo 1 > /sys/class/net/{interface}/threaded");
    let output = hosts
        .netns_exec(router, "sh")
        .args(["-c", &threaded])
        .output();
    let output = output.map_err(failed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Skip::Missing(format!("no threaded NAPI: {said}")));
    }
    let new: Vec<Pid> = pollers(interface)
        .into_iter()
        .filter(|thread| !before.contains(thread))
        .collect();
    if new.is_empty() {
        let said = format!("no kernel thread polls {interface}");
        return Err(Skip::Missing(said));
    }
    new.into_iter()
        .try_for_each(|thread| pin_to(Some(thread), cpu).map_err(failed))
}

/// The kernel threads that poll an interface of that name, in whatever namespace.
fn pollers(interface: &str) -> Vec<Pid> {
    let prefix = format!("napi/{interface}-");
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|process| {
            let name = fs::read_to_string(process.path().join("comm")).ok()?;
            let number = process.file_name().to_str()?.parse().ok()?;
            name.starts_with(&prefix).then(|| Pid::from_raw(number))?
        })
        .collect()
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
            let cpus = allowed_cpus(2).map_err(|e| Skip::Missing(e.to_string()))?;
            let peer = |name: &str, address: &str| {
                format!(
                    "[[peers]]\nname = \"{name}\"\nnode_key = \"{{{name}.node}}\"\n\
                     entity_key = \"{{{name}.entity}}\"\naddress = \"{address}:{UDP_PORT}\"\n"
                )
            };
            let rest = format!(
                "worker_cores = [{}]\n[forwarding]\nmode = \"userspace\"\n{}{}[[channels]]\nname = \"{NAME}\"\n\
                 reliable = false\npublish = [\"{{{a}.entity}}\"]\nsubscribe = [\"{{{b}.entity}}\"]\n",
                cpus[1],
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
    let tool = xdp_tools::find()?;
    let mut child = hosts
        .command(router, &tool.to_string_lossy())
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
    let redirect = || xdp_tools::redirect(&tool, ifindex("ma")?, ifindex("mb")?);
    let ebpf = hosts.inside(router, redirect).map_err(failed)??;
    remark(
        "forward.vs_xdp_bench",
        format!(
            "the tool itself does not run here ({}): its program is attached without it",
            why.unwrap_or("it said nothing").trim()
        ),
    );
    Ok(Forwarder::XdpBenchProgram { _ebpf: ebpf })
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
