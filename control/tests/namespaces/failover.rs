//! Links that die while packets pass: how long it takes until the backup carries them, and what is lost.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    diamond::{Hand, Middle, Ways, detected, diamond, diamond_by, missing},
    hosts::{Hosts, eventually},
    stage::{LOSSY, Sink, Stream, V4, forwarded, is_by, line_keyed, virga},
};

const PREFIX: &str = "virga-test";
/// Events a second: one each millisecond.
const RATE: u32 = 1_000;

/// What a node knows of a neighbour.
fn near(hosts: &Hosts, host: &str, neighbour: &str) -> Value {
    let program = virga().to_string_lossy().into_owned();
    let socket = hosts.socket(host).to_string_lossy().into_owned();
    let arguments = ["peers", "--json", "--socket", &socket];
    let output = hosts.run(host, &program, &arguments).unwrap();
    let peers: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut peers = peers.as_array().unwrap().iter();
    peers.find(|p| p["name"] == neighbour).unwrap().clone()
}

/// What it knows of the link to that.
fn link(hosts: &Hosts, host: &str, neighbour: &str) -> Value {
    near(hosts, host, neighbour)["link"].clone()
}

/// How often r1 has found one of its ways to b dead.
fn detections(hosts: &Hosts) -> u64 {
    let of = |neighbour| link(hosts, "r1", neighbour)["detections"].as_u64().unwrap();
    of("r2") + of("r3")
}

/// Whether the session of two neighbours goes on, which ends long after a link of theirs is found dead.
fn is_in_session(hosts: &Hosts, host: &str, neighbour: &str) -> bool {
    near(hosts, host, neighbour)["session"] == "established"
}

/// Waits until a router has carried so many packets more.
fn carries(hosts: &Hosts, router: &str, packets: u64) -> bool {
    let before = forwarded(hosts, router);
    eventually(|| forwarded(hosts, router) > before + packets)
}

/// How many of the events from that number on did not come.
fn lost_from(first: u64, numbers: &[u64], count: u64) -> u64 {
    let came = numbers.iter().filter(|number| **number >= first).count();
    count.saturating_sub(first) - came as u64
}

/// Whether a node uses the link to a neighbour.
pub fn is_up(hosts: &Hosts, host: &str, neighbour: &str) -> bool {
    link(hosts, host, neighbour)["state"] == "up"
}

/// A load under which no link is found dead, in one of three times: the machine below this one may stand still, too.
fn assert_none_dead(hosts: &Hosts, links: [(&str, &str); 4], load: impl Fn()) {
    let found = || links.map(|(host, n)| link(hosts, host, n)["detections"].as_u64().unwrap());
    let held = (0..3).any(|_| {
        let before = found();
        load();
        before == found()
    });
    assert!(held, "{:?}", found());
}

