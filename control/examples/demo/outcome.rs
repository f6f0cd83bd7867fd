//! What the demonstration counted, and whether it held.

use std::{error::Error, fmt::Write as _, io};

use serde_json::{Value, json};
use virga_ebpf::reason::Reason;

use super::hosts::Hosts;

/// What the receiver saw.
#[derive(Default)]
pub struct Received {
    /// Events that were, byte for byte, what was published.
    pub equal: u64,
    /// Events that were not, or were not awaited.
    pub unequal: u64,
    /// From before publishing to after delivery.
    pub latencies_us: Vec<u64>,
}

/// Counters of router and publisher at one moment.
pub struct Sample {
    router: Value,
    edge: Value,
    /// What the router's kernel stack saw ([`Hosts::stack_packets`]); `None` without root.
    stack: Option<u64>,
}

/// How often counters are read again because the router took in a packet of its own meanwhile.
const READINGS_MAX: u32 = 100;

impl Sample {
    /// Reads them, the kernel's at a moment at which the router took in nothing of its own.
    pub fn take(hosts: &Hosts, is_root: bool) -> io::Result<Self> {
        let mut sample = Self {
            router: hosts.status("router")?,
            edge: hosts.status("edge-a")?,
            stack: None,
        };
        if !is_root {
            return Ok(sample);
        }
        for _ in 0..READINGS_MAX {
            let before = sample.outcome("local");
            let stack = hosts.stack_packets("router")?;
            sample.router = hosts.status("router")?;
            if sample.outcome("local") == before {
                sample.stack = Some(stack);
                return Ok(sample);
            }
        }
        Err(io::Error::other(format!(
            "the router took in packets of its own between each of {READINGS_MAX} readings of its counters"
        )))
    }

    /// The verdicts of whatever path forwards on the router.
    fn verdicts(&self) -> &Value {
        match &self.router["forwarding"]["nic"] {
            Value::Null => &self.router["userspace"],
            nic => nic,
        }
    }

    fn outcome(&self, name: &str) -> u64 {
        self.verdicts()["outcomes"][name]["packets"]
            .as_u64()
            .unwrap_or(0)
    }

    fn drops(&self, reason: Reason) -> u64 {
        self.verdicts()["drops"][reason.name()]["packets"]
            .as_u64()
            .unwrap_or(0)
    }

    fn retransmitted(&self) -> u64 {
        let sessions = self.edge["sessions"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        sessions
            .iter()
            .filter_map(|s| s["retransmitted_packets"].as_u64())
            .sum()
    }
}

/// The end of a demonstration.
pub struct Outcome {
    published: u64,
    delivered: u64,
    unequal: u64,
    forwarded: u64,
    /// What the router's kernel stack saw beyond the router's own packets; below 0 if it saw too few.
    stack: Option<i64>,
    own_control: u64,
    retransmitted: u64,
    unauthorised: Vec<(Reason, u64)>,
    malformed: Vec<(Reason, u64)>,
    p50_us: u64,
    p99_us: u64,
    mode: String,
}

impl Outcome {
    /// What happened between two samples.
    pub fn new(
        published: u64,
        mut received: Received,
        before: &Sample,
        after: &Sample,
    ) -> Result<Self, Box<dyn Error>> {
        let moved = |of: &dyn Fn(&Sample) -> u64| of(after).saturating_sub(of(before));
        let own_control = moved(&|s| s.outcome("local"));
        let dropped = |is_malformed: bool| -> Vec<(Reason, u64)> {
            let of_kind = Reason::ALL
                .iter()
                .filter(|r| r.is_malformed() == is_malformed);
            of_kind
                .map(|r| (*r, moved(&|s| s.drops(*r))))
                .filter(|(_, n)| *n > 0)
                .collect()
        };
        received.latencies_us.sort_unstable();
        let at = |share: usize| {
            let place = received.latencies_us.len().saturating_sub(1) * share / 100;
            received.latencies_us.get(place).copied().unwrap_or(0)
        };
        let modes = after.router["forwarding"]["interfaces"].as_array();
        let mode = modes
            .and_then(|all| all.first()?["xdp_mode"].as_str())
            .or_else(|| after.router["forwarding"]["mode"].as_str())
            .ok_or("the router's status names no mode")?;
        Ok(Self {
            published,
            delivered: received.equal,
            unequal: received.unequal,
            forwarded: moved(&|s| s.outcome("redirect")) + moved(&|s| s.outcome("transmit")),
            stack: match (before.stack, after.stack) {
                (Some(b), Some(a)) => Some(i64::try_from(a - b)? - i64::try_from(own_control)?),
                _ => None,
            },
            own_control,
            retransmitted: moved(&Sample::retransmitted),
            unauthorised: dropped(false),
            malformed: dropped(true),
            p50_us: at(50),
            p99_us: at(99),
            mode: mode.to_owned(),
        })
    }

