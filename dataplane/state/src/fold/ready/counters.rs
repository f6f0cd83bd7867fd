//! Each key's sum.

use super::{KeyChange, put_map, put_u64, take_map, take_u64, whole};
use crate::fold::{Fold, Sourced};
use std::collections::BTreeMap;

/// See the [module](super).
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Add {
    key: String,
    add: i64,
}

impl Fold for Counters {
    type State = BTreeMap<String, i64>;
    type Change = KeyChange<i64>;

    const NAME: &'static str = "counters";
    const VERSION: u32 = 1;

    fn begin(&self) -> Self::State {
        BTreeMap::new()
    }

    fn apply(
        &self,
        state: &mut Self::State,
        event: &Sourced<'_>,
    ) -> Result<Option<Self::Change>, String> {
        let Add { key, add } = super::parse(event.event.payload)?;
        let sum = state.get(&key).copied().unwrap_or_default();
        let sum = sum.checked_add(add);
        let sum = sum.ok_or_else(|| format!("the sum of {key:?} would leave 64 bits"))?;
        state.insert(key.clone(), sum);
        let value = Some(sum);
        Ok(Some(KeyChange { key, value }))
    }

    /// A sum that leaves 64 bits stays at their end.
    fn merge(&self, into: &mut Self::State, other: &Self::State) {
        for (key, add) in other {
            let sum = into.entry(key.clone()).or_default();
            *sum = sum.saturating_add(*add);
        }
    }

    fn encode(&self, state: &Self::State, out: &mut Vec<u8>) {
        put_map(out, state, |out, sum| put_u64(out, sum.cast_unsigned()));
    }

    fn decode(&self, mut bytes: &[u8]) -> Option<Self::State> {
        let map = take_map(&mut bytes, |bytes| Some(take_u64(bytes)?.cast_signed()))?;
        whole(bytes, map)
    }
}
