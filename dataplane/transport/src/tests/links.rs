//! Links that die and live again, as both ends see them.

use super::sim::{MS, SECOND, Sim, Weather, config, source};
use crate::{
    Answers, Event, Heard, LinkState, LinkStatus, Node, NodeLimits,
    frame::LinkFrame,
    limits::{
        LINK_GAP_WINDOW_NS, LINK_PATIENCE, LINK_PATIENCE_NS_MAX, LINK_POSTPONED_MAX, LINK_SLACK_NS,
    },
    link::{Link, Terms},
};
use std::collections::BTreeSet;
use virga_ebpf::header::NodeId;

/// What the default detects a dead link in where NIC paths answer.
const DETECT: u64 = 40 * MS;
const LAN: Weather = Weather {
    latency_ns: MS / 10,
    ..Weather::CALM
};

fn watch(sim: &mut Sim, at: usize, other: usize) {
    let (now_ns, others) = (sim.now_ns, BTreeSet::from([sim.ids[other]]));
    sim.nodes[at].watch_links(now_ns, &others);
}

/// Two neighbours that watch the link between them, and have found it up.
fn pair(seed: u64, weather: Weather) -> Sim {
    let mut sim = Sim::new(seed, 2, &NodeLimits::default(), weather);
    sim.echoes = Some(Answers::Nic);
    watch(&mut sim, 0, 1);
    watch(&mut sim, 1, 0);
    sim.connect(0, 1);
    assert!(sim.run_until(SECOND, |sim| both(sim, LinkState::Up)));
    sim.run(SECOND);
    tell(&mut sim);
    sim
}

fn status(sim: &Sim, at: usize) -> LinkStatus {
    sim.nodes[at].links().next().unwrap()
}

fn state(sim: &Sim, at: usize) -> LinkState {
    status(sim, at).state
}

fn both(sim: &Sim, wanted: LinkState) -> bool {
    [0, 1].iter().all(|&at| state(sim, at) == wanted)
}

/// What both owners were told of their links since the last time.
fn tell(sim: &mut Sim) -> [Vec<LinkState>; 2] {
    [0, 1].map(|at: usize| {
        let link = |event| match event {
            Event::Link { state, .. } => Some(state),
            _ => None,
        };
        sim.told[at].drain(..).filter_map(link).collect()
    })
}

#[test]
fn a_link_that_falls_silent_is_found_dead_within_the_time_and_lives_again() {
    let mut earliest_ns = u64::MAX;
    let mut latest_ns = 0;
    for seed in 0..50 {
        let mut sim = pair(seed, LAN);
        sim.run(seed * MS / 3);
        let cut_ns = sim.now_ns;
        sim.network.is_cut = true;
        assert!(sim.run_until(SECOND, |sim| both(sim, LinkState::Silent)));
        for at in [0, 1] {
            let status = status(&sim, at);
            let took_ns = status.since_ns - cut_ns;
            earliest_ns = earliest_ns.min(took_ns);
            latest_ns = latest_ns.max(took_ns);
            assert_eq!(
                (status.detections, status.gap_ns),
                (1, DETECT),
                "seed {seed}"
            );
        }
        sim.run(2 * SECOND);
        assert_eq!(tell(&mut sim), [[LinkState::Silent], [LinkState::Silent]]);
        sim.network.is_cut = false;
        assert!(
            sim.run_until(200 * MS, |sim| both(sim, LinkState::Up)),
            "seed {seed}"
        );
    }
    println!(
        "found dead after {} to {} us",
        earliest_ns / 1_000,
        latest_ns / 1_000
    );
    assert!(earliest_ns >= DETECT - 10 * MS - LAN.latency_ns);
    assert!(latest_ns <= DETECT + LAN.latency_ns);
}

#[test]
fn a_link_that_carries_one_direction_alone_is_dead_for_both_ends() {
    let mut sim = pair(1, LAN);
    sim.network.parted.insert((0, 1));
    let cut_ns = sim.now_ns;
    assert!(sim.run_until(SECOND, |sim| state(sim, 0) == LinkState::OneWay));
    assert_eq!(state(&sim, 1), LinkState::Silent);
    assert!(sim.now_ns - cut_ns <= DETECT + 2 * LAN.latency_ns);
    sim.run(10 * SECOND);
    assert_eq!(tell(&mut sim), [[LinkState::OneWay], [LinkState::Silent]]);
    sim.network.parted.clear();
    assert!(sim.run_until(200 * MS, |sim| both(sim, LinkState::Up)));
}

