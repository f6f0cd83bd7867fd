//! Every rule, from made-up facts.

use super::*;
use crate::doctor::interface::Channels;
use std::collections::BTreeSet;

const HOST: Host = Host {
    cpus: 8,
    kernel: Some(Kernel(6, 12)),
    page_bytes: 4_096,
};

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
    let found = judge_for(facts, Need::Required, &HOST)
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
        for check in judge_for(&facts, Need::Required, &HOST) {
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
    let failed = judge_for(&bad, Need::Required, &HOST)
        .into_iter()
        .filter(|check| check.verdict == Verdict::Fail);
    let failed: Vec<Check> = failed.collect();
    assert_eq!(failed.len(), 3, "{failed:?}");
    assert_eq!(check(&bad, "MTU").0, Verdict::Ok, "no native XDP to fit");
    assert!(failed.iter().all(|check| check.fix.is_some()));
    let worst = |need| {
        judge_for(&bad, need, &HOST)
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
            driver: None,
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
        (Verdict::Fail, "ethtool -L eth0 combined 8".into())
    );
    assert_eq!(queues("i40e", 4, 4).0, Verdict::Warn);
    assert_eq!(queues("i40e", 8, 8).0, Verdict::Ok);
    assert_eq!(
        queues("ena", 8, 8),
        (Verdict::Fail, "ethtool -L eth0 combined 4".into())
    );
    assert_eq!(queues("ena", 4, 8).0, Verdict::Ok);
    assert_eq!(
        queues("mlx5_core", 1, 8),
        (Verdict::Fail, "ethtool -L eth0 combined 8".into())
    );
    assert_eq!(
        queues("ice", 1, 8).0,
        Verdict::Ok,
        "it makes send queues of its own"
    );
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
    let elsewhere = |ifindex, namespace: Option<&str>| {
        let namespace = namespace.map(str::to_owned);
        let facts = veth(Peer::Elsewhere { ifindex, namespace });
        super::peer(&facts, Need::Required).unwrap()
    };
    let named = elsewhere(Some(7), Some("b"));
    assert_eq!(named.verdict, Verdict::Info);
    assert!(
        named.found.starts_with("interface 7 of namespace b:"),
        "{named:?}"
    );
    let fix = named.fix.unwrap();
    assert!(
        fix.starts_with("nsenter --net=/run/netns/b sh, and there: "),
        "{fix}"
    );
    let unnamed = elsewhere(None, None);
    assert!(
        unnamed
            .found
            .starts_with("an interface of another namespace:"),
        "{unnamed:?}"
    );
    assert!(unnamed.fix.unwrap().starts_with("there: `ip link`"));
    let partial = with_feature(veth(peer_here()), "tx-checksum-ip-generic");
    assert_eq!(
        check(&partial, "TX checksums"),
        (Verdict::Warn, "ethtool -K eth0 tx off".into())
    );
}

/// All checks of a card with this driver, on a kernel that lists no features.
fn found(driver: &str, kernel: Kernel) -> Vec<Check> {
    let facts = InterfaceFacts {
        driver: Some(driver.into()),
        xdp_features: None,
        ..card()
    };
    let kernel = Some(kernel);
    judge_for(&facts, Need::Required, &Host { kernel, ..HOST })
}

fn named<'a>(checks: &'a [Check], name: &str) -> &'a Check {
    let mut named = checks.iter().filter(|check| check.name == name);
    named.next().unwrap_or_else(|| panic!("no {name}"))
}

#[test]
fn a_kernel_that_is_older_than_the_drivers_support_is_named() {
    let new = found("gve", Kernel(6, 4));
    assert_eq!(named(&new, "native XDP").verdict, Verdict::Ok);
    let old = found("gve", Kernel(6, 1));
    let native = named(&old, "native XDP");
    assert_eq!(native.verdict, Verdict::Fail);
    assert!(native.found.ends_with("since kernel 6.4"), "{native:?}");
}

#[test]
fn drivers_have_their_own_largest_mtu() {
    let mtu = |driver: &str, mtu| {
        let driver = Some(driver.into());
        check(
            &InterfaceFacts {
                driver,
                mtu,
                ..card()
            },
            "MTU",
        )
    };
    assert_eq!(mtu("igc", 1_500).0, Verdict::Ok);
    assert_eq!(
        mtu("igc", 1_600),
        (Verdict::Fail, "ip link set dev eth0 mtu 1500".into())
    );
    assert_eq!(mtu("mlx5_core", 3_498).0, Verdict::Ok);
    assert_eq!(mtu("nonsense", 3_498).0, Verdict::Ok);
}

#[test]
fn a_driver_that_takes_no_redirected_frames_is_no_egress() {
    let target = |driver| named(&found(driver, Kernel(6, 1)), "redirect target").clone();
    assert_eq!(target("ice").verdict, Verdict::Ok);
    assert_eq!(target("nfp").verdict, Verdict::Fail);
    assert!(
        target("macvlan")
            .found
            .contains("driver macvlan takes none")
    );
}

#[test]
fn pitfalls_are_told_on_the_kernels_that_have_them() {
    let told = |driver, kernel| {
        let all = found(driver, kernel).into_iter();
        all.filter(|check| check.name == "known pitfall")
            .collect::<Vec<_>>()
    };
    let old = told("bnxt_en", Kernel(5, 15));
    assert_eq!(old.len(), 2);
    assert!(old[0].found.contains("ethtool -L eth0 rx 0"), "{old:?}");
    assert_eq!(old[0].verdict, Verdict::Ok);
    assert_eq!(old[1].verdict, Verdict::Warn);
    assert_eq!(told("bnxt_en", Kernel(6, 1)).len(), 1);
    assert_eq!(told("ena", Kernel(5, 15)).len(), 0);
    // Zero-copy AF_XDP is not used.
    assert_eq!(told("ice", Kernel(6, 1)).len(), 1);
}

#[test]
fn tags_that_are_taken_off_are_told_of() {
    let tags = |driver: &str| {
        let facts = with_feature(card(), "rx-vlan-hw-parse");
        let driver = Some(driver.into());
        let checks = judge_for(&InterfaceFacts { driver, ..facts }, Need::Required, &HOST);
        checks.into_iter().find(|check| check.name == "VLAN tags")
    };
    let told = tags("ice").unwrap();
    assert!(told.found.contains("ethtool -K eth0 rxvlan off"));
    assert_eq!(told.verdict, Verdict::Ok);
    assert!(tags("ena").is_none());
}
