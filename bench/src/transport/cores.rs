//! Two cores beside one: sender and receiver on the same core; then one node with a worker on each of two cores, each
//! sending to a receiver on its own core.

use virga_bench::load::{End, Group, Running, Seen, Switch, Task, node_id};
use virga_transport::Share;

use super::{Path, flow, for_a_window};
use crate::{
    report::{Entry, Skip, failed},
    rounds::median,
};

const EVENT_BYTES: usize = 64;
const SENDER: u32 = 1;
/// Numbers of receivers are looked for above this.
const RECEIVERS: u32 = 1_000;

/// A node's workers, and a receiver for each.
struct Stage {
    senders: Group,
    receivers: Vec<Running>,
}

impl Stage {
    fn start(cores: &[usize]) -> Result<Self, Skip> {
        let path = Path::Loopback;
        let at = path.port(0)?;
        let (mut receivers, mut peers) = (Vec::new(), Vec::new());
        for (share, &core) in Share::split(cores.len()).zip(cores) {
            let number = (RECEIVERS..)
                .find(|&number| share.owns(node_id(number)))
                .ok_or_else(|| failed("no number is this worker's"))?;
            let listen = path.port(1)?;
            let end = End {
                number,
                listen,
                core: Some(core),
                peer: SENDER,
                via: at,
                task: Task::Take,
            };
            receivers.push(Running::start(&end).map_err(failed)?);
            peers.push((number, listen));
        }
        let senders = Group::start(SENDER, at, cores, EVENT_BYTES, &peers).map_err(failed)?;
        senders.await_sessions().map_err(failed)?;
        Ok(Self { senders, receivers })
    }

    fn taken(&self) -> Result<Vec<Seen>, Skip> {
        let seen = self.receivers.iter().map(Running::seen);
        seen.collect::<std::io::Result<_>>().map_err(failed)
    }

    /// Million events a second that came, and processor nanoseconds of all for each.
    fn run(&self) -> Result<(f64, f64), Skip> {
        self.senders.switch(Switch::On).map_err(failed)?;
        for_a_window(flow::WARM_UP);
        let before = [self.senders.seen().map_err(failed)?, self.taken()?];
        for_a_window(flow::WINDOW);
        let after = [self.senders.seen().map_err(failed)?, self.taken()?];
        self.senders.switch(Switch::Off).map_err(failed)?;
        for_a_window(flow::SETTLE);
        let (mut rate, mut events) = (0.0, 0);
        for (before, after) in before[1].iter().zip(&after[1]) {
            let taken = after.taken - before.taken;
            events += taken;
            rate += flow::float(taken) * 1e3 / flow::float((after.now_ns - before.now_ns).max(1));
        }
        let cpu = |all: &[Vec<Seen>; 2]| all.iter().flatten().map(|s| s.cpu_ns).sum::<u64>();
        let cpu_ns = flow::float(cpu(&after) - cpu(&before)) / flow::float(events.max(1));
        Ok((rate, cpu_ns))
    }

    fn stop(self) {
        self.senders.stop();
        self.receivers.into_iter().for_each(Running::stop);
    }
}

/// Measures.
pub(super) fn measure(rounds: u32) -> Result<Vec<Entry>, Skip> {
    let one = Stage::start(&super::CORES[..1])?;
    let two = Stage::start(&super::CORES)?;
    let (mut rates, mut costs) = ([Vec::new(), Vec::new()], [Vec::new(), Vec::new()]);
    let mut ratios = Vec::new();
    for _ in 0..rounds {
        let of_one = one.run()?;
        let of_two = two.run()?;
        ratios.push(of_two.0 / of_one.0);
        for (at, (rate, cost)) in [of_two, of_one].into_iter().enumerate() {
            rates[at].push(rate);
            costs[at].push(cost);
        }
    }
    one.stop();
    two.stop();
    let [ours, reference] = rates.map(|all| median(&all));
    let [cost_of_two, cost_of_one] = costs.map(|all| median(&all));
    Ok(vec![
        Entry::new("transport.two_cores", "million events/s", ours)
            .beside(reference)
            .ratio(median(&ratios))
            .limit(1.8),
        Entry::new(
            "transport.two_cores_cpu_ns",
            "ns of both ends' processors an event",
            cost_of_two,
        )
        .beside(cost_of_one),
    ])
}
