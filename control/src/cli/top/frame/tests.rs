//! Frames of samples that are made up: what moves between two looks, and how it is written.

use super::{super::view::Silent, *};
use crate::{
    api::status::{NodeStatus, PathStatus, Status},
    cli::top::text,
    routes::{LinkStatus, RouteStatus, RoutesStatus},
};
use std::time::{Duration, Instant};

fn session(packets: u64) -> SessionStatus {
    SessionStatus {
        peer: "00000000000000aa".into(),
        name: "b".into(),
        session: "1".into(),
        state: "established".into(),
        sent_packets: packets,
        sent_bytes: 1_000 * packets,
        rtt_us: Some(120),
        path: PathStatus::default(),
        ..SessionStatus::default()
    }
}

fn route(name: &str, destination: &str, by: &str) -> RouteStatus {
    RouteStatus {
        destination: destination.into(),
        name: name.into(),
        primary: Some("b".into()),
        backup: None,
        by: by.into(),
        follows: None,
        metric: (by == "learned").then_some(777),
        seqno: None,
        age_s: None,
    }
}

fn sample(at: Instant, packets: u64, cpu_ns: u64, dropped: u64) -> Sample {
    let status = Status {
        node: NodeStatus {
            name: "a".into(),
            uptime_s: 5,
            ..NodeStatus::default()
        },
        sessions: vec![session(packets)],
        workers: vec![OneWorker {
            core: Some(3),
            cpu_ns,
            ..OneWorker::default()
        }],
        channel_reasons: [("no_subscriber".to_owned(), dropped)].into(),
        ..Status::default()
    };
    let routes = RoutesStatus {
        links: vec![LinkStatus {
            peer: "b".into(),
            cost: 300,
            rtt_us: Some(120),
            loss_ppm: Some(9),
            loss_back_ppm: None,
        }],
        routes: vec![
            route("b", "00000000000000aa", "adjacent"),
            route("c", "00000000000000cc", "learned"),
        ],
        ..RoutesStatus::default()
    };
    Sample {
        at,
        status,
        routes,
        cores: Vec::new(),
    }
}

#[test]
fn what_moves_between_two_looks_is_shown_as_so_much_a_second() {
    let at = Instant::now();
    let before = sample(at, 1_000, 0, 7);
    let now = sample(at + Duration::from_secs(2), 5_000, 500_000_000, 10);
    let text = text(&before, &now);
    let line = |begins: &str| {
        let mut lines = text.lines().filter(|line| line.starts_with(begins));
        let line = lines.next().unwrap_or_else(|| panic!("{begins}: {text}"));
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert!(line("a ").contains("1 of 2 peers live"), "{text}");
    // 4,000 packets of 1,000 bytes in two seconds.
    let neighbour = "b established b - adjacent 300 120 9 2.0k 16.0M 0 0";
    assert_eq!(line("b "), neighbour);
    assert_eq!(line("c "), "c - b - learned 777 - - - - - -");
    assert_eq!(line("channels"), "channels no_subscriber 10 3");
    assert_eq!(line("0 "), "0 3 #####............... 25 % 0 0 0 0");
}

#[test]
fn a_daemon_that_began_anew_shows_nothing_absurd_and_a_small_terminal_a_part() {
    let at = Instant::now();
    let (before, now) = (sample(at, 9_000, 9_000_000_000, 10), sample(at, 5, 1, 0));
    let text = text(&before, &now);
    assert!(text.contains(" 0 % "), "{text}");
    for (width, height) in [(0, 0), (1, 1), (30, 4), (200, 100)] {
        let area = Rect::new(0, 0, width, height);
        for is_live in [false, true] {
            let view = View {
                is_live,
                ..View::default()
            };
            draw(&before, &now, &view, area, &mut Buffer::empty(area));
        }
    }
}

/// What stands on a screen of so many lines.
fn screen(view: &View, peers: u16, lines: u16) -> Vec<String> {
    let at = Instant::now();
    let many = |packets: u64| {
        let mut sample = sample(at, packets, 0, 0);
        sample.routes.routes = (0..peers)
            .map(|n| route(&format!("n{n}"), &format!("{n:016x}"), "learned"))
            .collect();
        sample.status.sessions = (0..peers)
            .map(|n| SessionStatus {
                peer: format!("{n:016x}"),
                rtt_us: Some(u64::from(n % 7)),
                ..session(packets * u64::from(n))
            })
            .collect();
        sample
    };
    let area = Rect::new(0, 0, 120, lines);
    let mut buffer = Buffer::empty(area);
    let (before, mut now) = (many(1), many(2));
    now.at += Duration::from_secs(1);
    draw(&before, &now, view, area, &mut buffer);
    let line = |y| (0..area.width).map(|x| buffer[(x, y)].symbol()).collect();
    (0..lines).map(line).collect()
}

#[test]
fn of_many_peers_a_part_is_shown_and_scrolled_through_and_the_rest_keeps_its_place() {
    let mut view = View {
        is_live: true,
        ..View::default()
    };
    let begins = |screen: &[String]| {
        let head = screen
            .iter()
            .position(|line| line.starts_with("peer "))
            .unwrap();
        screen[head + 1]
            .split_whitespace()
            .next()
            .unwrap()
            .to_owned()
    };
    let top = screen(&view, 300, 40);
    let title = top.iter().find(|line| line.starts_with("Peers")).unwrap();
    assert!(title.contains("of 300)"), "{title}");
    assert_eq!(begins(&top), "n0");
    for block in ["Drops by reason", "Workers", "q end"] {
        assert!(
            top.iter().any(|line| line.starts_with(block)),
            "{block}: {top:#?}"
        );
    }
    view.past.set(5);
    assert_eq!(begins(&screen(&view, 300, 40)), "n5");
    // However far: the last page.
    view.past.set(usize::MAX);
    let end = screen(&view, 300, 40);
    assert!(end.iter().any(|line| line.starts_with("n299 ")), "{end:#?}");
    // And from there one up is one up.
    let last = begins(&end);
    view.past.set(view.past.get() - 1);
    assert_ne!(begins(&screen(&view, 300, 40)), last);
    view.past.set(0);
    view.order = Order::Sent;
    assert_eq!(begins(&screen(&view, 300, 40)), "n299");
    view.order = Order::RoundTrip;
    assert_eq!(begins(&screen(&view, 300, 40)), "n6");
    assert_eq!(begins(&screen(&view, 3, 40)), "n2");
}

#[test]
fn a_node_that_gives_no_answer_is_said_to_and_times_are_those_of_people() {
    let mut view = View {
        silent: Some(Silent {
            seconds: 7,
            why: Some("cannot reach the node".into()),
        }),
        ..View::default()
    };
    let said = "no answer for 7 s, asking on: cannot reach the node";
    assert!(screen(&view, 1, 30)[1].starts_with(said));
    (view.silent, view.is_paused) = (None, true);
    assert!(screen(&view, 1, 30)[1].starts_with("stopped"));
    let said = [7, 67, 3_725, 90_000].map(time);
    assert_eq!(said, ["7 s", "1 min 7 s", "1 h 2 min", "1 d 1 h"]);
}
