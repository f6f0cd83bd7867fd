//! Which settings a router wants, and why: from facts and the driver's profile, group by group.

use super::{
    Group, Options,
    facts::{BUSY_POLL, Facts, HUGEPAGES, NEW_INTERRUPTS, WORK, folder, governor},
    setting::{Kind, Setting, is_missing_rule, spread},
    state::State,
};
use crate::{
    hw::{Queues, Target},
    io::ethtool::Flow,
};
use std::path::{Path, PathBuf};

/// Frames of a ring: what arrives in 0.24 ms at 10 Gbit/s of the smallest frames.
const RING_FRAMES: u32 = 2_048;
/// Microseconds that a frame may wait for its interrupt.
const RX_USECS_MAX: u32 = 20;
/// Fields of a flow: source, destination, and both ports.
const FLOW_FIELDS: &str = "sdfn";
/// Empty polls until interrupts are on again, and nanoseconds between polls (commit 6f8b12d661d0).
const DEFER_POLLS: &str = "10";
const DEFER_NS: &str = "20000";
/// Microseconds of busy polling that the kernel's documentation recommends for several sockets.
const BUSY_POLL_USECS: &str = "50";

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) group: Group,
    pub(crate) setting: Setting,
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) why: String,
}

/// The changes of a group, and what is left alone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) notes: Vec<(Group, String)>,
    /// Changes of before the last boot, which has undone them.
    pub(crate) forgotten: usize,
}

/// Collects them.
struct Planner<'a> {
    facts: &'a Facts,
    group: Group,
    plan: Plan,
}

impl Planner<'_> {
    fn step(&mut self, setting: Setting, from: impl ToString, to: impl ToString, why: &str) {
        let (from, to) = (from.to_string(), to.to_string());
        if from != to {
            self.plan.steps.push(Step {
                group: self.group,
                setting,
                from,
                to,
                why: why.to_owned(),
            });
        }
    }

    fn note(&mut self, text: impl Into<String>) {
        self.plan.notes.push((self.group, text.into()));
    }

    /// A file's new value, when the file is there.
    fn file(&mut self, path: PathBuf, to: &str, why: &str) -> bool {
        let Some(from) = self.facts.files.get(&path).cloned() else {
            return false;
        };
        self.step(Setting::File(path), from, to, why);
        true
    }
}

/// The plan of one group.
pub(super) fn plan(group: Group, facts: &Facts, options: &Options, state: &State) -> Plan {
    let plan = Plan::default();
    let mut planner = Planner { facts, group, plan };
    match group {
        Group::Queues => queues(&mut planner, options),
        Group::Rings => rings(&mut planner),
        Group::Rss => rss(&mut planner),
        Group::Steer => steer(&mut planner, options, state),
        Group::Offloads => offloads(&mut planner),
        Group::Coalesce => coalesce(&mut planner),
        Group::Irq => irq(&mut planner, options),
        Group::BusyPoll => busy_poll(&mut planner),
        Group::Governor => governors(&mut planner, options),
        Group::Hugepages => hugepages(&mut planner, options),
        Group::Isolation => isolation(&mut planner, options),
    }
    planner.plan
}

fn count(cpus: &[u32]) -> u32 {
    u32::try_from(cpus.len()).unwrap_or(u32::MAX).max(1)
}

fn queues(planner: &mut Planner<'_>, options: &Options) {
    let facts = planner.facts;
    let (online, serving) = (count(&facts.online), count(options.cpus(facts)));
    let Some(channels) = facts.channels else {
        return planner.note("the driver tells no queue counts: left alone");
    };
    let Some(queues) = facts.profile.and_then(|profile| profile.queues.value()) else {
        let note = format!(
            "no profile says what driver {} wants: left alone",
            facts.driver
        );
        return planner.note(note);
    };
    if *queues == Queues::PeerSends {
        let wanted = serving.min(channels.rx_max).max(channels.rx);
        let why = "a receive queue for each CPU: redirected frames go to that of the sending CPU, \
                   and no program is taken with fewer than the other end sends on";
        return planner.step(Setting::Channels(Kind::Rx), channels.rx, wanted, why);
    }
    if channels.combined_max == 0 {
        let note = "receive and send queues are separate: left alone (see the driver's pitfalls in `virga doctor`)";
        return planner.note(note);
    }
    let most = channels.combined_max;
    let (wanted, why) = match queues {
        Queues::OnePerCpu => (
            online.min(most),
            "one for each CPU: this driver loses what CPUs without a queue redirect to it",
        ),
        Queues::AtMostHalf => (
            serving.min(most / 2).max(1),
            "at most half of what the card has: the driver keeps the other half for redirected frames",
        ),
        Queues::SparePerCpu if most > online => (
            serving.min(most - online),
            "as many left over as there are CPUs: without, redirected frames share send queues under a lock",
        ),
        Queues::SparePerCpu => {
            let note = format!(
                "{most} queues for {online} CPUs: none to spare, redirected frames share them under a lock"
            );
            planner.note(note);
            (serving.min(most), "one for each CPU that receives")
        }
        Queues::OwnPerCpu | Queues::Shared | Queues::PeerSends => {
            (serving.min(most), "one for each CPU that receives")
        }
    };
    planner.step(
        Setting::Channels(Kind::Combined),
        channels.combined,
        wanted,
        why,
    );
}

