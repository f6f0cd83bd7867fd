//! Plans for made-up cards of real drivers.

use super::*;
use crate::{
    doctor::interface::Channels,
    hw,
    io::ethtool::{Coalesce, Feature, Rings},
    tune::{facts::Interrupt, state::Place},
};

fn facts(driver: &str, cpus: u32, combined: u32, combined_max: u32) -> Facts {
    Facts {
        interface: "eth0".into(),
        ifindex: 2,
        driver: driver.into(),
        profile: hw::profile(driver),
        online: (0..cpus).collect(),
        channels: Some(Channels {
            combined,
            combined_max,
            ..Channels::default()
        }),
        is_in_sysfs: true,
        ..Facts::default()
    }
}

fn options() -> Options {
    Options {
        groups: Vec::new(),
        cpus: None,
        steer: None,
        hugepages: None,
        state_folder: PathBuf::new(),
    }
}

fn state() -> State {
    State::new(Place::here(2).unwrap())
}

fn planned(group: Group, facts: &Facts, options: &Options) -> Plan {
    plan(group, facts, options, &state())
}

/// The commands of a group.
fn lines(group: Group, facts: &Facts, options: &Options) -> Vec<String> {
    let plan = planned(group, facts, options);
    let steps = plan.steps.iter();
    steps
        .map(|step| step.setting.action("eth0", &step.to).to_string())
        .collect()
}

fn notes(group: Group, facts: &Facts) -> String {
    let plan = planned(group, facts, &options());
    assert!(plan.steps.is_empty(), "{:?}", plan.steps);
    let notes = plan.notes.into_iter().map(|(_, note)| note);
    notes.collect::<Vec<_>>().join("; ")
}

#[test]
fn queues_follow_the_drivers_profile() {
    let queues =
        |driver, cpus, now, most| lines(Group::Queues, &facts(driver, cpus, now, most), &options());
    let set = |n: u32| vec![format!("ethtool -L eth0 combined {n}")];
    assert_eq!(queues("ice", 16, 4, 64), set(16));
    assert_eq!(queues("mlx5_core", 16, 32, 64), set(16));
    assert_eq!(queues("i40e", 16, 16, 64), set(0)[..0]);
    assert_eq!(queues("ena", 8, 8, 8), set(4));
    assert_eq!(queues("ena", 8, 1, 1), set(0)[..0]);
    assert_eq!(queues("gve", 2, 8, 16), set(2));
    assert_eq!(queues("virtio_net", 4, 8, 8), set(4));
    assert_eq!(queues("virtio_net", 8, 1, 8), set(8));
    assert_eq!(queues("igc", 8, 2, 4), set(4));
    assert!(notes(Group::Queues, &facts("nonsense", 8, 2, 4)).contains("nonsense"));
    let silent = Facts {
        channels: None,
        ..facts("ice", 8, 1, 8)
    };
    assert!(notes(Group::Queues, &silent).contains("no queue counts"));
}

#[test]
fn a_driver_that_loses_frames_gets_a_queue_for_each_cpu_and_others_for_those_that_serve() {
    let few = Options {
        cpus: Some(vec![2, 3]),
        ..options()
    };
    let set = |n: u32| vec![format!("ethtool -L eth0 combined {n}")];
    assert_eq!(
        lines(Group::Queues, &facts("mlx5_core", 8, 1, 64), &few),
        set(8)
    );
    assert_eq!(lines(Group::Queues, &facts("ice", 8, 1, 64), &few), set(2));
}

#[test]
fn a_veth_gets_receive_queues_and_never_fewer() {
    let veth = |rx, rx_max| Facts {
        channels: Some(Channels {
            rx,
            tx: 1,
            rx_max,
            tx_max: 8,
            ..Channels::default()
        }),
        ..facts("veth", 4, 0, 0)
    };
    let lines = |rx, rx_max| lines(Group::Queues, &veth(rx, rx_max), &options());
    assert_eq!(lines(1, 8), ["ethtool -L eth0 rx 4"]);
    assert_eq!(lines(1, 2), ["ethtool -L eth0 rx 2"]);
    assert!(lines(8, 8).is_empty());
}

#[test]
fn rings_only_grow() {
    let rings = |rx, tx, rx_max, tx_max| {
        let rings = Some(Rings {
            rx,
            tx,
            rx_max,
            tx_max,
        });
        let facts = Facts {
            rings,
            ..facts("ice", 8, 8, 8)
        };
        lines(Group::Rings, &facts, &options())
    };
    assert_eq!(
        rings(512, 256, 8_192, 1_024),
        ["ethtool -G eth0 rx 2048", "ethtool -G eth0 tx 1024"]
    );
    assert!(rings(4_096, 2_048, 8_192, 8_192).is_empty());
    assert!(notes(Group::Rings, &facts("veth", 1, 0, 0)).contains("no ring sizes"));
}

