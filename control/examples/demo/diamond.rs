//! a -- r1 -- {r2, r3} -- b: from r1 there are two ways to b, and the link to r2 passes through a switch that
//! can stop carrying anything while both ends keep their carrier.

#![allow(unreachable_pub)]
#![allow(
    dead_code,
    reason = "the tests and the measurement each use their part"
)]

use crate::hosts::Hosts;
use std::{
    io::{self, Write as _},
    path::Path,
    process::{Child, Stdio},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The channel that a publishes on and b subscribes to; unreliable, so that no retransmission hides a loss.
pub const CHANNEL: &str = "test/lossy";
const RELIABLE: &str = "test/reliable";

/// What stands between r1 and r2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Middle {
    /// A cable: where one end goes down, so does the other.
    Cable,
    /// A switch, the host `w`, with the ports `p1` and `p2`.
    Switch,
}

/// Who says which way leads where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ways {
    /// The configuration, with `via`.
    Written,
    /// The neighbours.
    Learned,
}

fn peer(name: &str, how: &str) -> String {
    format!(
        "[[peers]]\nname = \"{name}\"\nnode_key = \"{{{name}.node}}\"\n\
         entity_key = \"{{{name}.entity}}\"\n{how}\n"
    )
}

fn next(name: &str, address: &str) -> String {
    peer(name, &format!("address = \"{address}:4783\""))
}

impl Ways {
    fn to(self, name: &str, next_hops: &str) -> String {
        match self {
            Self::Written => peer(name, &format!("via = [{next_hops}]")),
            Self::Learned => peer(name, ""),
        }
    }

    const fn routing(self) -> &'static str {
        match self {
            Self::Written => "",
            Self::Learned => "[routing]\nenabled = true\n",
        }
    }
}

fn forwarding(interfaces: &str) -> String {
    format!("[forwarding]\nmode = \"native\"\ninterfaces = [{interfaces}]\n")
}

fn channels() -> String {
    let channel = |name, reliable| {
        format!(
            "[[channels]]\nname = \"{name}\"\nreliable = {reliable}\n\
             publish = [\"{{a.entity}}\"]\nsubscribe = [\"{{b.entity}}\"]\n"
        )
    };
    channel(CHANNEL, false) + &channel(RELIABLE, true)
}

/// All of it, running.
///
/// # Errors
/// When a host, a link or a node cannot be had.
pub fn diamond(prefix: &str, virga: &Path, middle: Middle) -> io::Result<Hosts> {
    diamond_by(Ways::Written, prefix, virga, middle)
}

/// The same where the ways are known otherwise.
///
/// # Errors
/// When a host, a link or a node cannot be had.
pub fn diamond_by(ways: Ways, prefix: &str, virga: &Path, middle: Middle) -> io::Result<Hosts> {
    let mut hosts = Hosts::new(prefix, virga)?;
    for host in ["a", "r1", "r2", "r3", "b"] {
        hosts.add(host)?;
    }
    let links = [
        ("a", "m0", "10.79.1.2", "r1", "ma", "10.79.1.1"),
        ("r1", "m3", "10.79.3.1", "r3", "m1", "10.79.3.2"),
        ("r2", "mb", "10.79.4.1", "b", "m2", "10.79.4.2"),
        ("r3", "mb", "10.79.5.1", "b", "m3", "10.79.5.2"),
    ];
    for (one, i, x, other, j, y) in links {
        hosts.join((one, i, &format!("{x}/24")), (other, j, &format!("{y}/24")))?;
    }
    let (near, far) = (("r1", "m2", "10.79.2.1/24"), ("r2", "m1", "10.79.2.2/24"));
    match middle {
        Middle::Cable => hosts.join(near, far)?,
        Middle::Switch => put_switch(&mut hosts, "w", near, far)?,
    }
    for (host, rest) in files(ways) {
        let rest = ways.routing().to_owned() + &rest + &channels();
        hosts.configure(host, "0.0.0.0:4783", &rest)?;
    }
    for host in ["a", "r1", "r2", "r3", "b"] {
        hosts.start(host)?;
    }
    Ok(hosts)
}

