//! A router that admits by token, in the NIC's driver: how long a grant and a revocation take.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use virga::{
    keys::EntityKey,
    mesh::Mesh,
    rights::{Chain, Grant, List, Operation, Operations, Reach, Scope, revocation::Entry},
};
use virga_transport::ChannelName;

use crate::{
    hosts::{Hosts, eventually},
    stage::{RELIABLE, V4, dropped, forwarded, line_with, number},
};

fn channel() -> String {
    format!(
        "[[channels]]\nname = \"{RELIABLE}\"\nrequire_token = true\nissuers = [\"{{router.entity}}\"]\n"
    )
}

fn now_s() -> u64 {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH);
    unix.unwrap().as_secs()
}

/// The router's entity is the issuer.
fn token(hosts: &Hosts, holder: &str, operation: Operation) -> Chain {
    let issuer: &EntityKey = &hosts.host("router").entity;
    let name = ChannelName::parse(RELIABLE).unwrap();
    let grant = Grant {
        subject: hosts.host(holder).entity.public,
        scope: Scope::new(&name, Reach::Channel),
        operations: Operations::new(&[operation]).unwrap(),
        delegations: 0,
        not_before_s: now_s(),
        not_after_s: now_s() + 3_600,
        generation: 0,
        nonce: [0; 8],
    };
    Chain::issue(grant, issuer)
}

fn pairs(hosts: &Hosts) -> u64 {
    number(hosts, "router", "/admissions/pairs")
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn a_grant_passes_the_router_when_it_is_acknowledged_and_a_revocation_ends_it() {
    let hosts = line_with("native", &V4, &channel());
    let (a, b) = (hosts.socket("a"), hosts.socket("b"));
    let (a, b) = (Mesh::open(a).await.unwrap(), Mesh::open(b).await.unwrap());
    b.present(&token(&hosts, "b", Operation::Subscribe))
        .await
        .unwrap();
    let mut events = b.subscribe(RELIABLE).await.unwrap();
    let told = eventually(|| number(&hosts, "a", "/admissions/neighbours") == 1);
    assert!(told, "{}", hosts.log("a"));
    let granted = pairs(&hosts);
    assert_eq!(granted, 0);

    let start = Instant::now();
    let publish = token(&hosts, "a", Operation::Publish);
    let given = a.present(&publish).await.unwrap();
    let acknowledged = Instant::now();
    assert!(
        given.neighbours.iter().any(|one| one.is_admitted),
        "{given:?}"
    );
    assert_eq!(pairs(&hosts), 1);
    // b hears of it on its session with a, and asks a again.
    let is_known = || {
        let status = hosts.status("a").unwrap();
        status["channels"][0]["remote_subscribers"] == 1
    };
    assert!(eventually(is_known), "{}", hosts.log("b"));
    let before = forwarded(&hosts, "router");
    let sent = Instant::now();
    let publisher = a.publisher(RELIABLE).await.unwrap();
    publisher.publish(b"first").await.unwrap();
    let first = tokio::time::timeout(Duration::from_secs(20), events.next_delivery()).await;
    let first = first.expect("the event arrives").unwrap().unwrap();
    assert_eq!(&first.payload[..], b"first");
    println!(
        "acknowledged after {:?}, b on the roster {:?} later, the first event {:?} after it was published",
        acknowledged - start,
        sent - acknowledged,
        sent.elapsed()
    );
    assert!(forwarded(&hosts, "router") > before, "through the NIC path");
    assert_eq!(dropped(&hosts, "router", "unauthorised"), 0);
    publisher.finish().await.unwrap();

    let subject = Entry::Subject(hosts.host("a").entity.public);
    let issuer = &hosts.host("router").entity;
    let list = List::new(issuer.public);
    let list = list.revoke(subject, now_s() + 3_600, now_s()).unwrap();
    let start = Instant::now();
    b.announce(&list.sign(issuer)).await.unwrap();
    assert!(eventually(|| pairs(&hosts) == 0));
    let took = start.elapsed();
    println!("revoked at b, out of the router's guard after {took:?}");
    assert!(took < Duration::from_secs(8), "{took:?}");
}