#[test]
fn flows_spread_over_all_queues_by_their_ports() {
    let rss = |table: &[u32], fields: &str| Facts {
        table: Some(table.to_vec()),
        hashes: vec![(Flow::Udp4, fields.into())],
        ..facts("ice", 8, 4, 8)
    };
    assert_eq!(
        lines(Group::Rss, &rss(&[0, 1, 0, 1], "sd"), &options()),
        [
            "ethtool -X eth0 equal 4",
            "ethtool -N eth0 rx-flow-hash udp4 sdfn"
        ]
    );
    assert_eq!(notes(Group::Rss, &rss(&[0, 1, 2, 3], "sdfn")), "");
    let by_hand = notes(Group::Rss, &rss(&[0, 0, 1, 3], "sdfn"));
    assert!(by_hand.contains("weighted by hand"), "{by_hand}");
}

#[test]
fn the_mesh_is_steered_once() {
    let to_3 = Options {
        steer: Some(3),
        ..options()
    };
    let facts = facts("ice", 8, 8, 8);
    assert_eq!(
        lines(Group::Steer, &facts, &to_3),
        [
            "ethtool -N eth0 flow-type udp4 dst-port 4783 action 3",
            "ethtool -N eth0 flow-type udp6 dst-port 4783 action 3"
        ]
    );
    let mut state = state();
    for flow in [Flow::Udp4, Flow::Udp6] {
        state.note(&Setting::Steer(flow), "none", "queue 3");
    }
    assert!(plan(Group::Steer, &facts, &to_3, &state).steps.is_empty());
    let to_4 = Options {
        steer: Some(4),
        ..options()
    };
    let again = plan(Group::Steer, &facts, &to_4, &state);
    assert!(again.steps.is_empty() && again.notes[0].1.contains("--undo first"));
    // A card that was reset has no rules any more, whatever the state says.
    for flow in [Flow::Udp4, Flow::Udp6] {
        state.came_from(&Setting::Steer(flow), "rule 7".into());
    }
    let of = |rules| {
        let facts = Facts {
            rules,
            ..facts.clone()
        };
        plan(Group::Steer, &facts, &to_3, &state).steps.len()
    };
    assert_eq!((of(None), of(Some(vec![7])), of(Some(vec![]))), (0, 0, 2));
    assert_eq!(notes(Group::Steer, &facts), "");
}

#[test]
fn offloads_that_hide_packets_go_off() {
    let with = |driver, features: &[(&str, bool, bool)]| Facts {
        features: features
            .iter()
            .map(|(name, is_active, is_changeable)| Feature {
                name: (*name).into(),
                is_active: *is_active,
                is_changeable: *is_changeable,
            })
            .collect(),
        ..facts(driver, 8, 8, 8)
    };
    let features = [
        ("rx-lro", true, true),
        ("rx-gro-hw", false, true),
        ("rx-vlan-hw-parse", true, true),
        ("tx-checksum-ip-generic", true, true),
        ("rx-gro", false, true),
    ];
    assert_eq!(
        lines(Group::Offloads, &with("mlx5_core", &features), &options()),
        [
            "ethtool -K eth0 rx-lro off",
            "ethtool -K eth0 rx-vlan-hw-parse off"
        ]
    );
    assert_eq!(
        lines(Group::Offloads, &with("veth", &features[2..]), &options()),
        [
            "ethtool -K eth0 rx-vlan-hw-parse off",
            "ethtool -K eth0 tx-checksum-ip-generic off",
            "ethtool -K eth0 rx-gro on"
        ]
    );
    let fixed = with("virtio_net", &[("rx-gro-hw", true, false)]);
    assert_eq!(notes(Group::Offloads, &fixed), "rx-gro-hw is on and fixed");
}

