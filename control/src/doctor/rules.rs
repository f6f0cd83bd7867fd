//! What follows from an interface's facts.

use super::{
    Check, Need, Verdict,
    interface::{AttachedProgram, InterfaceFacts, Peer, XdpFeatures, XdpMode},
};
use crate::{
    hw::{self, Kernel, Lro, MtuMax, Profile, Queues, Since, Target, Touches, VlanStrip},
    nic::NATIVE_MTU_MAX,
};

/// What of the host decides with an interface's facts.
#[derive(Clone, Copy, Debug)]
struct Host {
    cpus: u32,
    /// `None` where its release says no number.
    kernel: Option<Kernel>,
    page_bytes: u32,
}

impl Host {
    fn this() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            cpus: u32::try_from(cpus).unwrap_or(u32::MAX),
            kernel: Kernel::running(),
            page_bytes: u32::try_from(rustix::param::page_size()).unwrap_or(u32::MAX),
        }
    }
}

/// Judges one interface of a host.
#[must_use]
pub fn judge(facts: &InterfaceFacts, need: Need) -> Vec<Check> {
    judge_for(facts, need, &Host::this())
}

/// Whether the interface's driver runs programs on this kernel; `None` where nothing says.
#[must_use]
pub fn has_native(facts: &InterfaceFacts) -> Option<bool> {
    has_native_on(facts, hw::profile(driver(facts)), &Host::this())
}

/// The kernel's word, else the profile's. Some drivers tell of their features only while a program is
/// attached.
fn has_native_on(facts: &InterfaceFacts, profile: Option<&Profile>, host: &Host) -> Option<bool> {
    let by_profile = is_native(profile, host);
    match facts.xdp_features {
        Some(features) => Some(features.contains(XdpFeatures::BASIC) || by_profile == Some(true)),
        None => by_profile,
    }
}

fn judge_for(facts: &InterfaceFacts, need: Need, host: &Host) -> Vec<Check> {
    let profile = hw::profile(driver(facts));
    let mut checks = vec![
        up(facts),
        native(facts, need, profile, host),
        redirect_target(facts, need, profile),
        mtu(facts, need, profile, host),
        queues(facts, need, profile, host.cpus),
        lro(facts, need, profile),
        program(facts),
    ];
    checks.extend(peer(facts, need));
    checks.extend(checksums(facts));
    checks.extend(vlan_tags(facts, profile));
    checks.extend(pitfalls(facts, need, profile, host));
    checks
}

/// The driver's name, or the kind of an interface that has none.
fn driver(facts: &InterfaceFacts) -> &str {
    let named = facts.driver.as_deref().or(facts.kind.as_deref());
    named.unwrap_or("unknown")
}

fn up(facts: &InterfaceFacts) -> Check {
    let name = &facts.name;
    match (facts.is_up, facts.has_carrier) {
        (true, true) => Check::ok("up", "up, with carrier"),
        (true, false) => Check::new(
            "up",
            Verdict::Warn,
            "up, no carrier",
            format!("check the cable or the other end of {name}"),
        ),
        (false, _) => Check::new(
            "up",
            Verdict::Fail,
            "down",
            format!("ip link set dev {name} up"),
        ),
    }
}

/// Whether the profile says that this kernel's driver runs programs; `None` where it does not say.
fn is_native(profile: Option<&Profile>, host: &Host) -> Option<bool> {
    match (profile?.native.value()?, host.kernel) {
        (Since::Never, _) => Some(false),
        (since, Some(kernel)) => Some(since.is_in(kernel)),
        (Since::Kernel(_), None) => None,
    }
}

