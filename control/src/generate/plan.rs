//! What is sent: the frames, and in which order.

use std::{net::IpAddr, time::Duration};

use virga_ebpf::{
    header::{ChannelHash, NodeId, OriginHash, Subnet},
    limits::UDP_PORT,
    tables::NextHop,
    workload::{
        BURST_NS, FLOWS_MAX, FRAME_BYTES_MAX, INTERVAL_SHIFT, Lane, SIZES_MAX, Step, Workload,
        write,
    },
};

/// Frames of one turn of the Internet mix: seven of the smallest, four of 590 bytes, one of 1,514.
const IMIX_SMALL: usize = 7;
const IMIX_MIDDLE: (usize, u16) = (4, 590);
const IMIX_LARGE: (usize, u16) = (1, 1_514);
/// Nanoseconds of a second, in the unit of [`Workload::interval`].
const SECOND: u64 = 1_000_000_000 << INTERVAL_SHIFT;

const _: () = assert!(IMIX_SMALL + IMIX_MIDDLE.0 + IMIX_LARGE.0 <= SIZES_MAX);

/// How large the frames are, link header included, check sequence not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// All alike.
    Fixed(u16),
    /// Seven of the smallest that there can be, four of 590 bytes, one of 1,514, in turn.
    Imix,
}

/// What tells flows apart, besides their sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// Nothing: all go to one destination.
    Sessions,
    /// Flow n goes to the nth destination from the first on.
    Destinations,
}

/// The outer headers: where frames enter the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// Link-layer source.
    pub source_mac: [u8; 6],
    /// Link-layer target.
    pub target_mac: [u8; 6],
    /// VLAN tag; 0 is untagged.
    pub vlan: u16,
    /// Outer source address.
    pub source: IpAddr,
    /// Outer target address.
    pub target: IpAddr,
    /// UDP target port.
    pub port: u16,
}

/// What is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Outer headers.
    pub path: Path,
    /// Destination of flow 0.
    pub destination: NodeId,
    /// What tells flows apart.
    pub spread: Spread,
    /// Flows, each a session of its own, each in turn.
    pub flows: u32,
    /// Origin of the authorised packets.
    pub origin: OriginHash,
    /// Their channel.
    pub channel: ChannelHash,
    /// Their subnet.
    pub subnet: Subnet,
    /// Of a thousand packets, how many come from origins that nobody knows, a new one each.
    pub hostile_permille: u16,
    /// Frame sizes.
    pub sizes: Sizes,
    /// Packets a second, all CPUs together; as fast as can be when not said.
    pub rate: Option<u64>,
    /// With a rate: what a late sender makes up for, as fast as it can.
    pub burst: Duration,
    /// Write the time of sending into the payload, for a sink on the same machine.
    pub is_stamped: bool,
}

/// What is wrong with a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum PlanError {
    #[error("source {source_ip} and target {target} are of different families")]
    Family { source_ip: IpAddr, target: IpAddr },
    #[error("frames of {bytes} bytes: with these headers they are {min} to {FRAME_BYTES_MAX}")]
    Size { bytes: u16, min: u16 },
    #[error("{0} flows: 1 to {FLOWS_MAX} can be")]
    Flows(u32),
    #[error("{flows} flows on {lanes} CPUs: each CPU needs one of its own")]
    Lanes { flows: u32, lanes: u32 },
    #[error("{0} of a thousand packets hostile")]
    Hostile(u16),
    #[error("a rate of 0")]
    Rate,
}

impl Plan {
    /// A plan to one destination: one flow of the smallest frames, as fast as can be, nobody hostile.
    #[must_use]
    pub fn new(path: Path, destination: NodeId, origin: OriginHash, channel: ChannelHash) -> Self {
        let hop = path.hop();
        Self {
            path,
            destination,
            spread: Spread::Sessions,
            flows: 1,
            origin,
            channel,
            subnet: Subnet(0),
            hostile_permille: 0,
            sizes: Sizes::Fixed(Workload::frame_bytes_min(&hop)),
            rate: None,
            burst: Duration::from_nanos(BURST_NS.into()),
            is_stamped: false,
        }
    }

    /// The plan as the generator's map holds it. `run` tells it from other runs within a second.
    ///
    /// # Errors
    /// When it cannot be sent.
    pub fn workload(&self, run: u32, lanes: u32) -> Result<Workload, PlanError> {
        let Path { source, target, .. } = self.path;
        if source.is_ipv4() != target.is_ipv4() {
            return Err(PlanError::Family {
                source_ip: source,
                target,
            });
        }
        if self.flows == 0 || self.flows > FLOWS_MAX {
            return Err(PlanError::Flows(self.flows));
        }
        if self.hostile_permille > 1_000 {
            return Err(PlanError::Hostile(self.hostile_permille));
        }
        let hop = self.path.hop();
        let turn = self.turn(Workload::frame_bytes_min(&hop))?;
        let mut sizes = [0; SIZES_MAX];
        sizes[..turn.len()].copy_from_slice(&turn);
        Ok(Workload {
            hop,
            destination: self.destination,
            destination_step: u64::from(self.spread == Spread::Destinations),
            origin: self.origin,
            interval: interval(self.rate, lanes)?,
            channel: u32::from(self.channel.0),
            subnet: self.subnet,
            run,
            hostile_permille: u32::from(self.hostile_permille),
            stamped: u32::from(self.is_stamped),
            size_count: u32::try_from(turn.len()).unwrap_or(1),
            frame_bytes: u32::from(turn.iter().copied().max().unwrap_or(0)),
            burst_ns: u32::try_from(self.burst.as_nanos()).unwrap_or(u32::MAX),
            sizes,
        })
    }

