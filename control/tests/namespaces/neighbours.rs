//! The kernel keeps next hops resolved while a NIC path needs them, and no longer.

use crate::{
    hosts::{Hosts, eventually},
    stage::{V4, line, virga},
};

/// What the router's kernel says about a neighbour.
fn entry(hosts: &Hosts, address: &str) -> String {
    let shown = hosts.run("router", "ip", &["neighbour", "show", address]);
    String::from_utf8_lossy(&shown.unwrap().stdout).into_owned()
}

fn is_managed(hosts: &Hosts, address: &str) -> bool {
    entry(hosts, address).contains(" managed ")
}

/// Restarts the router with its configuration as `change` makes it.
fn restart(hosts: &mut Hosts, change: impl FnOnce(String) -> String) {
    let file = hosts.folder.join("router/node.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    hosts.stop("router").unwrap();
    std::fs::write(&file, change(text)).unwrap();
    hosts.start("router").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn managed_neighbours_end_with_what_needs_them() {
    let mut hosts = line("native", &V4);
    assert!(
        eventually(|| is_managed(&hosts, V4.b)),
        "{}",
        entry(&hosts, V4.b)
    );
    // Another address for b, at which nobody answers: the old one is needed no more.
    restart(&mut hosts, |text| {
        text.replace("10.78.2.2:4783", "10.78.2.9:4783")
    });
    assert!(eventually(|| is_managed(&hosts, "10.78.2.9")));
    assert!(
        eventually(|| !is_managed(&hosts, V4.b)),
        "{}",
        entry(&hosts, V4.b)
    );
    // A route that goes takes its gateway along; one that returns brings it.
    let route = |how| {
        let address = ["address", how, "10.78.2.1/24", "dev", "mb"];
        hosts.ip("router", &address).unwrap();
    };
    route("delete");
    assert!(eventually(|| !is_managed(&hosts, "10.78.2.9")));
    route("add");
    assert!(eventually(|| is_managed(&hosts, "10.78.2.9")));
    restart(&mut hosts, |text| {
        text.replace("\"native\"", "\"userspace\"")
    });
    for address in [V4.a, "10.78.2.9"] {
        assert!(!is_managed(&hosts, address), "{}", entry(&hosts, address));
    }
    restart(&mut hosts, |text| {
        text.replace("\"userspace\"", "\"native\"")
    });
    assert!(eventually(|| is_managed(&hosts, V4.a)));
    hosts.stop("router").unwrap();
    assert!(
        is_managed(&hosts, V4.a),
        "a NIC path goes on, and so does this"
    );
    let name = hosts.node_name("router");
    let detach = ["node", "detach", &name];
    let program = virga().to_string_lossy();
    hosts.run("router", &program, &detach).unwrap();
    for address in [V4.a, "10.78.2.9"] {
        assert!(!is_managed(&hosts, address), "{}", entry(&hosts, address));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn an_operators_permanent_neighbour_stays_as_it_is() {
    let mut hosts = line("native", &V4);
    let set = "neighbour replace 10.78.2.9 lladdr 02:00:00:00:99:09 dev mb nud permanent";
    let set: Vec<&str> = set.split(' ').collect();
    hosts.ip("router", &set).unwrap();
    restart(&mut hosts, |text| {
        text.replace("10.78.2.2:4783", "10.78.2.9:4783")
    });
    assert!(eventually(|| is_managed(&hosts, V4.a)));
    let entry = entry(&hosts, "10.78.2.9");
    assert!(
        entry.contains("02:00:00:00:99:09") && entry.contains("PERMANENT"),
        "{entry}"
    );
    let status = hosts.status("router").unwrap();
    let links = status["forwarding"]["links"].as_array().unwrap();
    assert!(
        links.iter().all(|link| link["resolved"] == true),
        "{status}"
    );
}
