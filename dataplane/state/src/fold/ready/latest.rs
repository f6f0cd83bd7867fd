//! Each key's latest event.

use super::{
    KeyChange, Stamp, Stamped, put_bytes, put_map, take_bytes, take_later, take_map, whole,
};
use crate::fold::{Fold, Sourced};
use std::collections::BTreeMap;

/// See the [module](super).
#[derive(Clone, Debug)]
pub struct Latest {
    member: String,
}

impl Latest {
    /// The key is what this member of each event's object says: a text, or a number.
    #[must_use]
    pub fn by(member: &str) -> Self {
        Self {
            member: member.to_owned(),
        }
    }

    /// The key that an event's object has in a member.
    pub(crate) fn key(
        object: &serde_json::Map<String, serde_json::Value>,
        member: &str,
    ) -> Option<String> {
        match object.get(member)? {
            serde_json::Value::String(key) => Some(key.clone()),
            serde_json::Value::Number(key) => Some(key.to_string()),
            _ => None,
        }
    }
}

impl Fold for Latest {
    type State = BTreeMap<String, Stamped<Vec<u8>>>;
    type Change = KeyChange<Vec<u8>>;

    const NAME: &'static str = "latest";
    const VERSION: u32 = 1;

    fn parameters(&self) -> String {
        self.member.clone()
    }

    fn begin(&self) -> Self::State {
        BTreeMap::new()
    }

    fn apply(
        &self,
        state: &mut Self::State,
        event: &Sourced<'_>,
    ) -> Result<Option<Self::Change>, String> {
        let object: serde_json::Map<String, serde_json::Value> = super::parse(event.event.payload)?;
        let no_key = || format!("its {:?} is neither a text nor a number", self.member);
        let key = Self::key(&object, &self.member).ok_or_else(no_key)?;
        let found = Stamped {
            stamp: Stamp::of(event.event.time_unix_ns, event),
            value: event.event.payload.to_vec(),
        };
        let is_new = take_later(state, &key, &found);
        let value = Some(found.value);
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
            put_bytes(out, &held.value);
        });
    }

    fn decode(&self, mut bytes: &[u8]) -> Option<Self::State> {
        let map = take_map(&mut bytes, |bytes| {
            let stamp = Stamp::read(bytes)?;
            let value = take_bytes(bytes)?.to_vec();
            Some(Stamped { stamp, value })
        })?;
        whole(bytes, map)
    }
}