/// What an interface can do natively: the kernel's word, else the profile's.
fn native(facts: &InterfaceFacts, need: Need, profile: Option<&Profile>, host: &Host) -> Check {
    const NAME: &str = "native XDP";
    const NO: &str = "under [forwarding]: mode = \"generic\" (slow), or mode = \"userspace\"";
    let driver = driver(facts);
    let by_profile = is_native(profile, host);
    let none = || Check::new(NAME, need.lack(), format!("driver {driver} has none"), NO);
    match facts.xdp_features {
        Some(features) if features.contains(XdpFeatures::BASIC) => Check::ok(
            NAME,
            format!("driver {driver}: {}", features.names().join(", ")),
        ),
        // Some drivers tell of their features only while a program is attached.
        Some(_) if by_profile == Some(true) => Check::ok(
            NAME,
            format!("driver {driver} has it, and lists its features once attached"),
        ),
        Some(_) => none(),
        None => match (
            by_profile,
            profile.and_then(|profile| profile.native.value()),
        ) {
            (Some(true), _) => Check::ok(
                NAME,
                format!("driver {driver} has it (this kernel lists no features)"),
            ),
            (Some(false), Some(Since::Kernel(since))) => {
                let found = format!("driver {driver} has it since kernel {since}");
                let fix = format!("a kernel of {since} or later, or mode = \"userspace\"");
                Check::new(NAME, need.lack(), found, fix)
            }
            (Some(false), _) => none(),
            (None, _) => {
                let found = format!(
                    "driver {driver}: this kernel does not say, and no profile of ours does"
                );
                let fix = "start the node with mode = \"native\": the attach fails, or it works";
                Check::new(NAME, Verdict::Unknown, found, fix)
            }
        },
    }
}

fn redirect_target(facts: &InterfaceFacts, need: Need, profile: Option<&Profile>) -> Check {
    const NAME: &str = "redirect target";
    const NO: &str =
        "name only interfaces that take redirected frames as egress, or set mode = \"userspace\"";
    let target = profile.and_then(|profile| profile.target.value());
    match (facts.xdp_features, target) {
        (Some(features), _) if features.contains(XdpFeatures::TARGET) => {
            Check::ok(NAME, "takes redirected frames")
        }
        (_, Some(Target::Never)) => {
            let found = format!(
                "driver {} takes none: frames redirected to it go the slow way or are lost",
                driver(facts)
            );
            Check::new(NAME, need.lack(), found, NO)
        }
        (Some(features), _) if features.contains(XdpFeatures::BASIC) => Check::ok(
            NAME,
            "takes redirected frames while it has a program, which the node attaches",
        ),
        (Some(_), None) => Check::new(
            NAME,
            need.lack(),
            "frames redirected to it go the slow way or are lost",
            NO,
        ),
        _ => Check::ok(
            NAME,
            "not listed; the node attaches a program, which is what drivers want",
        ),
    }
}

fn mtu(facts: &InterfaceFacts, need: Need, profile: Option<&Profile>, host: &Host) -> Check {
    if has_native_on(facts, profile, host) == Some(false) {
        let found = format!("{} (without native XDP, any will do)", facts.mtu);
        return Check::ok("MTU", found);
    }
    let by_driver = profile.and_then(|profile| profile.mtu_max.value());
    let by_driver = by_driver.and_then(|most: &MtuMax| most.bytes(host.page_bytes));
    let (most, whose) = match by_driver {
        Some(bytes) if bytes < NATIVE_MTU_MAX => (bytes, format!(" with {}", driver(facts))),
        _ => (NATIVE_MTU_MAX, String::new()),
    };
    let found = format!("{} (native XDP{whose}: at most {most})", facts.mtu);
    if facts.mtu > most {
        let fix = format!("ip link set dev {} mtu {most}", facts.name);
        return Check::new("MTU", need.lack(), found, fix);
    }
    Check::ok("MTU", found)
}

fn queues(facts: &InterfaceFacts, need: Need, profile: Option<&Profile>, cpus: u32) -> Check {
    let (name, driver) = (&facts.name, driver(facts));
    let Some(channels) = facts.channels else {
        let found = format!(
            "{} receive, {} send, {cpus} CPUs",
            facts.rx_queues, facts.tx_queues
        );
        return Check::ok("queues", found);
    };
    let (sending, sending_max) = (
        channels.combined + channels.tx,
        channels.combined_max + channels.tx_max,
    );
    let receiving = channels.combined + channels.rx;
    let found = format!("{receiving} receive, {sending} send (at most {sending_max}), {cpus} CPUs");
    match profile.and_then(|profile| profile.queues.value()) {
        Some(Queues::OnePerCpu) if sending < cpus && sending < sending_max => {
            let fix = format!("ethtool -L {name} combined {}", cpus.min(sending_max));
            let found = format!("{found}: {driver} loses what CPUs without a queue redirect");
            Check::new("queues", need.lack(), found, fix)
        }
        Some(Queues::OnePerCpu) if sending < cpus => {
            let found = format!("{found}: {driver} loses what CPUs without a queue redirect");
            let fix = format!(
                "let only CPUs 0 to {} take the interrupts of the receiving interfaces: \
                 virga tune NAME --only irq --cpus 0-{}",
                sending.saturating_sub(1),
                sending.saturating_sub(1)
            );
            Check::new("queues", Verdict::Warn.min(need.lack()), found, fix)
        }
        Some(Queues::AtMostHalf) if channels.combined > channels.combined_max / 2 => {
            let fix = format!(
                "ethtool -L {name} combined {}",
                (channels.combined_max / 2).max(1)
            );
            Check::new(
                "queues",
                need.lack(),
                format!("{found}: {driver} keeps half for redirected frames"),
                fix,
            )
        }
        Some(Queues::SparePerCpu) if channels.combined + cpus > channels.combined_max => {
            let fitting = channels.combined_max.saturating_sub(cpus);
            let fix = match fitting {
                0 => format!(
                    "give the virtual machine {} queues",
                    channels.combined + cpus
                ),
                _ => format!("ethtool -L {name} combined {fitting}"),
            };
            let found = format!("{found}: redirected frames share send queues under a lock");
            Check::new("queues", Verdict::Warn, found, fix)
        }
        _ => Check::ok("queues", found),
    }
}