fn rings(planner: &mut Planner<'_>) {
    let Some(rings) = planner.facts.rings else {
        return planner.note("the driver tells no ring sizes: left alone");
    };
    let why = "holds what arrives in 0.24 ms at 10 Gbit/s of the smallest frames, while a core is elsewhere";
    for (kind, now, most) in [
        (Kind::Rx, rings.rx, rings.rx_max),
        (Kind::Tx, rings.tx, rings.tx_max),
    ] {
        // Larger ones were chosen by someone.
        planner.step(
            Setting::Ring(kind),
            now,
            RING_FRAMES.min(most).max(now),
            why,
        );
    }
}

fn rss(planner: &mut Planner<'_>) {
    let facts = planner.facts;
    let queues = facts
        .channels
        .map_or(0, |channels| channels.combined + channels.rx);
    match (
        facts.table.as_deref(),
        facts.table.as_deref().and_then(spread),
    ) {
        (None | Some([]), _) => planner.note("the card has no indirection table: left alone"),
        (Some(_), Some(now)) if queues > 0 => {
            let why = "every queue receives its share";
            planner.step(Setting::Spread, now, queues, why);
        }
        (Some(_), _) => planner.note(
            "the indirection table is weighted by hand and could not be put back: left alone",
        ),
    }
    if facts.hashes.is_empty() {
        planner.note("the driver does not tell how it hashes UDP: left alone");
    }
    for (flow, fields) in facts.hashes.clone() {
        if fields.is_empty() {
            planner.note(format!("{flow} is not hashed at all: left alone"));
            continue;
        }
        let why = "a session's source port is part of its hash, so that sessions between two hosts spread";
        planner.step(Setting::FlowHash(flow), fields, FLOW_FIELDS, why);
    }
}

fn steer(planner: &mut Planner<'_>, options: &Options, state: &State) {
    let Some(queue) = options.steer else { return };
    let to = format!("queue {queue}");
    for flow in [Flow::Udp4, Flow::Udp6] {
        let setting = Setting::Steer(flow);
        // A reset card has forgotten the rule.
        let there = state
            .change_of(&setting)
            .filter(|change| !is_missing_rule(&change.from, planner.facts.rules.as_deref()));
        match there.map(|change| change.to.as_str()) {
            Some(now) if now == to => {}
            Some(now) => planner.note(format!("{flow} goes to {now} already: --undo first")),
            None => {
                let why = "the mesh has this queue and its core for itself";
                planner.step(setting, "none", &to, why);
            }
        }
    }
}

fn offloads(planner: &mut Planner<'_>) {
    const OFF: [(&str, &str); 3] = [
        (
            "rx-lro",
            "merged packets are larger than a page, and no packets of the mesh",
        ),
        (
            "rx-gro-hw",
            "merged packets are larger than a page, and no packets of the mesh",
        ),
        (
            "rx-vlan-hw-parse",
            "a program sees the tag only where it is left in the frame",
        ),
    ];
    let facts = planner.facts;
    let is_veth = facts.profile.and_then(|p| p.target.value()) == Some(&Target::PeerReady);
    let mut wanted: Vec<(&str, bool, &str)> =
        OFF.iter().map(|(n, why)| (*n, false, *why)).collect();
    if is_veth {
        wanted.push((
            "tx-checksum-ip-generic",
            false,
            "a veth has no hardware to finish checksums: who receives behind a redirect drops such packets",
        ));
        wanted.push((
            "rx-gro",
            true,
            "readies this end for frames that are redirected to the other",
        ));
    }
    let word = |is_on| if is_on { "on" } else { "off" };
    for (name, want, why) in wanted {
        match facts.features.iter().find(|feature| feature.name == name) {
            Some(feature) if feature.is_active == want => {}
            Some(feature) if feature.is_changeable => {
                let setting = Setting::Feature(name.to_owned());
                planner.step(setting, word(!want), word(want), why);
            }
            Some(_) => planner.note(format!("{name} is {} and fixed", word(!want))),
            None => {}
        }
    }
}

fn coalesce(planner: &mut Planner<'_>) {
    let Some(now) = planner.facts.coalesce else {
        return planner
            .note("the driver does not coalesce interrupts, or does not tell: left alone");
    };
    if now.is_adaptive_rx {
        let why = "the same wait at every rate, so that latency does not follow other traffic";
        planner.step(Setting::AdaptiveRx, "on", "off", why);
    }
    let why =
        "no frame waits longer for its interrupt; at most 50,000 interrupts a second and queue";
    let to = now.rx_usecs.min(RX_USECS_MAX);
    planner.step(Setting::RxUsecs, now.rx_usecs, to, why);
}

