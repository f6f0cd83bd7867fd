//! The NIC path's programs and maps: loaded, or reused where they are pinned already.

use std::{
    os::fd::{AsFd, AsRawFd},
    path::Path,
};

use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    maps::{Array, DevMap, Map, MapData, MapError, PerCpuArray, XskMap},
    programs::Xdp,
};
use virga_ebpf::{
    directory::{Line, lines_for},
    limits::{
        CHANNELS, EXPORT_PLACES, FILTER_PLACES, NEIGHBOUR_SLOTS, NEXT_HOPS_MAX, PORTS_MAX,
        ROUTES_MAX,
    },
    pair_set,
    publish::Store,
    reason::{COUNTERS, Counter},
    subnet::Exports,
    tables::{ChannelPolicy, Filter, Neighbour, NextHop, Route, Settings, XskPort},
};

use super::{NicError, pod::Plain};

/// The built object; `scripts/build-ebpf` makes it from `ebpf/src/main.rs`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../ebpf/prebuilt/virga.bpf.o"
));

/// The settings are no map of their own kind but a variable of the program, which it reads without a look-up. To the
/// kernel that is an array of one.
const SETTINGS: &str = ".bss";

/// Every other map of the object, by the name it is pinned under.
pub const MAP_NAMES: [&str; 18] = [
    "neighbours",
    "hs_buckets",
    "echoes",
    "guard_lines",
    "filters",
    "pairs",
    "channels",
    "exports",
    "rate_buckets",
    "destinations",
    "routes",
    "next_hops",
    "egress",
    "xsk_ports",
    "xsks",
    "flows",
    "seen",
    "counters",
];

/// Loads the object. Maps are pinned in `pins` and reused from there; without it they end with the
/// programs.
///
/// # Errors
/// When the kernel refuses a map.
pub fn load(pins: Option<&Path>, destinations_max: u32) -> Result<(Ebpf, Maps), NicError> {
    let mut loader = EbpfLoader::new();
    loader
        .btf(None)
        .verifier_log_level(VerifierLogLevel::STATS)
        .map_max_entries("destinations", lines_for(destinations_max));
    if let Some(pins) = pins {
        for name in MAP_NAMES {
            loader.map_pin_path(name, pins.join(name));
        }
        loader.map_pin_path(SETTINGS, pins.join("settings"));
    }
    // Whoever loads writes what a variable begins with, also over one that is reused: that shall be what it holds.
    let held = match pins {
        Some(pins) => held_settings(&pins.join("settings"))?,
        None => Plain(Settings::default()),
    };
    loader.override_global("SETTINGS", &held, true);
    let mut ebpf = loader
        .load(OBJECT)
        .map_err(|e| NicError::Load(Box::new(e)))?;
    let maps = Maps::take(&mut ebpf)?;
    Ok((ebpf, maps))
}

/// What programs that forward already go by; nothing where there are none.
fn held_settings(pin: &Path) -> Result<Plain<Settings>, NicError> {
    if !pin.exists() {
        return Ok(Plain(Settings::default()));
    }
    let failed = |e| NicError::Map("settings", e);
    let map = Map::Array(MapData::from_pin(pin).map_err(failed)?);
    let settings = Array::<_, Plain<Settings>>::try_from(map).map_err(failed)?;
    settings.get(&0, 0).map_err(failed)
}

/// Loads one of the object's programs into the kernel: the verifier reads it here.
///
/// # Errors
/// When the object has no such program, or the verifier refuses it.
pub fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, NicError> {
    let program = ebpf.program_mut(name).ok_or(NicError::Object(name))?;
    let xdp: &mut Xdp = program.try_into().map_err(|_| NicError::Object(name))?;
    if xdp.fd().is_err() {
        xdp.load().map_err(|e| NicError::Verifier {
            program: name,
            error: Box::new(e),
        })?;
    }
    Ok(xdp)
}