#[test]
fn interrupts_are_bounded_and_each_queue_has_its_core() {
    let coalesce = |rx_usecs, is_adaptive_rx| {
        let coalesce = Some(Coalesce {
            rx_usecs,
            is_adaptive_rx,
        });
        let facts = Facts {
            coalesce,
            ..facts("ice", 8, 8, 8)
        };
        lines(Group::Coalesce, &facts, &options())
    };
    assert_eq!(
        coalesce(50, true),
        [
            "ethtool -C eth0 adaptive-rx off",
            "ethtool -C eth0 rx-usecs 20"
        ]
    );
    assert!(coalesce(8, false).is_empty());

    let interrupts = [(30, 0), (31, 1), (32, 2)].map(|(number, queue)| Interrupt { number, queue });
    let files = interrupts.map(|interrupt| (interrupt.file(), "0-7".to_owned()));
    let facts = Facts {
        interrupts: interrupts.to_vec(),
        files: files.into(),
        ..facts("ice", 8, 3, 8)
    };
    let two = Options {
        cpus: Some(vec![2, 5]),
        ..options()
    };
    assert_eq!(
        lines(Group::Irq, &facts, &two),
        [
            "echo 2 > /proc/irq/30/smp_affinity_list",
            "echo 5 > /proc/irq/31/smp_affinity_list",
            "echo 2 > /proc/irq/32/smp_affinity_list"
        ]
    );
    let balanced = Facts {
        has_irqbalance: true,
        ..facts.clone()
    };
    let plan = planned(Group::Irq, &balanced, &two);
    assert!(
        plan.notes[0]
            .1
            .contains("systemctl disable --now irqbalance")
    );
    let elsewhere = Facts {
        is_in_sysfs: false,
        ..facts
    };
    assert!(notes(Group::Irq, &elsewhere).contains("ip netns exec"));
}

#[test]
fn the_hosts_files_are_set_where_they_are() {
    let clock = governor(1);
    let facts = Facts {
        files: [
            (clock.clone(), "powersave".to_owned()),
            (HUGEPAGES.into(), "0".to_owned()),
            (BUSY_POLL[0].into(), "50".to_owned()),
            (BUSY_POLL[1].into(), "0".to_owned()),
        ]
        .into(),
        ..facts("ice", 2, 2, 2)
    };
    let asked = Options {
        hugepages: Some(512),
        cpus: Some(vec![1]),
        ..options()
    };
    assert_eq!(
        lines(Group::Governor, &facts, &asked),
        [format!("echo performance > {}", clock.display())]
    );
    assert_eq!(
        lines(Group::Hugepages, &facts, &asked),
        [format!("echo 512 > {HUGEPAGES}")]
    );
    assert!(lines(Group::Hugepages, &facts, &options()).is_empty());
    assert_eq!(
        lines(Group::BusyPoll, &facts, &options()),
        ["echo 50 > /proc/sys/net/core/busy_read"]
    );
    let isolation = planned(Group::Isolation, &facts, &asked);
    assert!(isolation.steps.is_empty());
    assert!(
        isolation.notes[2]
            .1
            .contains("isolcpus=managed_irq,domain,1 nohz_full=1 rcu_nocbs=1")
    );
    assert!(notes(Group::Isolation, &facts).contains("--cpus"));
    // Half of it is not it.
    let half = Facts {
        isolated: vec![1],
        ..facts.clone()
    };
    assert_eq!(
        planned(Group::Isolation, &half, &asked).notes,
        isolation.notes
    );
    let whole = Facts {
        tickless: vec![1],
        ..half
    };
    let told = planned(Group::Isolation, &whole, &asked);
    assert!(told.steps.is_empty() && told.notes[2].1.contains("the running kernel keeps"));
}

#[test]
fn cores_that_serve_do_no_other_work_of_the_kernels() {
    let with = |work: &str, interrupts: &str| Facts {
        files: [(WORK, work), (NEW_INTERRUPTS, interrupts)]
            .map(|(path, mask)| (path.into(), mask.to_owned()))
            .into(),
        ..facts("ice", 40, 2, 2)
    };
    let asked = |cpus: &[u32]| Options {
        cpus: Some(cpus.to_vec()),
        ..options()
    };
    let all = "ff,ffffffff";
    assert_eq!(
        lines(
            Group::Isolation,
            &with(all, all),
            &asked(&[0, 5, 31, 32, 39])
        ),
        [
            format!("echo 7e,7fffffde > {WORK}"),
            format!("echo 7e,7fffffde > {NEW_INTERRUPTS}")
        ]
    );
    // What is kept from them already stays as it is.
    assert_eq!(
        lines(Group::Isolation, &with("3", "1"), &asked(&[1])),
        [format!("echo 1 > {WORK}")]
    );
    // Somewhere it has to go.
    let nowhere = planned(Group::Isolation, &with("2", "torn"), &asked(&[1]));
    assert!(nowhere.steps.is_empty() && nowhere.notes.len() == 3);
    assert!(lines(Group::Isolation, &with(all, all), &options()).is_empty());
}