#[test]
fn a_link_that_loses_every_fourth_packet_is_not_dead() {
    let weather = Weather {
        loss: 25,
        jitter_ns: MS,
        ..LAN
    };
    for seed in 0..10 {
        let mut sim = Sim::new(seed, 2, &NodeLimits::default(), weather);
        sim.echoes = Some(Answers::Nic);
        watch(&mut sim, 0, 1);
        watch(&mut sim, 1, 0);
        sim.connect(0, 1);
        assert!(sim.run_until(10 * SECOND, |sim| both(sim, LinkState::Up)));
        sim.run(30 * SECOND);
        let [here, there] = [0, 1].map(|at| status(&sim, at));
        assert_eq!((here.detections, there.detections), (0, 0), "seed {seed}");
        assert!(here.missed * 5 > here.received, "{here:?}");
    }
}

#[test]
fn who_stops_or_starts_anew_leaves_the_link_unjudged() {
    let mut sim = pair(2, LAN);
    let (now_ns, id) = (sim.now_ns, sim.ids[0]);
    sim.nodes[1].close(now_ns, id);
    sim.run(SECOND);
    // The other end begins another session, and that finds out anew.
    let found = [LinkState::Unknown, LinkState::Up];
    assert_eq!(tell(&mut sim), [found, found]);

    let mut sim = pair(3, LAN);
    let mut again = config(1, 2, 77, &NodeLimits::default());
    again.started_unix_ns = sim.now_ns + 77;
    sim.nodes[1] = Node::new(again, sim.now_ns).unwrap();
    watch(&mut sim, 1, 0);
    assert!(sim.run_until(5 * SECOND, |sim| {
        sim.is_connected(1, 0) && both(sim, LinkState::Up)
    }));
    let [here, there] = tell(&mut sim);
    assert_eq!(here, [LinkState::Unknown, LinkState::Up]);
    assert_eq!(there, [LinkState::Up]);
}

#[test]
fn a_neighbour_that_does_not_speak_the_keepalive_is_not_judged() {
    let mut sim = Sim::new(4, 2, &NodeLimits::default(), LAN);
    watch(&mut sim, 0, 1);
    sim.connect(0, 1);
    sim.run(10 * SECOND);
    let before = sim.nodes[0].counters().sent_datagrams;
    sim.run(10 * SECOND);
    let sent = sim.nodes[0].counters().sent_datagrams - before;
    assert!(sent <= 20, "{sent} packets in ten seconds");
    sim.network.is_cut = true;
    sim.run(10 * SECOND);
    assert_eq!(state(&sim, 0), LinkState::Unknown);
    assert!(!status(&sim, 0).is_spoken);
}

#[test]
fn a_neighbour_that_speaks_no_more_does_not_stay_dead() {
    let mut sim = pair(5, LAN);
    sim.network.is_cut = true;
    sim.run(SECOND);
    let mut again = config(1, 2, 78, &NodeLimits::default());
    again.started_unix_ns = sim.now_ns + 78;
    sim.nodes[1] = Node::new(again, sim.now_ns).unwrap();
    sim.network.is_cut = false;
    sim.run(10 * SECOND);
    assert!(sim.is_connected(0, 1));
    assert_eq!(tell(&mut sim)[0], [LinkState::Silent, LinkState::Unknown]);
}

#[test]
fn neither_copies_nor_what_others_passed_on_keep_a_link_alive() {
    // Whoever passes a packet on may say that nobody did.
    for hop_count in [1, 0] {
        let mut sim = pair(6, LAN);
        sim.keep_wire = true;
        sim.run(100 * MS);
        sim.network.parted.insert((1, 0));
        let sent = |w: &(usize, Vec<u8>)| w.0 == 1;
        let recorded: Vec<Vec<u8>> = sim.wire.drain(..).filter(sent).map(|w| w.1).collect();
        let cut_ns = sim.now_ns;
        let mut passed_on = 0;
        while state(&sim, 0) == LinkState::Up {
            sim.run(2 * MS);
            assert!(sim.now_ns - cut_ns <= DETECT + 2 * MS);
            let now_ns = sim.now_ns;
            for bytes in &recorded {
                let _replayed = sim.nodes[0].handle(now_ns, source(1), &mut bytes.clone());
            }
            // Another node carries what the link does not.
            for (_, mut bytes) in sim.wire.drain(..).filter(sent) {
                bytes[virga_ebpf::header::offset::HOP_COUNT] = hop_count;
                let taken = sim.nodes[0].handle(now_ns, source(2), &mut bytes);
                passed_on += u32::from(taken == crate::Handled::Accepted);
            }
        }
        assert!(passed_on > 3, "{passed_on}");
    }
}