    /// Bytes of the largest frame.
    ///
    /// # Errors
    /// When the sizes cannot be sent.
    pub fn frame_bytes_max(&self) -> Result<u32, PlanError> {
        let turn = self.turn(Workload::frame_bytes_min(&self.path.hop()))?;
        Ok(turn.into_iter().max().unwrap_or(0).into())
    }

    /// The sizes of one turn.
    fn turn(&self, min: u16) -> Result<Vec<u16>, PlanError> {
        let turn = match self.sizes {
            Sizes::Fixed(bytes) => vec![bytes],
            Sizes::Imix => [
                vec![min; IMIX_SMALL],
                vec![IMIX_MIDDLE.1; IMIX_MIDDLE.0],
                vec![IMIX_LARGE.1; IMIX_LARGE.0],
            ]
            .concat(),
        };
        match turn.iter().find(|b| !(min..=FRAME_BYTES_MAX).contains(*b)) {
            Some(&bytes) => Err(PlanError::Size { bytes, min }),
            None => Ok(turn),
        }
    }

    /// The flows, shared out to as many lanes.
    ///
    /// # Errors
    /// When there are fewer flows than lanes.
    pub fn lanes(&self, lanes: u32) -> Result<Vec<Lane>, PlanError> {
        let flows = self.flows;
        if lanes == 0 || flows < lanes {
            return Err(PlanError::Lanes { flows, lanes });
        }
        let first = |lane: u32| {
            let at = u64::from(flows) * u64::from(lane) / u64::from(lanes);
            u32::try_from(at).unwrap_or(flows)
        };
        let lane = |number: u32| Lane {
            first_flow: first(number),
            flows: first(number + 1) - first(number),
            stranger: u64::from(number) << 32,
            ..Lane::default()
        };
        Ok((0..lanes).map(lane).collect())
    }

    /// The same frames that the generator in the kernel sends from one lane, without end. They carry no
    /// time of sending.
    ///
    /// # Errors
    /// When the plan cannot be sent.
    pub fn frames(&self, run: u32) -> Result<Frames, PlanError> {
        let workload = Workload {
            stamped: 0,
            ..self.workload(run, 1)?
        };
        let lane = self.lanes(1)?.pop().unwrap_or_default();
        Ok(Frames { workload, lane })
    }
}

/// What [`Workload::interval`] must be for a rate that as many lanes share.
pub(super) fn interval(rate: Option<u64>, lanes: u32) -> Result<u64, PlanError> {
    match rate {
        Some(0) => Err(PlanError::Rate),
        Some(rate) => Ok((SECOND.saturating_mul(u64::from(lanes)) / rate).max(1)),
        None => Ok(0),
    }
}

impl Path {
    /// The path as the tables hold a next hop.
    #[must_use]
    pub fn hop(&self) -> NextHop {
        NextHop {
            source: self.source.into(),
            target: self.target.into(),
            source_mac: self.source_mac,
            target_mac: self.target_mac,
            vlan: self.vlan,
            port: if self.port == 0 { UDP_PORT } else { self.port },
            flags: NextHop::ALIVE,
            ..NextHop::default()
        }
        .completed()
    }
}

/// A plan's frames, one after the other.
#[derive(Clone, Debug)]
pub struct Frames {
    workload: Workload,
    lane: Lane,
}

impl Iterator for Frames {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let step: Step = self.lane.step(&self.workload);
        let mut frame = vec![0; usize::from(step.frame_bytes)];
        write(frame.as_mut_slice(), &self.workload, &step, 0)?;
        Some(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn several_cpus_share_the_rate_and_no_flow() {
        const RATE: u32 = 20_000;
        const FLOWS: u32 = 50;
        let path = Path {
            source_mac: [2, 0, 0, 0, 0, 1],
            target_mac: [2, 0, 0, 0, 0, 2],
            vlan: 0,
            source: IpAddr::from([10, 0, 0, 2]),
            target: IpAddr::from([10, 0, 0, 1]),
            port: UDP_PORT,
        };
        let plan = Plan {
            flows: FLOWS,
            rate: Some(RATE.into()),
            ..Plan::new(path, NodeId(1), OriginHash(2), ChannelHash(3))
        };
        for cpus in [1, 2, 3, 7] {
            let workload = plan.workload(1, cpus).unwrap();
            let (mut of_flow, mut sent) = (BTreeMap::new(), 0);
            for (cpu, mut lane) in plan.lanes(cpus).unwrap().into_iter().enumerate() {
                // A second, looked at each 10 us.
                for now_ns in (0..1_000_000_000).step_by(10_000) {
                    while lane.is_due(&workload, now_ns) {
                        let flow = lane.step(&workload).header.stream_id.0 - 1;
                        assert_eq!(*of_flow.entry(flow).or_insert(cpu), cpu);
                    }
                }
                sent += lane.sent();
            }
            assert!(
                of_flow.into_keys().eq(0..FLOWS),
                "{cpus} CPUs send all flows"
            );
            let due = u64::from(RATE)..=u64::from(RATE + cpus);
            assert!(due.contains(&sent), "{sent} by {cpus} CPUs");
        }
        let too_many = plan.lanes(FLOWS + 1).unwrap_err();
        let (flows, lanes) = (FLOWS, FLOWS + 1);
        assert_eq!(too_many, PlanError::Lanes { flows, lanes });
    }
}