/// The kernel's id of a loaded program.
#[must_use]
pub fn program_id(ebpf: &Ebpf, name: &str) -> Option<u32> {
    let xdp: &Xdp = ebpf.program(name)?.try_into().ok()?;
    xdp.info().ok().map(|info| info.id())
}

/// The maps that user space reads and writes.
pub struct Maps {
    settings: Array<MapData, Plain<Settings>>,
    neighbours: Array<MapData, Plain<Neighbour>>,
    guard_lines: Array<MapData, [u64; 8]>,
    filters: Array<MapData, Plain<Filter>>,
    pairs: Array<MapData, pair_set::Line>,
    channels: Array<MapData, Plain<ChannelPolicy>>,
    exports: Array<MapData, Plain<Exports>>,
    destinations: Array<MapData, Line>,
    routes: Array<MapData, Plain<Route>>,
    next_hops: Array<MapData, Plain<NextHop>>,
    egress: DevMap<MapData>,
    xsk_ports: Array<MapData, Plain<XskPort>>,
    xsks: XskMap<MapData>,
    counters: PerCpuArray<MapData, Plain<Counter>>,
}

impl Maps {
    fn take(ebpf: &mut Ebpf) -> Result<Self, NicError> {
        fn one<M: TryFrom<Map, Error = MapError>>(
            ebpf: &mut Ebpf,
            name: &'static str,
        ) -> Result<M, NicError> {
            let map = ebpf.take_map(name).ok_or(NicError::Object(name))?;
            M::try_from(map).map_err(|e| NicError::Map(name, e))
        }
        Ok(Self {
            settings: one(ebpf, SETTINGS)?,
            neighbours: one(ebpf, "neighbours")?,
            guard_lines: one(ebpf, "guard_lines")?,
            filters: one(ebpf, "filters")?,
            pairs: one(ebpf, "pairs")?,
            channels: one(ebpf, "channels")?,
            exports: one(ebpf, "exports")?,
            destinations: one(ebpf, "destinations")?,
            routes: one(ebpf, "routes")?,
            next_hops: one(ebpf, "next_hops")?,
            egress: one(ebpf, "egress")?,
            xsk_ports: one(ebpf, "xsk_ports")?,
            xsks: one(ebpf, "xsks")?,
            counters: one(ebpf, "counters")?,
        })
    }

    /// Sums of all CPUs, by [`virga_ebpf::reason::Outcome`] and [`virga_ebpf::reason::Reason`].
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Vec<Counter>, NicError> {
        let mut sums = vec![Counter::default(); COUNTERS as usize];
        for (place, sum) in (0..COUNTERS).zip(&mut sums) {
            let each = self
                .counters
                .get(&place, 0)
                .map_err(|e| NicError::Map("counters", e))?;
            for one in each.iter() {
                sum.packets += one.0.packets;
                sum.bytes += one.0.bytes;
            }
        }
        Ok(sums)
    }

    /// Interfaces that packets can be redirected to, by their place in the device map.
    #[must_use]
    pub fn egress(&self) -> Vec<(u32, u32)> {
        let occupied = |place| self.egress.get(place, 0).ok().map(|v| (place, v.if_index));
        (0..PORTS_MAX)
            .filter_map(occupied)
            .filter(|(_, ifindex)| *ifindex != 0)
            .collect()
    }

    /// Says which sockets an interface's queues have; the interface must have an entry to itself.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_xsk_port(&mut self, port: &XskPort) -> Result<(), NicError> {
        self.xsk_ports
            .set(XskPort::entry(port.ifindex), Plain(*port), 0)
            .map_err(|e| NicError::Map("xsk_ports", e))
    }

    /// Puts an AF_XDP socket into its place; it is taken out when it closes.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn set_xsk(&mut self, place: u32, socket: impl AsFd) -> Result<(), NicError> {
        self.xsks
            .set(place, socket.as_fd().as_raw_fd(), 0)
            .map_err(|e| NicError::Map("xsks", e))
    }

    /// Puts an interface into the device map.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn set_egress(&mut self, place: u32, ifindex: u32) -> Result<(), NicError> {
        self.egress.set(place, ifindex, None, 0).map_err(|source| {
            let io = std::io::Error::other(source);
            NicError::Egress(ifindex, io)
        })
    }
}