fn irq(planner: &mut Planner<'_>, options: &Options) {
    let facts = planner.facts;
    let cpus = options.cpus(facts);
    if !facts.is_in_sysfs {
        return planner.note(NOT_IN_SYSFS);
    }
    if facts.interrupts.is_empty() || cpus.is_empty() {
        return planner.note("no interrupts of its own: left alone");
    }
    if facts.has_irqbalance {
        planner.note("irqbalance runs and will move them: systemctl disable --now irqbalance");
    }
    for interrupt in &facts.interrupts {
        let index = usize::try_from(interrupt.queue).unwrap_or(usize::MAX) % cpus.len();
        let why =
            "each queue is served by one core, and each core by one queue where there are enough";
        planner.file(interrupt.file(), &cpus[index].to_string(), why);
    }
}

const NOT_IN_SYSFS: &str =
    "/sys shows another namespace: run this with `ip netns exec NAMESPACE virga tune …`";

fn busy_poll(planner: &mut Planner<'_>) {
    let facts = planner.facts;
    if facts.is_in_sysfs {
        let folder = folder(&facts.interface);
        let why = "a busy queue is polled by a timer and its interrupts stay off: up to a fifth more at 100 Gbit/s";
        planner.file(folder.join("napi_defer_hard_irqs"), DEFER_POLLS, why);
        let why = "the time between two such polls";
        planner.file(folder.join("gro_flush_timeout"), DEFER_NS, why);
    } else {
        planner.note(NOT_IN_SYSFS);
    }
    let why = "a socket looks for packets on the card before it sleeps; holds for every program of this host";
    let all = BUSY_POLL.map(|path| planner.file(path.into(), BUSY_POLL_USECS, why));
    if all.contains(&false) {
        planner.note("net.core.busy_* are in the first network namespace only");
    }
}

fn governors(planner: &mut Planner<'_>, options: &Options) {
    let facts = planner.facts;
    let why = "the clock does not have to rise first when packets come";
    let mut any = false;
    for cpu in options.cpus(facts) {
        any |= planner.file(governor(*cpu), "performance", why);
    }
    if !any {
        planner.note("no frequency scaling here: a virtual machine, or the firmware decides");
    }
}

fn hugepages(planner: &mut Planner<'_>, options: &Options) {
    let Some(pages) = options.hugepages else {
        return;
    };
    let why = "frame buffers of AF_XDP sockets in pages of 2 MiB miss the TLB less";
    if !planner.file(HUGEPAGES.into(), &pages.to_string(), why) {
        planner.note("this kernel has no pages of 2 MiB");
    }
}

fn isolation(planner: &mut Planner<'_>, options: &Options) {
    let facts = planner.facts;
    let Some(cpus) = &options.cpus else {
        return planner.note("name the cores that are to do nothing else with --cpus LIST");
    };
    if cpus.len() >= facts.online.len() {
        return planner.note("leave at least one CPU out of --cpus for everything else");
    }
    for (path, why) in [
        (
            WORK,
            "the kernel's work that may run anywhere runs on the others",
        ),
        (
            NEW_INTERRUPTS,
            "interrupts of cards that come later go to the others; those that are there stay",
        ),
    ] {
        let now = facts.files.get(Path::new(path));
        match now.and_then(|mask| without(mask, cpus)) {
            Some(mask) => {
                planner.file(path.into(), &mask, why);
            }
            None => planner.note(format!(
                "{path} is not there, or has no other CPU: left alone"
            )),
        }
    }
    let holds = |kept: &[u32]| cpus.iter().all(|cpu| kept.contains(cpu));
    if holds(&facts.isolated) && holds(&facts.tickless) {
        return planner.note("the running kernel keeps other work and its tick from these CPUs");
    }
    let list = cpus
        .iter()
        .map(u32::to_string)
        .collect::<Vec<_>>()
        .join(",");
    planner.note(format!(
        "by hand, as a running kernel cannot be told the rest: add to its command line and boot: \
         isolcpus=managed_irq,domain,{list} nohz_full={list} rcu_nocbs={list} (no other program is placed on these \
         CPUs, and neither tick nor callbacks interrupt a busy queue; without the words after the next boot it is undone)"
    ));
}

/// The kernel's mask of CPUs (groups of eight hex digits, the last CPUs first) without some, in the kernel's own form;
/// `None` where none would be left.
fn without(mask: &str, cpus: &[u32]) -> Option<String> {
    let mut last = 4 * u32::try_from(mask.matches(|c| c != ',').count()).ok()?;
    let mut left = String::new();
    for digit in mask.chars() {
        if digit == ',' {
            left.push(',');
            continue;
        }
        last -= 4;
        let is_kept = |bit: &u32| !cpus.contains(&(last + bit));
        let kept: u32 = (0..4).filter(is_kept).map(|bit| 1 << bit).sum();
        left.push(char::from_digit(digit.to_digit(16)? & kept, 16)?);
    }
    let is_one_left = left.contains(|c| c != ',' && c != '0');
    is_one_left.then_some(left)
}

#[cfg(test)]
mod tests;
