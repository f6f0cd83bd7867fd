//! The NIC path's notes of echoes ([`virga_ebpf::tables::Echo`]), as a worker reads them.

use super::{Nic, NicError, pod::Plain};
use aya::maps::{Array, Map, MapData};
use std::path::{Path, PathBuf};
use virga_ebpf::tables::{Address, Echo};
use virga_transport::{Heard, Watch, worker};

const MAP: &str = "echoes";

/// The notes, opened for one worker.
pub struct Echoes {
    map: Array<MapData, Plain<Echo>>,
    /// The kernel's monotonic time at the worker's time 0.
    zero_ns: u64,
}

impl Nic {
    /// Where the notes are pinned.
    #[must_use]
    pub fn echoes(&self) -> PathBuf {
        self.pins.maps(self.destinations_max).join(MAP)
    }
}

impl Echoes {
    /// Opens the notes for a worker whose time 0 was at `zero_ns` of the kernel's monotonic time.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(pin: &Path, zero_ns: u64) -> Result<Self, NicError> {
        let failed = |error| NicError::Map(MAP, error);
        let data = MapData::from_pin(pin).map_err(failed)?;
        let map = Array::try_from(Map::Array(data)).map_err(failed)?;
        Ok(Self { map, zero_ns })
    }
}

impl worker::Echoes for Echoes {
    fn heard(&mut self, watch: &Watch, from: Address) -> Heard {
        // What cannot be read was not heard: then the worker's own packets tell, with more patience.
        let Ok(Plain(echo)) = self.map.get(&watch.place, 0) else {
            return Heard::default();
        };
        if let Some(renewed) = echo.renewed(watch.secret, from, watch.sent) {
            let _tried_again = self.map.set(watch.place, Plain(renewed), 0);
            return Heard::default();
        }
        let [nic_ns, worker_ns] = echo.heard_ns.map(|ns| ns.saturating_sub(self.zero_ns));
        Heard { nic_ns, worker_ns }
    }
}
