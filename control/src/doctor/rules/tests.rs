//! Every rule, from made-up facts.

use super::*;
use crate::doctor::interface::Channels;
use std::collections::BTreeSet;

fn card() -> InterfaceFacts {
    InterfaceFacts {
        name: "eth0".into(),
        ifindex: 2,
        is_up: true,
        has_carrier: true,
        mtu: 1_500,
        driver: Some("ice".into()),
        kind: None,
        rx_queues: 8,
        tx_queues: 8,
        channels: Some(Channels {
            combined: 8,
            combined_max: 64,
            ..Channels::default()
        }),
        features: Some(BTreeSet::new()),
        programs: Vec::new(),
        xdp_features: Some(XdpFeatures(0b111)),
        peer: None,
    }
}

fn veth(peer: Peer) -> InterfaceFacts {
    let (driver, kind) = (Some("veth".into()), Some("veth".into()));
    InterfaceFacts {
        driver,
        kind,
        peer: Some(peer),
        rx_queues: 1,
        channels: None,
        ..card()
    }
}

fn peer_here() -> Peer {
    Peer::Here {
        name: "p".into(),
        has_native_program: true,
        has_gro: false,
        tx_queues: 1,
    }
}

/// Verdict and fix of one check.
fn check(facts: &InterfaceFacts, name: &str) -> (Verdict, String) {
    let found = judge_for(facts, Need::Required, 8)
        .into_iter()
        .find(|check| check.name == name);
    let found = found.unwrap_or_else(|| panic!("no check {name}"));
    (found.verdict, found.fix.unwrap_or_default())
}

fn with_feature(facts: InterfaceFacts, feature: &str) -> InterfaceFacts {
    InterfaceFacts {
        features: Some([feature.to_owned()].into()),
        ..facts
    }
}

#[test]
fn a_good_card_and_a_good_veth_are_good() {
    for facts in [card(), veth(peer_here())] {
        for check in judge_for(&facts, Need::Required, 8) {
            assert_eq!(check.verdict, Verdict::Ok, "{check:?}");
            assert_eq!(check.fix, None, "{check:?}");
        }
    }
}

#[test]
fn what_is_not_ok_has_a_fix_and_is_no_failure_in_user_space() {
    let bad = with_feature(
        InterfaceFacts {
            mtu: 9_000,
            xdp_features: Some(XdpFeatures(0)),
            driver: Some("r8169".into()),
            ..card()
        },
        "rx-lro",
    );
    let failed = judge_for(&bad, Need::Required, 8)
        .into_iter()
        .filter(|check| check.verdict == Verdict::Fail);
    let failed: Vec<Check> = failed.collect();
    assert_eq!(failed.len(), 4, "{failed:?}");
    assert!(failed.iter().all(|check| check.fix.is_some()));
    let worst = |need| {
        judge_for(&bad, need, 8)
            .iter()
            .map(|check| check.verdict)
            .max()
    };
    assert_eq!(worst(Need::Preferred), Some(Verdict::Warn));
    assert_eq!(worst(Need::None), Some(Verdict::Ok));
}

#[test]
fn up_and_carrier() {
    let down = InterfaceFacts {
        is_up: false,
        ..card()
    };
    assert_eq!(
        check(&down, "up"),
        (Verdict::Fail, "ip link set dev eth0 up".into())
    );
    assert_eq!(
        check(
            &InterfaceFacts {
                has_carrier: false,
                ..card()
            },
            "up"
        )
        .0,
        Verdict::Warn
    );
}

#[test]
fn native_support_by_the_kernels_word_and_else_by_table() {
    let native = |driver: &str, features| {
        let facts = InterfaceFacts {
            driver: Some(driver.into()),
            xdp_features: features,
            ..card()
        };
        check(&facts, "native XDP").0
    };
    assert_eq!(native("whatever", Some(XdpFeatures::BASIC)), Verdict::Ok);
    assert_eq!(native("virtio_net", Some(XdpFeatures(0))), Verdict::Ok);
    assert_eq!(native("whatever", Some(XdpFeatures(0))), Verdict::Fail);
    assert_eq!(native("ice", None), Verdict::Ok);
    assert_eq!(native("bridge", None), Verdict::Fail);
    assert_eq!(native("whatever", None), Verdict::Unknown);
}

