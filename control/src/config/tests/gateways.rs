//! Whose word counts about what subnets admit.

use super::*;
use crate::filters::LIFE_S_DEFAULT;

/// `mesh`, in 1.2.0.0.
fn placed() -> String {
    mesh().replacen("[node]\n", "[node]\nsubnet = \"1.2.0.0\"\n", 1)
}

fn block(entity: &str, subnet: &str) -> String {
    format!("[[subnet_gateways]]\nentity = \"{entity}\"\nsubnet = \"{subnet}\"\n")
}

#[test]
fn exact_pairs_hold_in_the_closest_prefix_around_a_node() {
    let config = parse(&placed()).unwrap();
    assert_eq!(config.exact_within(), None);
    assert_eq!(config.filter_life_s, LIFE_S_DEFAULT);
    let prefix = |levels, mask| {
        Some(SubnetPrefix {
            subnet: Subnet(levels),
            mask,
        })
    };
    for (subnets, within) in [
        (&["2.0.0.0/8"][..], prefix(0x0102_0000, u32::MAX)),
        (
            &["2.0.0.0/8", "1.0.0.0/8"],
            prefix(0x0100_0000, 0xff00_0000),
        ),
        (
            &["1.0.0.0/8", "1.2.0.0/16", "1.2.3.0/24"],
            prefix(0x0102_0000, 0xffff_0000),
        ),
    ] {
        let blocks: String = subnets.iter().map(|subnet| block("one", subnet)).collect();
        let config = parse(&(placed() + &blocks)).unwrap();
        assert_eq!(config.subnet_gateways.len(), subnets.len());
        assert_eq!(config.exact_within(), within, "{subnets:?}");
    }
    let life = parse(&(placed() + "[subnets]\nfilter_life_s = 60\n")).unwrap();
    assert_eq!(life.filter_life_s, 60);
}

#[test]
fn rules_of_gateways() {
    let with = |blocks: &str| placed() + blocks;
    let twice = block("one", "2.0.0.0/8").repeat(2);
    let many: String = (0..66)
        .map(|n| block("one", &format!("9.{n}.0.0/16")))
        .collect();
    // None of them is around this node's own.
    let all_others: String = (0..65)
        .map(|n| block("one", &format!("9.{n}.0.0/16")))
        .collect();
    for (file, key, say) in [
        (
            with(&block("nobody", "2.0.0.0/8")),
            "subnet_gateways[0].entity",
            "neither a peer's name",
        ),
        (
            with(&block("one", "2.0.0.0")),
            "subnet_gateways[0].subnet",
            "no /length",
        ),
        (
            with(&block("one", "0.0.0.0/0")),
            "subnet_gateways[0].subnet",
            "leave the block out",
        ),
        (
            with("[[subnet_gateways]]\nentity = \"one\"\n"),
            "subnet_gateways[0].subnet",
            "missing",
        ),
        (with(&twice), "subnet_gateways[1]", "twice"),
        (with(&many), "subnet_gateways[65]", "more than 64"),
        (with(&all_others), "subnet_gateways", "65 other subnets"),
        (
            with("[subnets]\nfilter_life_s = 2\n"),
            "subnets.filter_life_s",
            "3",
        ),
        (with("[subnets]\n"), "subnets.issuers", "names nobody"),
    ] {
        refused(&file, key, say);
    }
    let own = block("us", "2.0.0.0/8");
    refused(
        &with(&own),
        "subnet_gateways[0]",
        "closest around its own, 1.2.0.0/16",
    );
    assert!(parse(&with(&block("us", "1.2.0.0/16"))).is_ok());
}
