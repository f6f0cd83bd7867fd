//! A neighbour's outer address changes: the NIC path goes by the new one, and nothing reliable is lost.

use std::{fs, time::Duration};

use virga::mesh::Mesh;

use crate::{
    hosts::eventually,
    stage::{
        RELIABLE, Sink, V4, assert_complete, dropped, forwarded, is_subscribed, line, publish,
    },
};

/// From a to the router.
const NEAR: &str = "test/near";
/// Where a goes.
const MOVED: &str = "10.78.1.9";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn a_neighbour_that_moves_is_followed_by_the_nic_path() {
    let mut hosts = line("native", &V4);
    // a listens wherever it is, and has a session with the router itself.
    let entity = |name| virga::hex::encode(&hosts.host(name).entity.public);
    let near = format!(
        "[[channels]]\nname = \"{NEAR}\"\nreliable = true\npublish = [\"{}\"]\nsubscribe = [\"{}\"]\n",
        entity("a"),
        entity("router")
    );
    for host in ["a", "router", "b"] {
        let file = hosts.folder.join(host).join("node.toml");
        let text = fs::read_to_string(&file).unwrap() + &near;
        let anywhere = text.replace("listen = \"10.78.1.2:4783\"", "listen = \"0.0.0.0:4783\"");
        assert_eq!(text != anywhere, host == "a");
        hosts.stop(host).unwrap();
        fs::write(&file, anywhere).unwrap();
        hosts.start(host).unwrap();
    }
    let router = Mesh::open(hosts.socket("router")).await.unwrap();
    let _subscription = router.subscribe(NEAR).await.unwrap();
    assert!(eventually(|| is_subscribed(&hosts, NEAR)));
    let sink = Sink::subscribe(&hosts, RELIABLE).await;
    let during = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        for (how, address) in [("delete", V4.a), ("add", MOVED)] {
            let address = format!("{address}/24");
            hosts
                .ip("a", &["address", how, &address, "dev", "m0"])
                .unwrap();
        }
    };
    // The move shows with the next packet to the router itself: that is a keepalive, at the latest.
    let publishing = publish(&hosts, RELIABLE, 200, Duration::from_secs(16));
    let (count, ()) = tokio::join!(publishing, during);
    assert_complete(&sink.numbers().await, count);
    let is_followed = || {
        let status = hosts.status("router").unwrap();
        let mut links = status["forwarding"]["links"].as_array().unwrap().iter();
        let link = links.find(|link| link["peer"] == "a").unwrap();
        link["address"] == format!("{MOVED}:4783").as_str() && link["resolved"] == true
    };
    assert!(eventually(is_followed), "{}", hosts.log("router"));
    assert!(
        dropped(&hosts, "router", "neighbour") > 0,
        "until it was known there, the NIC path let nothing of it through"
    );
    // Whatever travels now, travels there and back by the new address.
    let before = forwarded(&hosts, "router");
    let sink = Sink::subscribe(&hosts, RELIABLE).await;
    let count = publish(&hosts, RELIABLE, 200, Duration::from_secs(1)).await;
    assert_complete(&sink.numbers().await, count);
    assert!(forwarded(&hosts, "router") > before + count / 2);
}