#[test]
fn a_dead_link_that_is_no_longer_watched_is_not_left_dead() {
    let mut sim = pair(8, LAN);
    sim.network.is_cut = true;
    assert!(sim.run_until(SECOND, |sim| both(sim, LinkState::Silent)));
    tell(&mut sim);
    let now_ns = sim.now_ns;
    sim.nodes[0].watch_links(now_ns, &BTreeSet::new());
    sim.listen();
    assert_eq!(tell(&mut sim)[0], [LinkState::Unknown]);
}

#[test]
fn after_each_fall_a_link_has_more_to_show() {
    let mut sim = pair(7, LAN);
    let mut waits = Vec::new();
    for _ in 0..6 {
        sim.network.is_cut = true;
        assert!(sim.run_until(SECOND, |sim| both(sim, LinkState::Silent)));
        sim.network.is_cut = false;
        let from_ns = sim.now_ns;
        assert!(sim.run_until(2 * SECOND, |sim| both(sim, LinkState::Up)));
        waits.push((sim.now_ns - from_ns) / MS);
    }
    assert!(waits[4] > 4 * waits[0] && waits[5] < 1_000, "{waits:?}");
    sim.run(11 * SECOND);
    sim.network.is_cut = true;
    sim.run(SECOND);
    sim.network.is_cut = false;
    assert!(sim.run_until(100 * MS, |sim| both(sim, LinkState::Up)));
}

#[test]
fn without_an_interval_nothing_is_watched() {
    let limits = NodeLimits {
        link_interval_ns: 0,
        ..NodeLimits::default()
    };
    let mut sim = Sim::new(8, 2, &limits, LAN);
    watch(&mut sim, 0, 1);
    assert_eq!(sim.nodes[0].links().count(), 0);
}

/// An echo that came back through NIC paths alone.
fn echoed(nic_ns: u64) -> Heard {
    Heard {
        nic_ns,
        worker_ns: 0,
    }
}

/// A link by itself that is up, its neighbour last heard at 0.
fn up() -> Link {
    let mut link = up_by_workers();
    link.on_echo(echoed(1));
    assert_eq!(link.on_frame(0, said(5)), None);
    link
}

/// The same where no NIC path answers.
fn up_by_workers() -> Link {
    let terms = Terms {
        interval_ns: 10 * MS,
        misses: 4,
    };
    let mut link = Link::new(terms, 0);
    assert_eq!(link.begin(0), None);
    for number in 1..=4 {
        let _up = link.on_frame(0, said(number));
    }
    assert_eq!(link.state(), LinkState::Up);
    link
}

fn said(number: u64) -> LinkFrame {
    LinkFrame {
        hears: true,
        asks: false,
        interval_us: 10_000,
        number,
    }
}

/// Runs a link's timers, each `late_ns` after it was due; gives when it fell.
fn fell_after(link: &mut Link, from_ns: u64, late_ns: u64) -> u64 {
    let mut now_ns = from_ns;
    loop {
        let due_ns = link.timeout().unwrap().max(now_ns);
        now_ns = due_ns + late_ns;
        if link.on_timeout(now_ns, due_ns).is_some() {
            assert_eq!(link.status(NodeId(1)).state, LinkState::Silent);
            return now_ns;
        }
        let _sent = link.take_frame(now_ns, |_| 0);
        assert!(now_ns < 10 * SECOND);
    }
}

#[test]
fn a_worker_that_did_not_run_blames_nobody() {
    let mut link = up();
    let due_ns = link.timeout().unwrap();
    let now_ns = due_ns + 500 * MS;
    assert_eq!(link.on_timeout(now_ns, due_ns), None);
    // What had come meanwhile is read, and the link stays.
    assert_eq!(link.on_frame(now_ns + MS, said(6)), None);
    link.on_echo(echoed(now_ns + MS));
    assert_eq!(link.state(), LinkState::Up);
    // Where nothing had, the time in which it ran counts.
    let due_ns = link.timeout().unwrap();
    let now_ns = due_ns + 500 * MS;
    assert_eq!(link.on_timeout(now_ns, due_ns), None);
    let fell_ns = fell_after(&mut link, now_ns, 0) - now_ns;
    assert!((DETECT / 2..=DETECT).contains(&fell_ns), "{fell_ns}");
    // And one that is always late still finds out.
    let mut link = up();
    let late_ns = LINK_SLACK_NS + MS;
    let fell_ns = fell_after(&mut link, 0, late_ns);
    let most_ns = DETECT * 2 + u64::from(LINK_POSTPONED_MAX) * (3 * MS + late_ns);
    assert!((DETECT..most_ns).contains(&fell_ns), "{fell_ns}");
}