#[test]
fn mtu_and_lro() {
    let (verdict, fix) = check(
        &InterfaceFacts {
            mtu: 9_000,
            ..card()
        },
        "MTU",
    );
    assert_eq!(
        (verdict, fix),
        (
            Verdict::Fail,
            format!("ip link set dev eth0 mtu {NATIVE_MTU_MAX}")
        )
    );
    let lro = |feature| check(&with_feature(card(), feature), "LRO");
    assert_eq!(
        lro("rx-lro"),
        (Verdict::Fail, "ethtool -K eth0 lro off".into())
    );
    assert_eq!(
        lro("rx-gro-hw"),
        (Verdict::Warn, "ethtool -K eth0 rx-gro-hw off".into())
    );
    assert_eq!(
        check(
            &InterfaceFacts {
                features: None,
                ..card()
            },
            "LRO"
        )
        .0,
        Verdict::Unknown
    );
}

#[test]
fn queues_by_the_drivers_rule() {
    let queues = |driver: &str, combined, combined_max| {
        let channels = Some(Channels {
            combined,
            combined_max,
            ..Channels::default()
        });
        check(
            &InterfaceFacts {
                driver: Some(driver.into()),
                channels,
                ..card()
            },
            "queues",
        )
    };
    assert_eq!(
        queues("i40e", 4, 64),
        (Verdict::Warn, "ethtool -L eth0 combined 8".into())
    );
    assert_eq!(queues("i40e", 4, 4).0, Verdict::Ok);
    assert_eq!(
        queues("ena", 8, 8),
        (Verdict::Fail, "ethtool -L eth0 combined 4".into())
    );
    assert_eq!(queues("ena", 4, 8).0, Verdict::Ok);
    assert_eq!(queues("mlx5_core", 1, 8).0, Verdict::Ok);
    assert_eq!(queues("virtio_net", 8, 16).0, Verdict::Ok);
    assert_eq!(
        queues("virtio_net", 8, 12),
        (Verdict::Warn, "ethtool -L eth0 combined 4".into())
    );
    assert_eq!(
        queues("virtio_net", 1, 1),
        (Verdict::Warn, "give the virtual machine 9 queues".into())
    );
}

#[test]
fn programs_ours_and_others() {
    let attached = |mode, name: Option<&str>| {
        let name = name.map(str::to_owned);
        check(
            &InterfaceFacts {
                programs: vec![AttachedProgram { mode, id: 7, name }],
                ..card()
            },
            "XDP program",
        )
    };
    assert_eq!(attached(XdpMode::Native, Some("virga")).0, Verdict::Ok);
    assert_eq!(attached(XdpMode::Native, Some("virga_pass")).0, Verdict::Ok);
    assert_eq!(attached(XdpMode::Generic, Some("virga")).0, Verdict::Warn);
    let (verdict, fix) = attached(XdpMode::Native, Some("other"));
    assert_eq!(verdict, Verdict::Warn);
    assert!(fix.starts_with("ip link set dev eth0 xdp off"), "{fix}");
    assert!(
        attached(XdpMode::Generic, None)
            .1
            .contains("xdpgeneric off")
    );
}

#[test]
fn veth_peers_and_checksums() {
    let peer = |has_native_program, has_gro, tx_queues| {
        check(
            &veth(Peer::Here {
                name: "p".into(),
                has_native_program,
                has_gro,
                tx_queues,
            }),
            "veth peer",
        )
    };
    assert_eq!(
        peer(false, false, 1),
        (Verdict::Fail, "ethtool -K p gro on".into())
    );
    assert_eq!(peer(false, true, 1).0, Verdict::Ok);
    assert_eq!(
        peer(true, true, 2),
        (Verdict::Fail, "ethtool -L p tx 1".into())
    );
    assert_eq!(
        check(&veth(Peer::Elsewhere), "veth peer").0,
        Verdict::Unknown
    );
    let partial = with_feature(veth(peer_here()), "tx-checksum-ip-generic");
    assert_eq!(
        check(&partial, "TX checksums"),
        (Verdict::Warn, "ethtool -K eth0 tx off".into())
    );
}
