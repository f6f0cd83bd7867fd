//! How full a node's pinned maps are, without what is in them: among that are keys of link tags.

use super::{NicError, pins::Pins, pod::Plain};
use aya::{
    Pod,
    maps::{Array, Map, MapData},
};
use serde::Serialize;
use std::path::Path;
use virga_ebpf::{
    directory, pair_set,
    subnet::Exports,
    tables::{ChannelPolicy, Filter, Neighbour, NextHop, Route},
};

/// One map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Fill {
    /// Its name, as it is pinned.
    pub map: &'static str,
    /// Entries that are not all zeros.
    pub used: u32,
    /// Entries that it has.
    pub entries: u32,
}

/// The tables of a node that has room for so many destinations.
///
/// # Errors
/// Where there are none, or the kernel refuses.
pub fn of(node: &str, destinations_max: u32) -> Result<Vec<Fill>, NicError> {
    let folder = Pins::of(node).maps(destinations_max);
    let folder = folder.as_path();
    Ok(vec![
        count::<Plain<Neighbour>>(folder, "neighbours", |v| v.0 == Neighbour::default())?,
        count::<Plain<ChannelPolicy>>(folder, "channels", |v| v.0 == ChannelPolicy::default())?,
        count::<Plain<Filter>>(folder, "filters", |v| v.0 == Filter::default())?,
        count::<Plain<Exports>>(folder, "exports", |v| v.0 == Exports::default())?,
        count::<pair_set::Line>(folder, "pairs", |v| *v == pair_set::Line::default())?,
        count::<directory::Line>(folder, "destinations", |v| *v == directory::Line::default())?,
        count::<Plain<Route>>(folder, "routes", |v| v.0 == Route::default())?,
        count::<Plain<NextHop>>(folder, "next_hops", |v| v.0 == NextHop::default())?,
    ])
}

fn count<V: Pod>(
    folder: &Path,
    map: &'static str,
    is_empty: impl Fn(&V) -> bool,
) -> Result<Fill, NicError> {
    let failed = |error| NicError::Map(map, error);
    let data = MapData::from_pin(folder.join(map)).map_err(failed)?;
    let array: Array<MapData, V> = Array::try_from(Map::Array(data)).map_err(failed)?;
    let mut used = 0;
    for place in 0..array.len() {
        used += u32::from(!is_empty(&array.get(&place, 0).map_err(failed)?));
    }
    Ok(Fill {
        map,
        used,
        entries: array.len(),
    })
}