#[test]
fn frames_that_were_overtaken_have_come_and_what_was_before_the_first_is_not_known() {
    let mut link = up();
    let counts = |link: &Link| {
        let status = link.status(NodeId(1));
        (status.received, status.missed)
    };
    let before = counts(&link);
    assert_eq!(link.on_frame(MS, said(9)), None);
    assert_eq!(counts(&link), (before.0 + 1, before.1 + 3));
    assert_eq!(link.on_frame(2 * MS, said(7)), None);
    assert_eq!(link.on_frame(2 * MS, said(6)), None);
    assert_eq!(counts(&link), (before.0 + 3, before.1 + 1));
    // In the next session.
    let _forgotten = link.begin(3 * MS);
    assert_eq!(link.on_frame(3 * MS, said(4)), None);
    assert_eq!(link.on_frame(3 * MS, said(3)), None);
    assert_eq!(counts(&link), (before.0 + 4, before.1 + 1));
}

#[test]
fn a_link_that_is_slow_again_and_again_is_given_more_time_for_a_while_and_one_that_was_cut_is_not()
{
    let mut link = up();
    let detect_ns = |link: &Link| link.status(NodeId(1)).detect_ns;
    let (mut now_ns, mut number) = (0, 5);
    let mut go_on = |link: &mut Link, from_ns: u64, until_ns: u64| {
        let mut now_ns = from_ns;
        while now_ns < until_ns || link.state() != LinkState::Up {
            number += 1;
            link.on_echo(echoed(now_ns));
            let _up = link.on_frame(now_ns, said(number));
            now_ns += 10 * MS;
        }
        now_ns - 10 * MS
    };
    // Cut for a while, and then slow: once that is an accident.
    for (silent_ns, allowed_ns) in [(3 * SECOND, DETECT), (60 * MS, DETECT), (70 * MS, 140 * MS)] {
        assert_eq!(fell_after(&mut link, now_ns, 0), now_ns + DETECT);
        now_ns = go_on(&mut link, now_ns + silent_ns, 0);
        assert_eq!(detect_ns(&link), allowed_ns);
    }
    // As slow again it stays, and is found dead a little later where it is.
    let late_ns = now_ns + 90 * MS;
    let mut due_ns = now_ns;
    while due_ns < late_ns {
        assert_eq!(link.on_timeout(due_ns, due_ns), None);
        let _sent = link.take_frame(due_ns, |_| 0);
        due_ns = link.timeout().unwrap().max(due_ns);
    }
    now_ns = go_on(&mut link, late_ns, late_ns + 1);
    assert_eq!(detect_ns(&link), 180 * MS);
    let fell_ns = fell_after(&mut link, now_ns, 0);
    assert_eq!(fell_ns, now_ns + 180 * MS);
    now_ns = go_on(&mut link, now_ns + 3 * SECOND, 0);
    // And once it is as it was, so is the time.
    let _later = go_on(&mut link, now_ns, now_ns + 2 * LINK_GAP_WINDOW_NS);
    assert_eq!(detect_ns(&link), DETECT);
}

#[test]
fn what_a_worker_slept_through_is_no_lapse_of_its_neighbour() {
    let mut link = up();
    let mut now_ns = 0;
    for number in 6..10 {
        let due_ns = link.timeout().unwrap();
        now_ns += 60 * MS;
        // What came meanwhile is read before the timer is looked at.
        link.on_echo(echoed(now_ns));
        assert_eq!(link.on_frame(now_ns, said(number)), None);
        assert_eq!(link.on_timeout(now_ns, due_ns), None);
        let _sent = link.take_frame(now_ns, |_| 0);
        assert_eq!(link.status(NodeId(1)).detect_ns, DETECT, "{number}");
    }
    let fell_ns = fell_after(&mut link, now_ns, 0);
    assert_eq!(fell_ns, now_ns + DETECT);
}

#[test]
fn a_link_that_was_cut_for_moments_is_soon_found_dead_once_it_is_cut_for_long() {
    let mut link = up();
    let (mut now_ns, mut number) = (0, 5);
    for _ in 0..2 {
        now_ns = fell_after(&mut link, now_ns, 0) + 500 * MS;
        while link.state() != LinkState::Up {
            number += 1;
            now_ns += 10 * MS;
            link.on_echo(echoed(now_ns));
            let _up = link.on_frame(now_ns, said(number));
        }
    }
    let allowed_ns = LINK_PATIENCE * DETECT;
    assert_eq!(link.status(NodeId(1)).detect_ns, allowed_ns);
    assert_eq!(fell_after(&mut link, now_ns, 0), now_ns + allowed_ns);
}

