//! Filters as people write them, and every way in which one is none.

mod properties;
mod statements;

use super::{
    filter::{DEPTH_MAX, FILTER_BYTES_MAX, NODES_MAX},
    value::{CAPABILITIES_MAX, CapabilityError, KEY_BYTES_MAX, VALUE_BYTES_MAX},
    *,
};

fn capabilities(all: &[&str]) -> Capabilities {
    let all = all.iter().map(|text| Capability::parse(text).unwrap());
    Capabilities::new(all.collect()).unwrap()
}

fn filter(text: &str) -> Filter {
    Filter::parse(text).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn presence_equality_order_and_their_combinations() {
    let has = capabilities(&[
        "hardware.gpu",
        "hardware.memory=64",
        "software.cuda=12.4.1",
        "software.driver=v550.54",
        "tier=production",
        "region=eu west",
        "load=-0.25",
    ]);
    for (text, holds) in [
        ("hardware.gpu", true),
        ("hardware.memory", true),
        ("hardware.fpga", false),
        ("software.cuda >= 12", true),
        ("software.cuda >= 12.4.1", true),
        ("software.cuda > v12.4.1", false),
        ("software.cuda < 12.4.2-rc.1", true),
        ("software.cuda = 12.4.1", true),
        ("software.cuda != 12.4.1", false),
        ("software.driver >= v550.5", true),
        ("software.driver <= 550", false),
        ("hardware.memory>=64", true),
        ("hardware.memory > 63.999999999", true),
        ("hardware.memory = 64.0", true),
        ("load < 0", true),
        ("load >= -0.5", true),
        ("tier = production", true),
        ("tier = \"production\"", true),
        ("tier = Production", false),
        ("tier != test", true),
        ("absent != test", false),
        ("not absent = test", true),
        ("region = \"eu west\"", true),
        // A tag has no value to compare, and a text no order.
        ("hardware.gpu = 1", false),
        ("tier > 3", false),
        ("tier != 3", true),
        ("hardware.gpu and tier = test", false),
        ("tier = test or hardware.gpu", true),
        ("tier = test or hardware.gpu and not load", false),
        ("(tier = test or hardware.gpu) and not absent", true),
        ("not (hardware.gpu and hardware.fpga)", true),
        ("not not hardware.gpu", true),
    ] {
        let filter = filter(text);
        assert_eq!(filter.holds(&has), holds, "{text}");
        let lacking = filter.lacking(&has);
        assert_eq!(lacking.is_none(), holds, "{text}: {lacking:?}");
    }
}

#[test]
fn numbers_and_versions_compare_as_written() {
    let compare = |left: &str, right: &str| {
        let (left, right) = (Value::parse(left).unwrap(), Value::parse(right).unwrap());
        let there = left.compare(&right);
        assert_eq!(right.compare(&left), there.map(std::cmp::Ordering::reverse));
        there.map(|o| o as i8)
    };
    for (left, right, expected) in [
        ("12.10", "12.9", Some(-1)),
        ("v12.10", "12.9", Some(1)),
        ("12.10.0", "12.9", Some(1)),
        ("1.0.0-rc.1", "1", Some(-1)),
        ("1.0.0-rc.2", "1.0.0-rc.10", Some(-1)),
        ("1.0.0+a", "1.0.0+b", Some(0)),
        (
            "999999999999999999",
            "999999999999999998.999999999",
            Some(1),
        ),
        ("-1", "1.0.0", None),
        ("01", "1", Some(0)),
        ("01", "v1", None),
        ("1e3", "1000", None),
        ("1e3", "1e3", Some(0)),
    ] {
        assert_eq!(compare(left, right), expected, "{left} and {right}");
    }
}

#[test]
fn what_is_lacking_is_the_part_that_would_have_to_change() {
    let has = capabilities(&["hardware.gpu", "software.cuda=11.8"]);
    for (text, part, found) in [
        (
            "hardware.gpu and software.cuda >= 12",
            "software.cuda >= 12",
            "software.cuda is 11.8",
        ),
        (
            "(tier.test or tier.production) and hardware.gpu",
            "tier.test or tier.production",
            "tier.test is not there, tier.production is not there",
        ),
        (
            "not hardware.gpu",
            "not hardware.gpu",
            "hardware.gpu is there",
        ),
    ] {
        let filter = filter(text);
        let lacking = filter.lacking(&has).unwrap();
        assert_eq!(
            (lacking.to_string(), lacking.found(&has)),
            (part.into(), found.into())
        );
    }
}

#[test]
fn errors_point_at_the_column_and_say_what_was_expected() {
    for (text, column, what) in [
        (
            "",
            1,
            "expected a key such as hardware.gpu, `not` or `(`, found the end",
        ),
        (
            "a and",
            6,
            "expected a key such as hardware.gpu, `not` or `(`, found the end",
        ),
        (
            "a and or b",
            7,
            "expected a key such as hardware.gpu, `not` or `(`, found \"or\"",
        ),
        (
            "software.cuda >=",
            17,
            "expected a value after `>=`, found the end",
        ),
        ("a = and b", 5, "expected a value after `=`, found \"and\""),
        ("a == 1", 4, "expected a value; `=` has no second `=`"),
        ("a => 1", 4, "expected a value after `=`, found '>'"),
        ("a b", 3, "expected `and`, `or` or the end, found \"b\""),
        ("a & b", 3, "expected `and`, `or` or the end, found '&'"),
        ("(a or b", 1, "nothing closes this parenthesis"),
        ("a) and b", 2, "nothing opens this parenthesis"),
        ("(a b)", 4, "expected `and`, `or` or `)`, found \"b\""),
        ("a = \"b", 5, "nothing closes this quotation mark"),
        ("a = \"b\\n\"", 7, "expected \\\" or \\\\"),
        ("a = \"\"", 5, "the value is empty"),
        (
            "é",
            1,
            "expected a key such as hardware.gpu, `not` or `(`, found 'é'",
        ),
        (
            "a = \"é\" x",
            9,
            "expected `and`, `or` or the end, found \"x\"",
        ),
        (
            "Hardware.gpu",
            1,
            "\"Hardware.gpu\" is no key: keys are levels of a-z 0-9 - _ with single dots between",
        ),
        (
            "a..b",
            1,
            "\"a..b\" is no key: keys are levels of a-z 0-9 - _ with single dots between",
        ),
        (
            "tier > production",
            8,
            "`>` compares numbers and versions, and \"production\" is neither",
        ),
    ] {
        let error = Filter::parse(text).unwrap_err();
        assert_eq!(
            (error.column, error.what.as_str()),
            (column, what),
            "{text}"
        );
    }
    let shown = Filter::parse("a and\tb >= x").unwrap_err().to_string();
    let expected = "column 12: `>=` compares numbers and versions, and \"x\" is neither\n    a and b >= x\n               ^";
    assert_eq!(shown, expected);
}

#[test]
fn filters_are_bounded_in_length_parts_and_depth() {
    let deep = |depth| format!("{}a{}", "(".repeat(depth), ")".repeat(depth));
    assert!(Filter::parse(&deep(DEPTH_MAX)).is_ok());
    let error = Filter::parse(&deep(DEPTH_MAX + 1)).unwrap_err();
    assert_eq!(error.column, DEPTH_MAX + 1);
    assert!(Filter::parse(&format!("{}a", "not ".repeat(DEPTH_MAX + 1))).is_err());

    let wide = |keys: usize| vec!["a"; keys].join(" or ");
    let most = NODES_MAX.div_ceil(2);
    assert!(Filter::parse(&wide(most)).is_ok());
    let error = Filter::parse(&wide(most + 1)).unwrap_err();
    assert!(error.what.contains("at most 128 parts"), "{error}");
    let half = || filter(&wide(most / 2));
    let both = half().and(half()).unwrap();
    assert!(both.and(half()).is_none());

    let long = "é".repeat(FILTER_BYTES_MAX);
    let error = Filter::parse(&long).unwrap_err();
    assert!(error.what.contains("at most 1024 bytes"), "{error}");
}

#[test]
fn filters_joined_are_the_filter_with_and() {
    let (left, right) = ("a or not b", "(c or d = 1) and e");
    let joined = filter(left).and(filter(right)).unwrap();
    assert_eq!(joined, filter(&format!("({left}) and ({right})")));
    assert_eq!(joined.to_string(), "(a or not b) and ((c or d = 1) and e)");
}

#[test]
fn capabilities_are_bounded_and_each_is_there_once() {
    let long = "x".repeat(KEY_BYTES_MAX + 1);
    for text in ["", "=1", "A", "a.", "and", "a=", "a=b\nc", long.as_str()] {
        assert!(Capability::parse(text).is_err(), "{text:?}");
    }
    assert!(Value::parse(&"x".repeat(VALUE_BYTES_MAX)).is_ok());
    let twice = [
        Capability::parse("a").unwrap(),
        Capability::parse("a=1").unwrap(),
    ];
    let error = Capabilities::new(twice.to_vec()).unwrap_err();
    assert_eq!(error, CapabilityError::Twice(Key::parse("a").unwrap()));
    let many = (0..=CAPABILITIES_MAX).map(|n| Capability::parse(&format!("k{n}")).unwrap());
    assert_eq!(
        Capabilities::new(many.collect()),
        Err(CapabilityError::Many)
    );
}
