//! Routes that are learned, in the NIC path: nobody's file says `via`.

use crate::{
    hosts::eventually,
    stage::{RELIABLE, Sink, Stream, assert_complete, forwarded, peer, virga},
    transit::diamond_of,
};
use std::time::{Duration, Instant};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn what_was_learned_is_forwarded_in_the_nic_and_a_link_that_goes_down_gives_way_to_the_backup()
 {
    let hosts = diamond_of("[routing]\nenabled = true\n", |name, _| peer(name, ""));
    let program = virga().to_string_lossy().into_owned();
    let socket = hosts.socket("r1").to_string_lossy().into_owned();
    let to_b = || {
        let arguments = ["routes", "--json", "--socket", &socket];
        let output = hosts.run("r1", &program, &arguments).unwrap();
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let routes = status["routes"].as_array().unwrap().clone();
        let route = routes
            .into_iter()
            .find(|route| route["name"] == "b")
            .unwrap();
        let word = |key: &str| route[key].as_str().map(str::to_owned);
        word("primary").zip(word("backup"))
    };
    let began = Instant::now();
    let (primary, backup) = loop {
        if let Some(both) = to_b() {
            break both;
        }
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "{}",
            hosts.log("r1")
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    // It fails as long as not all on the way know it.
    let asked = ["trace", "b", "--json", "--socket", &socket];
    let mut trace = None;
    let is_found = eventually(|| {
        trace = hosts.run("r1", &program, &asked).ok();
        trace.is_some()
    });
    assert!(is_found, "{}", hosts.log("r1"));
    let trace = trace.unwrap();
    let trace: serde_json::Value = serde_json::from_slice(&trace.stdout).unwrap();
    assert_eq!(trace["end"], "arrived", "{trace}");
    assert_eq!(trace["hops"][0]["name"], *primary, "{trace}");
    let hops = trace["hops"].as_array().unwrap();
    assert_eq!(hops.last().unwrap()["name"], "b", "{trace}");
    let sink = Sink::subscribe(&hosts, RELIABLE).await;
    let events = Stream::begin(&hosts, RELIABLE, 500);
    let carries = |router: &str| {
        let before = forwarded(&hosts, router);
        eventually(|| forwarded(&hosts, router) > before + 100)
    };
    assert!(carries(&primary), "the primary carries them before");
    let link = if primary == "r2" { "m2" } else { "m3" };
    hosts
        .ip("r1", &["link", "set", "dev", link, "down"])
        .unwrap();
    assert!(carries(&backup), "the backup carries them");
    let count = events.end().await;
    assert_complete(&sink.numbers().await, count);
    println!("{count} events, over {primary} and then over {backup}");
}
