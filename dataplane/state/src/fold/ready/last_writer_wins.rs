//! Each key's value of the latest time that writers gave.

use super::{
    KeyChange, Stamp, Stamped, put_bytes, put_map, take_bytes, take_later, take_map, whole,
};
use crate::fold::{Fold, Sourced};
use serde_json::Value;
use std::collections::BTreeMap;

/// See the [module](super). What was removed leaves its time behind, so that an older write that comes
/// later does not bring it back.
#[derive(Clone, Copy, Debug, Default)]
pub struct LastWriterWins;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Write {
    key: String,
    value: Option<Value>,
    /// Without it, when the log got the event.
    time: Option<u64>,
}

impl LastWriterWins {
    /// The keys that are there.
    pub fn values(
        state: &BTreeMap<String, Stamped<Option<Value>>>,
    ) -> impl Iterator<Item = (&str, &Value)> {
        let values = state.iter();
        values.filter_map(|(key, held)| Some((key.as_str(), held.value.as_ref()?)))
    }
}

impl Fold for LastWriterWins {
    type State = BTreeMap<String, Stamped<Option<Value>>>;
    type Change = KeyChange<Value>;

    const NAME: &'static str = "last-writer-wins";
    const VERSION: u32 = 1;

    fn begin(&self) -> Self::State {
        BTreeMap::new()
    }

    fn apply(
        &self,
        state: &mut Self::State,
        event: &Sourced<'_>,
    ) -> Result<Option<Self::Change>, String> {
        let Write { key, value, time } = super::parse(event.event.payload)?;
        let stamp = Stamp::of(time.unwrap_or(event.event.time_unix_ns), event);
        let found = Stamped { stamp, value };
        let is_new = take_later(state, &key, &found);
        let value = found.value;
        Ok(is_new.then_some(KeyChange { key, value }))
    }

    fn merge(&self, into: &mut Self::State, other: &Self::State) {
        for (key, found) in other {
            take_later(into, key, found);
        }
    }

    fn encode(&self, state: &Self::State, out: &mut Vec<u8>) {
        put_map(out, state, |out, held| {
            held.stamp.write(out);
            put_value(out, held.value.as_ref());
        });
    }

    fn decode(&self, mut bytes: &[u8]) -> Option<Self::State> {
        let map = take_map(&mut bytes, |bytes| {
            let stamp = Stamp::read(bytes)?;
            let value = take_value(bytes)?;
            Some(Stamped { stamp, value })
        })?;
        whole(bytes, map)
    }
}

/// No bytes stand for none: no value has none.
pub(super) fn put_value(out: &mut Vec<u8>, value: Option<&Value>) {
    let text = value.map(Value::to_string).unwrap_or_default();
    put_bytes(out, text.as_bytes());
}

#[expect(
    clippy::option_option,
    reason = "none where it cannot be read, none where there is none"
)]
pub(super) fn take_value(bytes: &mut &[u8]) -> Option<Option<Value>> {
    match take_bytes(bytes)? {
        [] => Some(None),
        text => serde_json::from_slice(text).ok().map(Some),
    }
}
