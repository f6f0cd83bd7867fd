//! Properties over random filters: what is shown is read the same, nothing panics, and logic's laws.

use super::*;
use proptest::{collection::vec, prelude::*, sample::select};

const KEYS: [&str; 4] = ["a", "b.c", "d-1", "e_f.g"];
const VALUES: [&str; 7] = [
    "1",
    "2.5",
    "v1.5",
    "1.2.3-rc.1",
    "text",
    "two words",
    "a\"\\b",
];

/// Texts of filters, with parentheses everywhere.
fn texts() -> impl Strategy<Value = String> {
    let has = select(&KEYS[..]).prop_map(str::to_owned);
    let compare = (select(&KEYS[..]), any::<bool>(), select(&VALUES[..])).prop_map(|(k, eq, v)| {
        let escaped = v.replace('\\', "\\\\").replace('"', "\\\"");
        let sign = if eq { "=" } else { "!=" };
        format!("{k} {sign} \"{escaped}\"")
    });
    let order = (
        select(&KEYS[..]),
        select(&["<", "<=", ">", ">="][..]),
        0usize..4,
    )
        .prop_map(|(k, sign, v)| format!("{k}{sign}{}", VALUES[v]));
    let leaf = prop_oneof![has, compare, order];
    leaf.prop_recursive(5, 24, 2, |inner| {
        prop_oneof![
            inner.clone().prop_map(|one| format!("not ({one})")),
            (inner.clone(), inner.clone()).prop_map(|(l, r)| format!("({l}) and ({r})")),
            (inner.clone(), inner).prop_map(|(l, r)| format!("({l}) or ({r})")),
        ]
    })
}

fn owned() -> impl Strategy<Value = Capabilities> {
    let values = proptest::option::of(select(&VALUES[..]));
    vec(proptest::option::of(values), KEYS.len()).prop_map(|values| {
        let all = KEYS.iter().zip(values).filter_map(|(key, value)| {
            let value = value?.map(|text| Value::parse(text).unwrap());
            let key = Key::parse(key).unwrap();
            Some(Capability { key, value })
        });
        Capabilities::new(all.collect()).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn what_is_shown_is_read_the_same(text in texts()) {
        let first = filter(&text);
        let shown = first.to_string();
        prop_assert_eq!(filter(&shown), first);
    }

    #[test]
    fn no_text_panics(bytes in vec(any::<u8>(), 0..64)) {
        let text = String::from_utf8_lossy(&bytes);
        if let Err(error) = Filter::parse(&text) {
            prop_assert!(error.column <= text.chars().count() + 1);
        }
        let _either = Capability::parse(&text);
    }

    /// Texts that are nearly filters.
    #[test]
    fn no_pieces_of_filters_panic(pieces in vec(select(&[
        "a", "and", "or", "not", "(", ")", "=", "<", ">=", "!", "1.2", "\"", "\\", " ", "é", "x.y",
    ][..]), 0..24)) {
        let text = pieces.concat();
        if let Ok(read) = Filter::parse(&text) {
            prop_assert_eq!(filter(&read.to_string()), read);
        }
    }

    #[test]
    fn de_morgan(left in texts(), right in texts(), has in owned()) {
        let same = |one: String, other: String| (filter(&one).holds(&has), filter(&other).holds(&has));
        let (l, r) = same(format!("not (({left}) and ({right}))"), format!("not ({left}) or not ({right})"));
        prop_assert_eq!(l, r);
        let (l, r) = same(format!("not (({left}) or ({right}))"), format!("not ({left}) and not ({right})"));
        prop_assert_eq!(l, r);
        let joined = filter(&left).and(filter(&right)).unwrap();
        prop_assert_eq!(joined.holds(&has), filter(&left).holds(&has) && filter(&right).holds(&has));
    }

    /// What is lacking does not hold by itself, and is a filter.
    #[test]
    fn what_is_lacking_is_a_filter_that_fails(text in texts(), has in owned()) {
        let filter_ = filter(&text);
        match filter_.lacking(&has) {
            Some(part) => prop_assert!(!filter(&part.to_string()).holds(&has)),
            None => prop_assert!(filter_.holds(&has)),
        }
    }
}