/// Merged packets are larger than a page, and no packet of ours.
fn lro(facts: &InterfaceFacts, need: Need, profile: Option<&Profile>) -> Check {
    let name = &facts.name;
    let becomes = match profile.and_then(|profile| profile.lro.value()) {
        Some(Lro::Refused) => ": the driver refuses a program then",
        Some(Lro::TurnedOff) => ": the driver turns it off with a program",
        Some(Lro::None) | None => "",
    };
    match (facts.has_feature("rx-lro"), facts.has_feature("rx-gro-hw")) {
        (None, _) => Check::new(
            "LRO",
            Verdict::Unknown,
            "the driver lists no features",
            format!("ethtool -k {name}"),
        ),
        (Some(true), _) => Check::new(
            "LRO",
            need.lack(),
            format!("on{becomes}"),
            format!("ethtool -K {name} lro off"),
        ),
        (_, Some(true)) => {
            let found = "GRO in hardware is on: some drivers refuse a program then";
            Check::new(
                "LRO",
                Verdict::Warn.min(need.lack()),
                found,
                format!("ethtool -K {name} rx-gro-hw off"),
            )
        }
        _ => Check::ok("LRO", "off"),
    }
}

fn program(facts: &InterfaceFacts) -> Check {
    const NAME: &str = "XDP program";
    let describe = |program: &AttachedProgram| {
        let name = program.name.as_deref().unwrap_or("of unknown name");
        format!("{name}, {}, id {}", program.mode, program.id)
    };
    let list = facts
        .programs
        .iter()
        .map(describe)
        .collect::<Vec<_>>()
        .join("; ");
    let is_ours = |program: &AttachedProgram| {
        program
            .name
            .as_deref()
            .is_some_and(|name| name.starts_with(crate::nic::FORWARD))
    };
    match facts.programs.as_slice() {
        [] => Check::ok(NAME, "none attached"),
        programs if programs.iter().all(is_ours) => {
            match programs.iter().find(|p| p.mode == XdpMode::Generic) {
                Some(_) => Check::new(
                    NAME,
                    Verdict::Warn,
                    format!("{list}: generic is slow"),
                    "under [forwarding]: mode = \"native\"",
                ),
                None => Check::ok(NAME, list),
            }
        }
        _ => {
            let mode = match facts.programs.first().map(|program| program.mode) {
                Some(XdpMode::Generic) => "xdpgeneric",
                Some(XdpMode::Offloaded) => "xdpoffload",
                _ => "xdp",
            };
            let fix = format!(
                "ip link set dev {} {mode} off   # if nothing needs it",
                facts.name
            );
            Check::new(
                NAME,
                Verdict::Warn,
                format!("another one is attached: {list}"),
                fix,
            )
        }
    }
}