    fn sum(drops: &[(Reason, u64)]) -> u64 {
        drops.iter().map(|(_, n)| n).sum()
    }

    /// Each promise, and whether it held.
    fn promises(&self) -> Vec<(&'static str, bool)> {
        let only = |drops: &[(Reason, u64)], reason| drops.iter().any(|(r, _)| *r == reason);
        let mut promises = vec![
            (
                "every event was delivered, byte for byte",
                self.delivered == self.published,
            ),
            ("nothing else was delivered", self.unequal == 0),
            ("packets were forwarded", self.forwarded > 0),
            (
                "the unauthorised flood was dropped",
                only(&self.unauthorised, Reason::Unauthorised),
            ),
            (
                "the malformed flood was dropped",
                Self::sum(&self.malformed) > 0,
            ),
        ];
        if let Some(seen) = self.stack {
            promises.push(("the router's kernel stack saw none of them", seen == 0));
        }
        promises
    }

    /// Whether all of it held.
    pub fn held(&self) -> bool {
        self.promises().iter().all(|(_, held)| *held)
    }

    /// For people.
    pub fn table(&self) -> String {
        let list = |drops: &[(Reason, u64)]| {
            let each: Vec<String> = drops
                .iter()
                .map(|(r, n)| format!("{} {n}", r.name()))
                .collect();
            format!("{} ({})", Self::sum(drops), each.join(", "))
        };
        let stack = self
            .stack
            .map_or("not counted without root".to_owned(), |n| n.to_string());
        let rows = [
            ("forwarding path", self.mode.clone()),
            ("published", self.published.to_string()),
            ("delivered, payload equal", self.delivered.to_string()),
            ("delivered, anything else", self.unequal.to_string()),
            (
                "packets forwarded by the router",
                self.forwarded.to_string(),
            ),
            ("of them in its kernel's stack", stack),
            (
                "the router's own control packets",
                self.own_control.to_string(),
            ),
            (
                "retransmitted by the publisher",
                self.retransmitted.to_string(),
            ),
            ("dropped, not authorised", list(&self.unauthorised)),
            ("dropped, malformed", list(&self.malformed)),
            (
                "latency p50 / p99",
                format!("{} us / {} us", self.p50_us, self.p99_us),
            ),
        ];
        let mut text = String::new();
        for (name, value) in rows {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name:<34} {value}");
        }
        for (promise, held) in self.promises() {
            let _ = writeln!(text, "{} {promise}", if held { "ok  " } else { "FAIL" });
        }
        text
    }

    /// For machines: one line.
    pub fn json(&self) -> String {
        json!({
            "published": self.published,
            "delivered": self.delivered,
            "forwarded_in_nic": if self.stack.is_some() { self.forwarded } else { 0 },
            "kernel_stack_mesh_packets": self.stack,
            "dropped_unauthorised": Self::sum(&self.unauthorised),
            "dropped_malformed": Self::sum(&self.malformed),
            "p50_us": self.p50_us,
            "p99_us": self.p99_us,
            "xdp_mode": self.mode,
        })
        .to_string()
    }
}