/// Each host's file, but for itself and the channels.
fn files(ways: Ways) -> [(&'static str, String); 5] {
    let both = "\"r2\", \"r3\"";
    let middle = |to_r1: &str, to_b: &str| {
        forwarding("\"m1\", \"mb\"")
            + &next("r1", to_r1)
            + &next("b", to_b)
            + &ways.to("a", "\"r1\"")
    };
    [
        (
            "a",
            forwarding("\"m0\"") + &next("r1", "10.79.1.1") + &ways.to("b", "\"r1\""),
        ),
        (
            "r1",
            forwarding("\"ma\", \"m2\", \"m3\"")
                + &next("a", "10.79.1.2")
                + &next("r2", "10.79.2.2")
                + &next("r3", "10.79.3.2")
                + &ways.to("b", both),
        ),
        ("r2", middle("10.79.2.1", "10.79.4.2")),
        ("r3", middle("10.79.3.1", "10.79.5.2")),
        (
            "b",
            forwarding("\"m2\", \"m3\"")
                + &next("r2", "10.79.4.1")
                + &next("r3", "10.79.5.1")
                // Back to a over r3, so that r2 carries nothing but what r1 gives it.
                + &ways.to("a", "\"r3\", \"r2\""),
        ),
    ]
}

/// Joins two hosts by a switch, which is a host too. Each end: host, interface, and address with its prefix length.
///
/// # Errors
/// When the host or a link cannot be had.
pub fn put_switch(
    hosts: &mut Hosts,
    switch: &str,
    near: (&str, &str, &str),
    far: (&str, &str, &str),
) -> io::Result<()> {
    hosts.add(switch)?;
    hosts.join(near, (switch, "p1", "10.79.201.1/30"))?;
    hosts.join(far, (switch, "p2", "10.79.202.1/30"))?;
    hosts.ip(
        switch,
        &["link", "add", "sw", "type", "bridge", "stp_state", "0"],
    )?;
    hosts.ip(switch, &["link", "set", "dev", "sw", "up"])?;
    for port in ["p1", "p2"] {
        hosts.ip(switch, &["address", "flush", "dev", port])?;
        // A veth takes redirected frames where its other end polls.
        hosts.run(switch, "ethtool", &["-K", port, "gro", "on"])?;
        hosts.ip(switch, &["link", "set", "dev", port, "master", "sw"])?;
    }
    Ok(())
}

/// The hand at a link: a program that has started, so that it acts at once.
#[derive(Debug)]
pub struct Hand {
    ip: Child,
    /// What cuts the link, and what mends it.
    lines: [&'static str; 2],
}

impl Hand {
    /// Ready to act at the diamond's switch.
    ///
    /// # Errors
    /// When `ip` cannot be started.
    pub fn new(hosts: &Hosts) -> io::Result<Self> {
        Self::at(hosts, "w")
    }

    /// Ready to act at a switch: the link falls silent, and its ends keep their carrier.
    ///
    /// # Errors
    /// When `ip` cannot be started.
    pub fn at(hosts: &Hosts, switch: &str) -> io::Result<Self> {
        let lines = ["link set dev p1 nomaster", "link set dev p1 master sw"];
        Self::by(hosts, switch, lines)
    }

    /// Ready to act at the far end of the diamond's cable: the link's loss is reported at either end.
    ///
    /// # Errors
    /// When `ip` cannot be started.
    pub fn at_cable(hosts: &Hosts) -> io::Result<Self> {
        let lines = ["link set dev m1 down", "link set dev m1 up"];
        Self::by(hosts, "r2", lines)
    }

    fn by(hosts: &Hosts, host: &str, lines: [&'static str; 2]) -> io::Result<Self> {
        let mut ip = hosts.command(host, "ip");
        let ip = ip.args(["-batch", "-"]).stdin(Stdio::piped()).spawn()?;
        Ok(Self { ip, lines })
    }

    /// Has the link carry nothing more; gives when.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn cut(&mut self) -> io::Result<Duration> {
        let at = SystemTime::now().duration_since(UNIX_EPOCH);
        self.tell(self.lines[0])?;
        Ok(at.unwrap_or_default())
    }

    /// Has it carry everything again.
    ///
    /// # Errors
    /// When it cannot be told.
    pub fn mend(&mut self) -> io::Result<()> {
        self.tell(self.lines[1])
    }

    fn tell(&mut self, line: &str) -> io::Result<()> {
        let told = self.ip.stdin.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        writeln!(told, "{line}")?;
        told.flush()
    }
}

impl Drop for Hand {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.ip.kill();
        let _reaped = self.ip.wait();
    }
}

/// When r1 last found a link dead, by its log, in the day.
#[must_use]
fn found_dead(hosts: &Hosts) -> Option<Duration> {
    let log = hosts.log("r1");
    let line = log.lines().rfind(|line| line.contains("a link is dead"))?;
    let (_, time) = line.split_whitespace().next()?.split_once('T')?;
    let mut parts = time.trim_end_matches('Z').split(':');
    let mut part = || parts.next()?.parse::<f64>().ok();
    let (hours, minutes, seconds) = (part()?, part()?, part()?);
    Some(Duration::from_secs_f64(
        hours * 3_600.0 + minutes * 60.0 + seconds,
    ))
}

/// How long after a cut it was found; none where it was not yet, and what the log has is of an earlier one.
#[must_use]
pub fn detected(hosts: &Hosts, cut: Duration) -> Option<Duration> {
    let took = between(cut, found_dead(hosts)?);
    (took < Duration::from_secs(3_600)).then_some(took)
}

/// From a moment of the Unix time to a later one in the day.
#[must_use]
fn between(from: Duration, to_in_day: Duration) -> Duration {
    const DAY: Duration = Duration::from_secs(86_400);
    let in_day = from.as_nanos() % DAY.as_nanos();
    let to = to_in_day.as_nanos()
        + if to_in_day.as_nanos() < in_day {
            DAY.as_nanos()
        } else {
            0
        };
    Duration::from_nanos(u64::try_from(to - in_day).unwrap_or(u64::MAX))
}

/// The longest run of numbers below `count` that did not arrive, and how many did not in all.
#[must_use]
pub fn missing(numbers: &[u64], count: u64) -> (u64, u64) {
    let (mut longest, mut next) = (0, 0);
    for &number in numbers {
        longest = longest.max(number.saturating_sub(next));
        next = number + 1;
    }
    longest = longest.max(count.saturating_sub(next));
    (longest, count.saturating_sub(numbers.len() as u64))
}