/// A veth takes redirected frames only while its other end is ready to receive them.
fn peer(facts: &InterfaceFacts, need: Need) -> Option<Check> {
    const NAME: &str = "veth peer";
    if !facts.is_veth() {
        return None;
    }
    Some(match &facts.peer {
        Some(Peer::Here {
            name, tx_queues, ..
        }) if *tx_queues > facts.rx_queues => {
            let found = format!(
                "{name} has {tx_queues} send queues for {} receive queues here",
                facts.rx_queues
            );
            Check::new(
                NAME,
                need.lack(),
                found,
                format!("ethtool -L {name} tx {}", facts.rx_queues),
            )
        }
        Some(Peer::Here {
            name,
            has_native_program: true,
            ..
        }) => Check::ok(NAME, format!("{name} has a native program")),
        Some(Peer::Here {
            name,
            has_gro: true,
            ..
        }) => Check::ok(NAME, format!("{name} has GRO on")),
        Some(Peer::Here { name, .. }) => {
            let found =
                format!("{name} has neither a program nor GRO: frames redirected here vanish");
            Check::new(
                NAME,
                need.lack(),
                found,
                format!("ethtool -K {name} gro on"),
            )
        }
        Some(Peer::Elsewhere { ifindex, namespace }) => elsewhere(*ifindex, namespace.as_deref()),
        None => Check::new(
            NAME,
            Verdict::Unknown,
            "the kernel does not say where the other end is",
            format!("ip -d link show dev {}", facts.name),
        ),
    })
}

/// What is known of a veth's other end in another namespace, and what to run there.
fn elsewhere(ifindex: Option<u32>, namespace: Option<&str>) -> Check {
    let interface = ifindex.map_or("an interface".into(), |index| format!("interface {index}"));
    let place = namespace.map_or("another namespace".into(), |name| {
        format!("namespace {name}")
    });
    let found = format!(
        "{interface} of {place}: it takes frames redirected here while a node runs on it, or it has GRO on"
    );
    let there = namespace.map_or("there".into(), |name| {
        format!("nsenter --net=/run/netns/{name} sh, and there")
    });
    let fix = format!("{there}: `ip link` names {interface}; ethtool -K NAME gro on");
    Check::new("veth peer", Verdict::Info, found, fix)
}

/// A veth passes packets on with checksums that nobody has finished.
pub(super) fn checksums(facts: &InterfaceFacts) -> Option<Check> {
    const NAME: &str = "TX checksums";
    if !facts.is_veth() {
        return None;
    }
    Some(match facts.has_feature("tx-checksum-ip-generic") {
        Some(false) => Check::ok(NAME, "finished in software"),
        Some(true) => {
            let found = "left to the hardware that a veth does not have: receivers behind a redirect drop such packets";
            Check::new(
                NAME,
                Verdict::Warn,
                found,
                format!("ethtool -K {} tx off", facts.name),
            )
        }
        None => Check::new(
            NAME,
            Verdict::Unknown,
            "the driver lists no features",
            format!("ethtool -k {}", facts.name),
        ),
    })
}

/// A program reads tags in the frame; a card that takes them off hides them.
fn vlan_tags(facts: &InterfaceFacts, profile: Option<&Profile>) -> Option<Check> {
    const NAME: &str = "VLAN tags";
    let can_strip = profile?.vlan_strip.value() != Some(&VlanStrip::None);
    let is_on = facts.has_feature("rx-vlan-hw-parse")?;
    (can_strip && is_on).then(|| {
        let found = format!(
            "taken off before XDP sees them: a neighbour behind a VLAN needs `ethtool -K {} rxvlan off`",
            facts.name
        );
        Check::ok(NAME, found)
    })
}

/// Faults of this kernel's driver that a later one is free of, and what its driver will not do.
fn pitfalls(
    facts: &InterfaceFacts,
    need: Need,
    profile: Option<&Profile>,
    host: &Host,
) -> Vec<Check> {
    const NAME: &str = "known pitfall";
    let all = profile.map_or(&[][..], |profile| &profile.pitfalls);
    let met = all
        .iter()
        .filter(|pitfall| pitfall.touches != Touches::ZeroCopy);
    met.filter_map(|pitfall| {
        let avoid = pitfall.avoid.replace("IFACE", &facts.name);
        let what = &pitfall.what;
        match (pitfall.fixed_in, host.kernel) {
            (Since::Never, _) => Some(Check::ok(NAME, format!("{what} ({avoid})"))),
            (fixed, Some(kernel)) if fixed.is_in(kernel) => None,
            (Since::Kernel(fixed), Some(_)) => {
                let found = format!("{what}; kernel {fixed} is free of it");
                Some(Check::new(
                    NAME,
                    Verdict::Warn.min(need.lack()),
                    found,
                    avoid,
                ))
            }
            (Since::Kernel(fixed), None) => {
                let found = format!("{what}, before kernel {fixed}");
                Some(Check::new(
                    NAME,
                    Verdict::Unknown.min(need.lack()),
                    found,
                    avoid,
                ))
            }
        }
    })
    .collect()
}

#[cfg(test)]
mod tests;
