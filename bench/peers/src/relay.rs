//! A relay in user space with a core of its own, between a sender and a receiver that share the other: single events
//! that arrive by it, in a second of its own processor time. A packet of net-mesh's holds one, one of ours as many
//! as the sender had queued by then.

use std::{path::Path, thread};

use virga_bench::{report::Entry, rounds::median};

use crate::{
    end::{Args, Problem, Role, Workload},
    run::{CORES, WARM_UP, WINDOW, float},
    stage::{self, End},
    system::Name,
};

/// Ours beside net-mesh's.
pub(crate) fn beside(folder: &Path, rounds: u32) -> Result<Entry, Problem> {
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let (own, other) = (turn(folder, Name::Virga)?, turn(folder, Name::NetMesh)?);
        ours.push(own);
        theirs.push(other);
        ratios.push(own / other);
    }
    let unit = "thousand events/s of the relay's processor";
    Ok(Entry::new("peers.net_mesh.relay", unit, median(&ours))
        .beside(median(&theirs))
        .ratio(median(&ratios))
        .spread(&ratios))
}

fn turn(folder: &Path, system: Name) -> Result<f64, Problem> {
    let [sending, receiving, between] = [stage::free()?, stage::free()?, stage::free()?];
    let args = |role, core, listen, next, far| Args {
        system,
        role,
        workload: Workload::Single,
        core,
        listen,
        next,
        far: Some(far),
        folder: folder.to_path_buf(),
        said: Vec::new(),
    };
    let to_receive = args(Role::Receive, CORES[0], receiving, between, sending);
    let mut receiver = End::start(&to_receive, None)?;
    let mut to_relay = args(Role::Relay, CORES[1], between, sending, receiving);
    to_relay.said.push(receiver.said.clone());
    let mut relay = End::start(&to_relay, None)?;
    let mut to_send = args(Role::Send, CORES[0], sending, between, receiving);
    to_send.said = vec![receiver.said.clone(), relay.said.clone()];
    let sender = End::start(&to_send, None)?;
    thread::sleep(WARM_UP);
    let before = [relay.done()?, receiver.done()?];
    thread::sleep(WINDOW);
    let after = [relay.done()?, receiver.done()?];
    drop(sender);
    let passed = after[1].taken.saturating_sub(before[1].taken);
    let cpu_ns = after[0].cpu_ns.saturating_sub(before[0].cpu_ns);
    if passed == 0 || cpu_ns == 0 {
        return Err(format!("{}: nothing came by the relay", system.text()).into());
    }
    Ok(float(passed) * 1e6 / float(cpu_ns))
}