async fn pause(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn a_link_that_falls_silent_gives_way_to_the_backup_and_comes_back() {
    let hosts = diamond(PREFIX, virga(), Middle::Switch).unwrap();
    assert!(eventually(
        || is_up(&hosts, "r1", "r2") && is_up(&hosts, "r2", "r1")
    ));
    let sink = Sink::subscribe(&hosts, LOSSY).await;
    let events = Stream::begin(&hosts, LOSSY, RATE);
    assert!(carries(&hosts, "r2", 500), "the primary carries traffic");
    let mut hand = Hand::new(&hosts).unwrap();
    // Its program's coming may have held packets up for longer than a link is believed.
    pause(100).await;
    let before = detections(&hosts);
    assert!(eventually(|| is_up(&hosts, "r1", "r2")));
    let cut_at = hand.cut().unwrap();
    assert!(eventually(|| link(&hosts, "r1", "r2")["state"] == "silent"));
    assert!(is_in_session(&hosts, "r1", "r2"), "its session goes on");
    assert!(detections(&hosts) > before);
    // Its log may tell of that a little later.
    let mut detect = None;
    let is_told = eventually(|| {
        detect = detected(&hosts, cut_at);
        detect.is_some()
    });
    assert!(is_told, "{}", hosts.log("r1"));
    let is_around = eventually(|| !is_by(&hosts, "r2", "r3"));
    assert!(is_around, "the backup carries it");
    let around = events.next();
    assert!(carries(&hosts, "r3", 500), "the backup carries it");
    hand.mend().unwrap();
    assert!(eventually(|| is_up(&hosts, "r1", "r2")));
    let found = detections(&hosts);
    let is_back = eventually(|| is_by(&hosts, "r2", "r3"));
    assert!(is_back, "the primary carries it again");
    let count = events.end().await;
    let numbers = sink.numbers().await;
    let is_found_again = detections(&hosts) > found;
    let (longest, lost) = missing(&numbers, count);
    println!(
        "silent: found dead {} ms after the cut; {longest} events in a row lost at {RATE} a second, {lost} of {count} in all",
        detect.unwrap().as_millis()
    );
    assert!(longest > 0, "what was cut carried something");
    // A machine that stands still finds it dead again, which costs some.
    let later = lost_from(around, &numbers, count);
    assert!(
        later == 0 || is_found_again,
        "neither way costs anything once it is taken: {later} lost of those from {around} on"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn routers_that_find_a_link_dead_lead_nobody_over_it_long_before_its_session_ends() {
    let hosts = diamond_by(Ways::Learned, PREFIX, virga(), Middle::Switch).unwrap();
    let over = |host: &str, to: &str| {
        let program = virga().to_string_lossy().into_owned();
        let socket = hosts.socket(host).to_string_lossy().into_owned();
        let arguments = ["routes", "--json", "--socket", &socket];
        let output = hosts.run(host, &program, &arguments).unwrap();
        let status: Value = serde_json::from_slice(&output.stdout).unwrap();
        let mut routes = status["routes"].as_array().unwrap().iter();
        let route = routes.find(|route| route["name"] == to).unwrap();
        ["primary", "backup"].map(|key| route[key].as_str().map(str::to_owned))
    };
    let leads = |host: &str, to: &str, router: &str| over(host, to).contains(&Some(router.into()));
    let both = || leads("r1", "b", "r2") && leads("r1", "b", "r3");
    assert!(eventually(both), "{:?}", over("r1", "b"));
    assert!(eventually(
        || is_up(&hosts, "r1", "r2") && is_up(&hosts, "r2", "r1")
    ));
    let mut hand = Hand::new(&hosts).unwrap();
    pause(100).await;
    hand.cut().unwrap();
    let cut = Instant::now();
    let is_left = || !leads("r1", "b", "r2") && !leads("r2", "a", "r1");
    assert!(eventually(is_left), "{:?}", over("r1", "b"));
    println!(
        "no route leads there any more: {} ms after the cut",
        cut.elapsed().as_millis()
    );
    assert!(is_in_session(&hosts, "r1", "r2"), "its session goes on");
    let around = || leads("r1", "b", "r3") && leads("r2", "a", "b");
    assert!(eventually(around), "{:?}", over("r2", "a"));
    hand.mend().unwrap();
    assert!(eventually(both), "{:?}", over("r1", "b"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn a_link_that_carries_one_direction_alone_is_not_used() {
    let hosts = diamond(PREFIX, virga(), Middle::Switch).unwrap();
    assert!(eventually(
        || is_up(&hosts, "r1", "r2") && is_up(&hosts, "r2", "r1")
    ));
    let sink = Sink::subscribe(&hosts, LOSSY).await;
    let events = Stream::begin(&hosts, LOSSY, RATE);
    assert!(carries(&hosts, "r2", 500), "the primary carries traffic");
    // A program that drops what r1 sends, and nothing of what comes back.
    let program = virga().to_string_lossy().into_owned();
    let arguments = ["sink", "--interface", "p1", "--seconds", "600"];
    let mut dropping = hosts.command("w", &program);
    let mut dropping = dropping.args(arguments).spawn().unwrap();
    let dead = |state: &str| eventually(|| link(&hosts, "r1", "r2")["state"] == state);
    let is_one_way = dead("one-way");
    let is_held = is_in_session(&hosts, "r1", "r2");
    let is_carried = eventually(|| !is_by(&hosts, "r2", "r3"));
    let around = events.next();
    let goes_on = carries(&hosts, "r3", 500);
    let count = events.end().await;
    let numbers = sink.numbers().await;
    let (longest, lost) = missing(&numbers, count);
    let is_silent = eventually(|| link(&hosts, "r2", "r1")["state"] == "silent");
    dropping.kill().unwrap();
    dropping.wait().unwrap();
    assert!(is_one_way, "{}", link(&hosts, "r1", "r2"));
    assert!(is_held, "its session goes on");
    assert!(is_carried && goes_on, "the backup carries it");
    assert!(is_silent, "{}", link(&hosts, "r2", "r1"));
    println!(
        "one way: {longest} events in a row lost at {RATE} a second, {lost} of {count} in all"
    );
    assert_eq!(lost_from(around, &numbers, count), 0, "from {around} on");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn a_link_that_reports_its_loss_gives_way_at_once() {
    let hosts = diamond(PREFIX, virga(), Middle::Cable).unwrap();
    assert!(eventually(|| is_up(&hosts, "r1", "r2")));
    let sink = Sink::subscribe(&hosts, LOSSY).await;
    let events = Stream::begin(&hosts, LOSSY, RATE);
    assert!(carries(&hosts, "r2", 500), "the primary carries traffic");
    hosts
        .ip("r2", &["link", "set", "dev", "m1", "down"])
        .unwrap();
    assert!(eventually(|| !is_up(&hosts, "r1", "r2")));
    let is_held = is_in_session(&hosts, "r1", "r2");
    let is_carried = eventually(|| !is_by(&hosts, "r2", "r3"));
    let around = events.next();
    let goes_on = carries(&hosts, "r3", 500);
    let count = events.end().await;
    let numbers = sink.numbers().await;
    let (longest, lost) = missing(&numbers, count);
    assert!(is_carried && goes_on, "the backup carries it");
    assert!(is_held, "its session goes on");
    println!(
        "reported: {longest} events in a row lost at {RATE} a second, {lost} of {count} in all"
    );
    assert_eq!(lost_from(around, &numbers, count), 0, "from {around} on");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn under_full_load_no_link_is_found_dead() {
    // Generated packets have no link tags.
    let hosts = line_keyed("native", &V4, "link_tags = \"off\"\n");
    let links = [
        ("a", "router"),
        ("router", "a"),
        ("router", "b"),
        ("b", "router"),
    ];
    for (host, neighbour) in links {
        assert!(
            eventually(|| is_up(&hosts, host, neighbour)),
            "{host} to {neighbour}"
        );
    }
    let cpus = std::thread::available_parallelism().unwrap().get();
    let before = forwarded(&hosts, "router");
    let load = || {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // As many programs as there are CPUs, that want all of them.
            for _ in 0..cpus {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            let flood = scope.spawn(|| {
                let destination = hosts.host("b").node.id.to_string();
                let origin = hosts.host("a").entity.origin.to_string();
                let arguments = [
                    "gen",
                    "--xdp",
                    "--to",
                    "10.78.1.1:4783",
                    "--destination",
                    &destination,
                    "--origin",
                    &origin,
                    "--channel",
                    "0",
                    "--seconds",
                    "10",
                    "--json",
                ];
                let program = virga().to_string_lossy().into_owned();
                hosts.run("a", &program, &arguments)
            });
            let sent = flood.join().unwrap();
            stop.store(true, Ordering::Relaxed);
            let sent = sent.unwrap();
            println!("{}", String::from_utf8_lossy(&sent.stdout));
        });
    };
    assert_none_dead(&hosts, links, load);
    let through = forwarded(&hosts, "router") - before;
    for (host, neighbour) in links {
        println!("{host} to {neighbour}: {}", link(&hosts, host, neighbour));
        let is_well = || {
            let found = link(&hosts, host, neighbour);
            found["state"] == "up" && found["answers"] == "nic"
        };
        assert!(eventually(is_well), "{host} to {neighbour}");
    }
    println!("{through} packets through the router in its NIC, {cpus} programs on {cpus} CPUs");
    assert!(through > 100_000);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn where_workers_answer_no_link_is_found_dead_while_others_have_the_processors() {
    let hosts = line_keyed("userspace", &V4, "");
    let links = [
        ("a", "router"),
        ("router", "a"),
        ("router", "b"),
        ("b", "router"),
    ];
    for (host, neighbour) in links {
        assert!(eventually(|| is_up(&hosts, host, neighbour)));
    }
    let cpus = std::thread::available_parallelism().unwrap().get();
    let load = || {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Four programs for each CPU that want all of it.
            for _ in 0..4 * cpus {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            std::thread::sleep(Duration::from_secs(10));
            stop.store(true, Ordering::Relaxed);
        });
    };
    assert_none_dead(&hosts, links, load);
    for (host, neighbour) in links {
        let found = link(&hosts, host, neighbour);
        println!("{host} to {neighbour}: {found}");
        assert_eq!(found["answers"], "worker", "{host} to {neighbour}: {found}");
    }
}
