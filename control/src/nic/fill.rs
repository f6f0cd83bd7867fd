//! How full a node's pinned maps are, without what is in them: among that are keys of link tags.

use super::{NicError, pins::Pins, pod::Plain};
use aya::{
    Pod,
    maps::{Array, Map, MapData},
};
use serde::Serialize;
use std::{collections::BTreeSet, path::Path};
use virga_ebpf::{
    directory,
    limits::{PAIR_LINES_MAX, PAIRS_MAX, ROUTES_MAX},
    pair_set,
    subnet::Exports,
    tables::{ChannelPolicy, Filter, Neighbour, NextHop, Settings},
};

/// One map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Fill {
    /// Its name, as it is pinned.
    pub map: &'static str,
    /// Entries that something is in.
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
    let (destinations, routes) = ways(folder)?;
    Ok(vec![
        count::<Plain<Neighbour>>(folder, "neighbours", |v| v.0 == Neighbour::default())?,
        count::<Plain<ChannelPolicy>>(folder, "channels", |v| v.0 == ChannelPolicy::default())?,
        count::<Plain<Filter>>(folder, "filters", |v| v.0 == Filter::default())?,
        count::<Plain<Exports>>(folder, "exports", |v| v.0 == Exports::default())?,
        pairs(folder)?,
        destinations,
        routes,
        count::<Plain<NextHop>>(folder, "next_hops", |v| v.0 == NextHop::default())?,
    ])
}

/// Destinations that have a route, and routes that one has: what is taken out leaves its id or its number behind, which
/// nobody reads, until the place is needed.
fn ways(folder: &Path) -> Result<(Fill, Fill), NicError> {
    let map = "destinations";
    let lines: Array<MapData, directory::Line> = open(folder, map)?;
    let (mut used, mut named) = (0, BTreeSet::new());
    for place in 0..lines.len() {
        let line = lines.get(&place, 0).map_err(|e| NicError::Map(map, e))?;
        let routes = (0..directory::ENTRIES).filter_map(|n| directory::route(&line, n));
        for route in routes {
            used += 1;
            named.insert(route);
        }
    }
    let each = u32::try_from(directory::ENTRIES).unwrap_or(1);
    let destinations = Fill {
        map,
        used,
        entries: lines.len().saturating_mul(each),
    };
    let routes = Fill {
        map: "routes",
        used: u32::try_from(named.len()).unwrap_or(u32::MAX),
        entries: ROUTES_MAX,
    };
    Ok((destinations, routes))
}

/// Pairs of the live set; beside it stands the one before, which nobody reads.
fn pairs(folder: &Path) -> Result<Fill, NicError> {
    let map = "pairs";
    let settings: Array<MapData, Plain<Settings>> = open(folder, "settings")?;
    let settings = settings.get(&0, 0);
    let settings = settings.map_err(|e| NicError::Map("settings", e))?.0;
    let (half, count) = pair_set::half_of(settings.pairs);
    let lines: Array<MapData, pair_set::Line> = open(folder, map)?;
    let from = if half == 0 { 0 } else { PAIR_LINES_MAX };
    let mut used = 0;
    for place in from..from.saturating_add(count).min(lines.len()) {
        let line = lines.get(&place, 0).map_err(|e| NicError::Map(map, e))?;
        used += pair_set::all_of(&[line]).count();
    }
    Ok(Fill {
        map,
        used: u32::try_from(used).unwrap_or(u32::MAX),
        entries: PAIRS_MAX,
    })
}

fn open<V: Pod>(folder: &Path, map: &'static str) -> Result<Array<MapData, V>, NicError> {
    let failed = |error| NicError::Map(map, error);
    let data = MapData::from_pin(folder.join(map)).map_err(failed)?;
    Array::try_from(Map::Array(data)).map_err(failed)
}

fn count<V: Pod>(
    folder: &Path,
    map: &'static str,
    is_empty: impl Fn(&V) -> bool,
) -> Result<Fill, NicError> {
    let failed = |error| NicError::Map(map, error);
    let array: Array<MapData, V> = open(folder, map)?;
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
