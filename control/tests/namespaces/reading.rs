//! A log on another host: one publishes, another keeps, a third reads on over restarts of all, through a router.

use std::{fs, path::Path};

use virga::mesh::Mesh;

use crate::{
    hosts::{Hosts, eventually},
    stage::{RELIABLE, V4, forwarded, line_with, number},
};

/// The router publishes, b keeps, a reads.
fn channel() -> String {
    format!(
        "[[channels]]\nname = \"{RELIABLE}\"\npublish = [\"{{router.entity}}\"]\n\
         subscribe = [\"{{a.entity}}\", \"{{b.entity}}\"]\n"
    )
}

fn events(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|n| format!("event {n}")).collect()
}

/// Waits until b's log gets what is published, by b's own word: the router may still count one that was killed.
fn is_heard(hosts: &Hosts) {
    let is_heard = || {
        let status = hosts.status("b").unwrap();
        let subscriptions = status["subscriptions"].as_array().unwrap();
        subscriptions.iter().any(|s| s["state"] == "granted")
    };
    assert!(eventually(is_heard), "{}", hosts.log("b"));
}

async fn publish(hosts: &Hosts, range: std::ops::Range<u64>) {
    let end = range.end;
    let mesh = Mesh::open(hosts.socket("router")).await.unwrap();
    let events = events(range);
    let published = mesh.publish_batch(RELIABLE, &events).await.unwrap();
    assert_eq!(usize::try_from(published.published), Ok(events.len()));
    let is_kept = || number(hosts, "b", "/logs/0/readable") == end;
    assert!(eventually(is_kept), "{}", hosts.log("b"));
}

/// `virga sub` at a, from where it was: so many events.
fn read(hosts: &Hosts, place: &Path, count: usize) -> Vec<String> {
    let (socket, count) = (hosts.socket("a"), count.to_string());
    let words = [
        "sub",
        RELIABLE,
        "--position",
        place.to_str().unwrap(),
        "--count",
        &count,
        "--timeout",
        "600",
        "--socket",
        socket.to_str().unwrap(),
    ];
    let output = hosts.run("a", hosts.virga().to_str().unwrap(), &words);
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn a_reader_on_a_third_host_goes_on_over_restarts_of_all() {
    let mut hosts = line_with("native", &V4, &channel());
    let file = hosts.folder.join("b").join("node.toml");
    let text = fs::read_to_string(&file).unwrap();
    let subscribe = text
        .lines()
        .find(|line| line.starts_with("subscribe"))
        .unwrap();
    let keeping = format!("{subscribe}\npersist = true");
    fs::write(&file, text.replace(subscribe, &keeping)).unwrap();
    assert!(hosts.stop("b").unwrap());
    hosts.start("b").unwrap();
    let place = hosts.folder.join("place");

    is_heard(&hosts);
    publish(&hosts, 0..500).await;
    let through = forwarded(&hosts, "router");
    assert_eq!(read(&hosts, &place, 300), events(0..300));
    assert!(
        forwarded(&hosts, "router") > through,
        "through the NIC path"
    );
    // The node that keeps the log.
    hosts.kill("b").unwrap();
    hosts.start("b").unwrap();
    assert_eq!(read(&hosts, &place, 100), events(300..400));
    is_heard(&hosts);
    publish(&hosts, 500..1_000).await;
    // The reader's node.
    hosts.kill("a").unwrap();
    hosts.start("a").unwrap();
    assert_eq!(read(&hosts, &place, 350), events(400..750));
    // The one that publishes, through which all goes.
    hosts.kill("router").unwrap();
    hosts.start("router").unwrap();
    assert_eq!(read(&hosts, &place, 250), events(750..1_000));
    // b's subscription may still be that of the session before.
    let is_subscribed = || {
        let status = hosts.status("router").unwrap();
        let mut channels = status["channels"].as_array().unwrap().iter();
        channels.any(|c| c["name"] == RELIABLE && c["remote_subscribers"] == 1)
    };
    assert!(eventually(is_subscribed), "{}", hosts.log("router"));
    is_heard(&hosts);
    publish(&hosts, 1_000..1_200).await;
    assert_eq!(read(&hosts, &place, 200), events(1_000..1_200));
}
