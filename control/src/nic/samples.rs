//! Samples of what the NIC path decides ([`virga_ebpf::sample`]): its other program on the interfaces, as long as
//! somebody asks, and the ring that it tells them by.
//!
//! The maps are not pinned: a daemon that ends leaves nobody who reads them, and the program's order ends by itself
//! [`LEASE`] later. The next daemon puts the usual program in its place.

use super::{FORWARD, Nic, NicError, PASS, SAMPLE, kernel::Facts, pod::Plain};
use aya::{
    Ebpf,
    maps::{Array, Map, MapData, MapError, PerCpuArray, PerCpuValues, RingBuf},
    util::nr_cpus,
};
use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use virga_ebpf::{
    limits::SAMPLE_BYTES_MAX,
    sample::{Order, SampleHead, Tally},
};

/// How long the program goes by an order that nobody renews.
pub const LEASE: Duration = Duration::from_secs(3);

const HEAD_BYTES: usize = size_of::<SampleHead>();

/// What is read of samples, and what they go by.
pub struct Samples {
    ring: RingBuf<MapData>,
    order: Array<MapData, Plain<Order>>,
    tallies: PerCpuArray<MapData, Plain<Tally>>,
}

impl fmt::Debug for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Samples").finish_non_exhaustive()
    }
}

/// A sample and the frame's first bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// What is told of it.
    pub head: SampleHead,
    /// The frame, as far as it was kept.
    pub bytes: Vec<u8>,
}

impl Samples {
    /// Takes the maps out of the loaded object.
    ///
    /// # Errors
    /// When it has none, or the kernel does not give the ring.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, NicError> {
        fn one<M: TryFrom<Map, Error = MapError>>(
            ebpf: &mut Ebpf,
            name: &'static str,
        ) -> Result<M, NicError> {
            let map = ebpf.take_map(name).ok_or(NicError::Object(name))?;
            M::try_from(map).map_err(|e| NicError::Map(name, e))
        }
        Ok(Self {
            ring: one(ebpf, "samples")?,
            order: one(ebpf, "sampling")?,
            tallies: one(ebpf, "sampled")?,
        })
    }

    /// Forgets what was counted and not read of an earlier order, and goes by this one.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub fn begin(&mut self, order: &Order) -> Result<(), NicError> {
        self.set_order(&Order::default())?;
        while self.ring.next().is_some() {}
        let failed = |e| NicError::Map("sampled", e);
        let cpus = nr_cpus().map_err(|(_, error)| failed(MapError::IoError(error)))?;
        let none = PerCpuValues::try_from(vec![Plain(Tally::default()); cpus]);
        let none = none.map_err(|error| failed(MapError::IoError(error)))?;
        self.tallies.set(0, none, 0).map_err(failed)?;
        self.set_order(order)
    }

    /// Goes by this order from now on.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_order(&mut self, order: &Order) -> Result<(), NicError> {
        let set = self.order.set(0, Plain(*order), 0);
        set.map_err(|e| NicError::Map("sampling", e))
    }

    /// The next sample that waits.
    pub fn read(&mut self) -> Option<Told> {
        loop {
            let item = self.ring.next()?;
            // Of another layout, it is none; the object that wrote it came with this program.
            if let Some(told) = parse(&item) {
                return Some(told);
            }
        }
    }

    /// What all CPUs did of the order.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn tally(&self) -> Result<Tally, NicError> {
        let each = self.tallies.get(&0, 0);
        let each = each.map_err(|e| NicError::Map("sampled", e))?;
        Ok(each
            .iter()
            .fold(Tally::default(), |sum, one| sum.and(one.0)))
    }
}

/// What the program wrote: [`SampleHead`], and bytes of the frame.
fn parse(item: &[u8]) -> Option<Told> {
    let (head, rest) = item.split_first_chunk::<HEAD_BYTES>()?;
    let word = |at: usize| {
        let bytes = head.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes))
    };
    let head = SampleHead {
        at_ns: u64::from_ne_bytes(head.first_chunk::<8>().copied()?),
        ifindex: word(8)?,
        counter: word(12)?,
        frame_bytes: word(16)?,
        one_in: word(20)?,
        cpu: word(24)?,
        reserved: word(28)?,
    };
    let kept = rest.len().min(SAMPLE_BYTES_MAX);
    Some(Told {
        head,
        bytes: rest[..kept].to_vec(),
    })
}

/// The samples, for whoever reads them now.
pub fn lock(samples: &Mutex<Samples>) -> MutexGuard<'_, Samples> {
    samples.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Nic {
    /// Has the interfaces run the program that takes samples, by this order.
    ///
    /// # Errors
    /// When the kernel refuses; the interfaces run what they ran then.
    pub fn sample(
        &mut self,
        facts: &Facts,
        order: &Order,
    ) -> Result<Arc<Mutex<Samples>>, NicError> {
        if let Some(why) = &self.no_samples {
            return Err(NicError::NoSamples(why.clone()));
        }
        lock(&self.samples).begin(order)?;
        self.forward = SAMPLE;
        if let Err(error) = self.swap(facts) {
            // The first error is the one worth telling.
            let _told = self.stop_samples(facts);
            return Err(error);
        }
        Ok(Arc::clone(&self.samples))
    }

    /// Has the interfaces run the usual program again.
    ///
    /// # Errors
    /// When the kernel refuses: an interface keeps the program, which takes no samples any more.
    pub fn stop_samples(&mut self, facts: &Facts) -> Result<(), NicError> {
        let ended = lock(&self.samples).set_order(&Order::default());
        self.forward = FORWARD;
        self.swap(facts)?;
        ended
    }

    fn swap(&mut self, facts: &Facts) -> Result<(), NicError> {
        let attached = self.attached.values().map(|(one, _)| one);
        let others = attached.filter(|one| one.program != PASS && one.program != self.forward);
        let others: Vec<u32> = others.map(|one| one.ifindex).collect();
        for ifindex in others {
            // One that is gone is forgotten with the next update.
            if let Some(interface) = facts.interfaces.get(&ifindex) {
                self.ensure(interface, self.forward)?;
            }
        }
        Ok(())
    }
}
