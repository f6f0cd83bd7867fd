//! Each key's value; a removal takes away only what it had observed.

use super::{
    KeyChange, Stamp,
    last_writer_wins::{put_value, take_value},
    put_map, put_u64, take_map, take_u64, whole,
};
use crate::fold::{Fold, Sourced};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// See the [module](super). Of a key that was added more than once and not removed, the latest addition
/// counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct AddWins;

/// What one log says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Additions {
    /// By key, each addition that was not removed.
    live: BTreeMap<String, BTreeMap<Stamp, Value>>,
    /// By log, the offsets of additions in other logs that were removed.
    removed: BTreeMap<String, BTreeSet<u64>>,
}

impl Additions {
    /// The keys that are there, and their values.
    pub fn values(&self) -> impl Iterator<Item = (&str, &Value)> {
        let values = self.live.iter();
        values.filter_map(|(key, all)| Some((key.as_str(), all.last_key_value()?.1)))
    }

    /// A key's additions, as a removal names what it has observed: `LOG:OFFSET`.
    #[must_use]
    pub fn observed(&self, key: &str) -> Vec<String> {
        let all = self.live.get(key).into_iter().flat_map(BTreeMap::keys);
        all.map(|stamp| format!("{}:{}", stamp.log, stamp.offset))
            .collect()
    }

    /// Whether an addition was removed by what another log says.
    fn is_removed(removed: &BTreeMap<String, BTreeSet<u64>>, stamp: &Stamp) -> bool {
        let of_log = removed.get(&stamp.log);
        of_log.is_some_and(|offsets| offsets.contains(&stamp.offset))
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, untagged)]
enum Operation {
    Add {
        add: String,
        value: Value,
    },
    Remove {
        remove: String,
        observed: Vec<String>,
    },
}

/// `LOG:OFFSET`
fn addition(text: &str) -> Result<(&str, u64), String> {
    let parts = text.rsplit_once(':');
    let parts = parts.and_then(|(log, offset)| Some((log, offset.parse().ok()?)));
    parts.ok_or_else(|| format!("{text:?} names no addition: write LOG:OFFSET"))
}

impl Fold for AddWins {
    type State = Additions;
    type Change = KeyChange<Value>;

    const NAME: &'static str = "add-wins";
    const VERSION: u32 = 1;

    fn begin(&self) -> Self::State {
        Additions::default()
    }

    fn apply(
        &self,
        state: &mut Self::State,
        event: &Sourced<'_>,
    ) -> Result<Option<Self::Change>, String> {
        let key = match super::parse(event.event.payload)? {
            Operation::Add { add, value } => {
                let stamp = Stamp::of(event.event.time_unix_ns, event);
                state
                    .live
                    .entry(add.clone())
                    .or_default()
                    .insert(stamp, value);
                add
            }
            Operation::Remove { remove, observed } => {
                let observed = observed.iter().map(|text| addition(text));
                let observed: Vec<(&str, u64)> = observed.collect::<Result<_, _>>()?;
                for (log, offset) in observed {
                    if log != event.log.as_str() {
                        let of_log = state.removed.entry(log.to_owned()).or_default();
                        of_log.insert(offset);
                    } else if let Some(all) = state.live.get_mut(&remove) {
                        all.retain(|stamp, _| stamp.offset != offset);
                    }
                }
                state.live.retain(|_, all| !all.is_empty());
                remove
            }
        };
        let value = state.live.get(&key).and_then(|all| all.last_key_value());
        let value = value.map(|(_, value)| value.clone());
        Ok(Some(KeyChange { key, value }))
    }

    fn merge(&self, into: &mut Self::State, other: &Self::State) {
        for (key, all) in &other.live {
            let held = into.live.entry(key.clone()).or_default();
            let all = all
                .iter()
                .map(|(stamp, value)| (stamp.clone(), value.clone()));
            held.extend(all);
        }
        for (log, offsets) in &other.removed {
            into.removed.entry(log.clone()).or_default().extend(offsets);
        }
        let Additions { live, removed } = into;
        live.retain(|_, all| {
            all.retain(|stamp, _| !Additions::is_removed(removed, stamp));
            !all.is_empty()
        });
    }

    fn encode(&self, state: &Self::State, out: &mut Vec<u8>) {
        put_map(out, &state.live, |out, all| {
            put_u64(out, all.len() as u64);
            for (stamp, value) in all {
                stamp.write(out);
                put_value(out, Some(value));
            }
        });
        put_map(out, &state.removed, |out, offsets| {
            put_u64(out, offsets.len() as u64);
            for offset in offsets {
                put_u64(out, *offset);
            }
        });
    }

    fn decode(&self, mut bytes: &[u8]) -> Option<Self::State> {
        let live = take_map(&mut bytes, |bytes| {
            let count = take_u64(bytes)?;
            let one = |bytes: &mut &[u8]| Some((Stamp::read(bytes)?, take_value(bytes)??));
            (0..count).map(|_| one(bytes)).collect()
        })?;
        let removed = take_map(&mut bytes, |bytes| {
            let count = take_u64(bytes)?;
            (0..count).map(|_| take_u64(bytes)).collect()
        })?;
        whole(bytes, Additions { live, removed })
    }
}