/// Which map could not be read or written, and why.
#[derive(Debug, thiserror::Error)]
#[error("map {map}: {source}")]
pub struct StoreError {
    map: &'static str,
    source: MapError,
}

fn at(map: &'static str) -> impl Fn(MapError) -> StoreError {
    move |source| StoreError { map, source }
}

macro_rules! array_store {
    ($map:ident, $all:ident, $set:ident, $key:ty, $value:ty, $count:expr) => {
        fn $all(&self) -> Result<Vec<$value>, StoreError> {
            (0..$count)
                .map(|n| {
                    self.$map
                        .get(&n, 0)
                        .map(|v| v.0)
                        .map_err(at(stringify!($map)))
                })
                .collect()
        }
        fn $set(&mut self, place: $key, value: &$value) -> Result<(), StoreError> {
            self.$map
                .set(u32::from(place), Plain(*value), 0)
                .map_err(at(stringify!($map)))
        }
    };
}

impl Store for Maps {
    type Error = StoreError;

    /// One over the kernel's `HZ`: how far its coarse clocks go at a time.
    fn jiffy_ns(&self) -> u32 {
        let tick = rustix::time::clock_getres(rustix::time::ClockId::MonotonicCoarse);
        u32::try_from(tick.tv_nsec).unwrap_or(u32::MAX)
    }

    array_store!(
        neighbours,
        neighbours,
        set_neighbour,
        u32,
        Neighbour,
        NEIGHBOUR_SLOTS
    );
    array_store!(
        channels,
        channels,
        set_channel,
        u16,
        ChannelPolicy,
        CHANNELS
    );
    array_store!(filters, filters, set_filter, u32, Filter, FILTER_PLACES);
    array_store!(exports, exports, set_exports, u32, Exports, EXPORT_PLACES);
    array_store!(routes, routes, set_route, u32, Route, ROUTES_MAX);
    array_store!(
        next_hops,
        next_hops,
        set_next_hop,
        u32,
        NextHop,
        NEXT_HOPS_MAX
    );

    fn settings(&self) -> Result<Settings, StoreError> {
        self.settings
            .get(&0, 0)
            .map(|s| s.0)
            .map_err(at("settings"))
    }
    fn set_settings(&mut self, settings: &Settings) -> Result<(), StoreError> {
        self.settings
            .set(0, Plain(*settings), 0)
            .map_err(at("settings"))
    }
    fn set_guard_lines(&mut self, from: u32, lines: &[[u64; 8]]) -> Result<(), StoreError> {
        for (line, bits) in (from..).zip(lines) {
            self.guard_lines
                .set(line, bits, 0)
                .map_err(at("guard_lines"))?;
        }
        Ok(())
    }
    fn pair_lines(&self, from: u32, count: u32) -> Result<Vec<pair_set::Line>, StoreError> {
        let line = |n| self.pairs.get(&n, 0).map_err(at("pairs"));
        (from..from.saturating_add(count)).map(line).collect()
    }
    fn set_pair_line(&mut self, line: u32, entries: &pair_set::Line) -> Result<(), StoreError> {
        self.pairs.set(line, entries, 0).map_err(at("pairs"))
    }
    fn destinations(&self) -> Result<Vec<Line>, StoreError> {
        let line = |n| self.destinations.get(&n, 0).map_err(at("destinations"));
        (0..self.destinations.len()).map(line).collect()
    }
    fn set_destinations(&mut self, line: u32, entries: &Line) -> Result<(), StoreError> {
        self.destinations
            .set(line, entries, 0)
            .map_err(at("destinations"))
    }
}
