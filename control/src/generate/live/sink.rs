//! The sink: what arrived, what did not, in which order, how late.

use std::fmt;

use aya::{
    Ebpf,
    maps::{Array, MapData, PerCpuArray, PerCpuValues},
};
use virga_ebpf::sink::{BUCKETS, Counts, bucket_bounds};

use super::{LiveError, Mode, attach, load, map};
use crate::nic::pod::Plain;

const SINK: &str = "virga_sink";

/// Drops and counts the mesh packets that arrive at an interface, as long as it lives. It runs before the
/// kernel's stack and before no other program: an interface takes one.
pub struct Sink {
    _ebpf: Ebpf,
    counts: PerCpuArray<MapData, Plain<Counts>>,
    latency: PerCpuArray<MapData, u64>,
}

/// What a sink has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Measured {
    /// Packets of the workload's origin.
    pub received: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// Packets of strangers: nothing on the way refused them.
    pub strangers: u64,
    /// Mesh packets that no generator made.
    pub others: u64,
    /// Packets missing before the last one that came, of each flow.
    pub lost: u64,
    /// Packets that came behind a later one of their flow, or again.
    pub reordered: u64,
    /// Packets of flows beyond those that are followed: in neither of the two above.
    pub untracked: u64,
    /// Of the packets that carried their time of sending.
    pub latency: Option<Latency>,
}

/// From the generator's writing of the packet to the sink's reading, on one machine's clock.
/// Percentiles are the middle of a bucket that is at most a sixteenth wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Latency {
    /// Packets measured.
    pub samples: u64,
    /// Half of them were faster.
    pub p50_ns: u64,
    /// All but one in a hundred were faster.
    pub p99_ns: u64,
    /// All but one in a thousand were faster.
    pub p999_ns: u64,
    /// Upper bound of the slowest.
    pub max_ns: u64,
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink").finish_non_exhaustive()
    }
}

impl Sink {
    /// A sink on an interface, for packets to a UDP port; follows flows 0 to `flows` less one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach(interface: &str, port: u16, flows: u32, mode: Mode) -> Result<Self, LiveError> {
        let mut ebpf = load(SINK, &[("sink_flows", flows.max(1))])?;
        let mut ports: Array<MapData, u32> = map(&mut ebpf, "sink_port")?;
        ports
            .set(0, u32::from(port), 0)
            .map_err(|e| LiveError::Map("sink_port", e))?;
        let counts = map(&mut ebpf, "sink_counts")?;
        let latency = map(&mut ebpf, "sink_latency")?;
        attach(&mut ebpf, SINK, interface, mode)?;
        Ok(Self {
            _ebpf: ebpf,
            counts,
            latency,
        })
    }

    /// All that it has seen since it was attached, or since [`Sink::clear`].
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn read(&self) -> Result<Measured, LiveError> {
        let each = self.counts.get(&0, 0);
        let each = each.map_err(|e| LiveError::Map("sink_counts", e))?;
        let mut sum = Counts::default();
        for one in each.iter() {
            sum.add(&one.0);
        }
        Ok(Measured {
            received: sum.packets,
            bytes: sum.bytes,
            strangers: sum.strangers,
            others: sum.others,
            // Repetitions look like late packets, and can make it negative.
            lost: u64::try_from(sum.missing.cast_signed()).unwrap_or(0),
            reordered: sum.late,
            untracked: sum.untracked,
            latency: Latency::of(&self.histogram()?),
        })
    }

    /// Starts counting anew; flows go on where they are.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub fn clear(&mut self) -> Result<(), LiveError> {
        let failed = |e| LiveError::Map("sink_counts", e);
        let cpus = self.counts.get(&0, 0).map_err(failed)?.len();
        let values = PerCpuValues::try_from(vec![Plain(Counts::default()); cpus]);
        let values = values.map_err(|e| LiveError::Cpu(0, e))?;
        self.counts.set(0, values, 0).map_err(failed)?;
        for bucket in 0..BUCKETS {
            let values = PerCpuValues::try_from(vec![0; cpus]);
            let values = values.map_err(|e| LiveError::Cpu(0, e))?;
            self.latency
                .set(bucket, values, 0)
                .map_err(|e| LiveError::Map("sink_latency", e))?;
        }
        Ok(())
    }

    /// Samples of each bucket.
    fn histogram(&self) -> Result<Vec<u64>, LiveError> {
        (0..BUCKETS)
            .map(|bucket| {
                let each = self.latency.get(&bucket, 0);
                let each = each.map_err(|e| LiveError::Map("sink_latency", e))?;
                Ok(each.iter().sum())
            })
            .collect()
    }
}

impl Latency {
    /// From a histogram's samples a bucket; `None` of none.
    fn of(histogram: &[u64]) -> Option<Self> {
        let samples: u64 = histogram.iter().sum();
        if samples == 0 {
            return None;
        }
        let bounds = |rank: u64| {
            let mut below = 0;
            for (bucket, count) in (0..).zip(histogram) {
                below += count;
                if below > rank {
                    return bucket_bounds(bucket);
                }
            }
            bucket_bounds(BUCKETS - 1)
        };
        let permille = |part: u64| {
            let rank = u128::from(samples) * u128::from(part) / 1_000;
            let (from, above) = bounds(u64::try_from(rank).unwrap_or(samples).min(samples - 1));
            from + (above - from) / 2
        };
        Some(Self {
            samples,
            p50_ns: permille(500),
            p99_ns: permille(990),
            p999_ns: permille(999),
            max_ns: bounds(samples - 1).1,
        })
    }
}

#[cfg(test)]
mod tests {
    use virga_ebpf::sink::bucket;

    use super::*;

    #[test]
    fn percentiles_are_within_a_sixteenth() {
        let mut histogram = vec![0; BUCKETS as usize];
        for ns in 1..=10_000 {
            histogram[bucket(ns) as usize] += 1;
        }
        let latency = Latency::of(&histogram).unwrap();
        let near = |value: u64, wanted: u64| value.abs_diff(wanted) <= wanted / 16;
        assert_eq!(latency.samples, 10_000);
        assert!(near(latency.p50_ns, 5_000), "{latency:?}");
        assert!(near(latency.p99_ns, 9_900), "{latency:?}");
        assert!(near(latency.p999_ns, 9_990), "{latency:?}");
        assert!((10_001..=10_625).contains(&latency.max_ns), "{latency:?}");
        assert_eq!(Latency::of(&vec![0; BUCKETS as usize]), None);
    }
}