#[test]
fn a_neighbour_that_is_overdue_is_asked_more_often_and_answers_at_once() {
    let mut link = up();
    let mut asked = 0;
    let mut now_ns = 0;
    while link.state() == LinkState::Up {
        now_ns = link.timeout().unwrap().max(now_ns);
        let _fell = link.on_timeout(now_ns, now_ns);
        asked += u32::from(
            link.take_frame(now_ns, |_| 0)
                .is_some_and(|frame| frame.asks),
        );
    }
    assert_eq!(now_ns, DETECT);
    assert!(asked >= 8, "{asked}");
    let mut link = up();
    let _sent = link.take_frame(0, |_| 0);
    assert!(!link.is_frame_due(2 * MS));
    let asking = LinkFrame {
        asks: true,
        ..said(6)
    };
    assert_eq!(link.on_frame(2 * MS, asking), None);
    assert!(link.is_frame_due(2 * MS));
    // The slower end's interval goes for both.
    let slow = LinkFrame {
        interval_us: 100_000,
        ..said(7)
    };
    assert_eq!(link.on_frame(3 * MS, slow), None);
    assert_eq!(link.status(NodeId(1)).detect_ns, 400 * MS);
}

#[test]
fn a_neighbour_whose_nic_path_answers_may_lack_a_processor() {
    let mut link = up();
    let mut echo_ns = 0;
    while echo_ns < 5 * SECOND {
        let due_ns = link.timeout().unwrap();
        link.on_echo(echoed(echo_ns));
        let now_ns = link.timeout().unwrap().max(due_ns);
        assert_eq!(link.on_timeout(now_ns, now_ns), None);
        if link.take_frame(now_ns, |_| 0).is_some() {
            assert!(link.take_echo().is_some());
            echo_ns = now_ns + MS / 10;
        }
    }
    assert_eq!(link.status(NodeId(1)).answers, Answers::Nic);
    let told = LinkFrame {
        hears: false,
        ..said(6)
    };
    assert_eq!(link.on_frame(echo_ns, told), None, "packets pass both ways");
    link.on_echo(echoed(echo_ns));
    let fell_ns = fell_after(&mut link, echo_ns, 0) - echo_ns;
    assert!((DETECT..=DETECT + MS).contains(&fell_ns), "{fell_ns}");
}

#[test]
fn where_workers_answer_silence_must_last_longer() {
    let patient_ns = DETECT * LINK_PATIENCE;
    let mut link = up_by_workers();
    assert_eq!(link.status(NodeId(1)).answers, Answers::Worker);
    assert_eq!(fell_after(&mut link, 0, 0), patient_ns);
    // Echoes that a worker sends back are a sign of life as any other.
    let mut link = up_by_workers();
    link.on_echo(Heard {
        nic_ns: 0,
        worker_ns: 10 * MS,
    });
    assert_eq!(fell_after(&mut link, 10 * MS, 0), 10 * MS + patient_ns);
    // Who was silent for long before may be so again, up to a bound.
    for (gap_ns, detect_ns) in [
        (100 * MS, patient_ns),
        (200 * MS, 400 * MS),
        (5 * SECOND, LINK_PATIENCE_NS_MAX),
    ] {
        let mut link = up_by_workers();
        assert_eq!(link.on_frame(gap_ns, said(5)), None);
        assert_eq!(link.status(NodeId(1)).detect_ns, detect_ns);
        // For a while.
        for number in 6..10_000 {
            let now_ns = gap_ns + number * 10 * MS;
            assert_eq!(link.on_frame(now_ns, said(number)), None);
        }
        assert_eq!(link.status(NodeId(1)).detect_ns, patient_ns);
    }
}

#[test]
fn an_echo_is_sent_back_only_between_who_watches_and_comes_back_to_its_place() {
    let mut sim = pair(9, LAN);
    assert_eq!(status(&sim, 0).answers, Answers::Nic);
    // What has workers in between is as patient as they are.
    sim.echoes = Some(Answers::Worker);
    sim.run(SECOND);
    assert_eq!(status(&sim, 0).answers, Answers::Worker);
    assert_eq!(status(&sim, 0).detect_ns, DETECT * LINK_PATIENCE);
    sim.network.is_cut = true;
    let cut_ns = sim.now_ns;
    assert!(sim.run_until(SECOND, |sim| both(sim, LinkState::Silent)));
    assert!(sim.now_ns - cut_ns >= DETECT * LINK_PATIENCE - 13 * MS);
}
