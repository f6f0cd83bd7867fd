//! What follows from an interface's facts.

use super::{
    Check, Need, Verdict,
    drivers::{self, QueueRule},
    interface::{AttachedProgram, InterfaceFacts, Peer, XdpFeatures, XdpMode},
};
use crate::nic::NATIVE_MTU_MAX;

/// Judges one interface of a host.
#[must_use]
pub fn judge(facts: &InterfaceFacts, need: Need) -> Vec<Check> {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    judge_for(facts, need, u32::try_from(cpus).unwrap_or(u32::MAX))
}

fn judge_for(facts: &InterfaceFacts, need: Need, cpus: u32) -> Vec<Check> {
    let mut checks = vec![
        up(facts),
        native(facts, need),
        redirect_target(facts, need),
        mtu(facts, need),
        queues(facts, need, cpus),
        lro(facts, need),
        program(facts),
    ];
    checks.extend(peer(facts, need));
    checks.extend(checksums(facts));
    checks
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

/// What an interface can do natively: the kernel's word, else the table's.
fn native(facts: &InterfaceFacts, need: Need) -> Check {
    const NAME: &str = "native XDP";
    const NO: &str = "under [forwarding]: mode = \"generic\" (slow), or mode = \"userspace\"";
    let driver = facts
        .driver
        .as_deref()
        .or(facts.kind.as_deref())
        .unwrap_or("unknown");
    let by_table = drivers::is_native(driver);
    match facts.xdp_features {
        Some(features) if features.contains(XdpFeatures::BASIC) => Check::ok(
            NAME,
            format!("driver {driver}: {}", features.names().join(", ")),
        ),
        // Some drivers tell of their features only while a program is attached.
        Some(_) if by_table == Some(true) => Check::ok(
            NAME,
            format!("driver {driver} has it, and lists its features once attached"),
        ),
        Some(_) => Check::new(NAME, need.lack(), format!("driver {driver} has none"), NO),
        None => match by_table {
            Some(true) => Check::ok(
                NAME,
                format!("driver {driver} has it (this kernel lists no features)"),
            ),
            Some(false) => Check::new(NAME, need.lack(), format!("driver {driver} has none"), NO),
            None => {
                let found = format!(
                    "driver {driver}: this kernel does not say, and it is not in our table"
                );
                let fix = "start the node with mode = \"native\": the attach fails, or it works";
                Check::new(NAME, Verdict::Unknown, found, fix)
            }
        },
    }
}

fn redirect_target(facts: &InterfaceFacts, need: Need) -> Check {
    const NAME: &str = "redirect target";
    match facts.xdp_features {
        Some(features) if features.contains(XdpFeatures::TARGET) => {
            Check::ok(NAME, "takes redirected frames")
        }
        Some(features) if features.contains(XdpFeatures::BASIC) => Check::ok(
            NAME,
            "takes redirected frames while it has a program, which the node attaches",
        ),
        Some(_) if facts.driver.as_deref().and_then(drivers::is_native) != Some(true) => {
            let fix = "name only interfaces with native XDP as egress, or set mode = \"userspace\"";
            Check::new(
                NAME,
                need.lack(),
                "frames redirected to it go the slow way or are lost",
                fix,
            )
        }
        _ => Check::ok(
            NAME,
            "not listed; the node attaches a program, which is what drivers want",
        ),
    }
}

fn mtu(facts: &InterfaceFacts, need: Need) -> Check {
    let found = format!("{} (native XDP: at most {NATIVE_MTU_MAX})", facts.mtu);
    if facts.mtu > NATIVE_MTU_MAX {
        return Check::new(
            "MTU",
            need.lack(),
            found,
            format!("ip link set dev {} mtu {NATIVE_MTU_MAX}", facts.name),
        );
    }
    Check::ok("MTU", found)
}

fn queues(facts: &InterfaceFacts, need: Need, cpus: u32) -> Check {
    let (name, driver) = (&facts.name, facts.driver.as_deref().unwrap_or_default());
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
    match drivers::queue_rule(driver) {
        QueueRule::OnePerCpu if sending < cpus && sending < sending_max => {
            let fix = format!("ethtool -L {name} combined {}", cpus.min(sending_max));
            Check::new(
                "queues",
                Verdict::Warn,
                format!("{found}: {driver} redirects best with one a CPU"),
                fix,
            )
        }
        QueueRule::AtMostHalf if channels.combined > channels.combined_max / 2 => {
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
        QueueRule::SparePerCpu if channels.combined + cpus > channels.combined_max => {
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
fn lro(facts: &InterfaceFacts, need: Need) -> Check {
    let name = &facts.name;
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
            "on",
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
        Some(Peer::Elsewhere) | None => {
            let found = "in another namespace; frames redirected here vanish unless it has an XDP program or GRO on";
            Check::new(
                NAME,
                Verdict::Unknown,
                found,
                "there: ethtool -K PEER gro on",
            )
        }
    })
}

/// A veth passes packets on with checksums that nobody has finished.
fn checksums(facts: &InterfaceFacts) -> Option<Check> {
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

#[cfg(test)]
mod tests;
