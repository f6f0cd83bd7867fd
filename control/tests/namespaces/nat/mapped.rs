//! Sites whose router maps a port when it is asked to: `miniupnpd`, as many home routers run it, beside the rules of a
//! symmetric NAT. It maps nothing at an outer address that is not a public one, so that the site's is none of those kept
//! for documentation; it leads nowhere outside the namespaces.

use super::{HUBS, Kind, SITES, THERE, assert_path, configure, wired};
use crate::{
    fallback::Flow,
    hosts::{Hosts, eventually},
    stage::virga,
};
use serde_json::Value;
use std::{
    fs,
    process::{Child, Command, Stdio},
};

/// The outer address of the router of a.
const OUTER: &str = "11.3.113.10";
/// Where others reach a.
const MAPPED: &str = "11.3.113.10:4783";
/// Another address of a, in its network.
const MOVED: &str = "10.1.0.77";
/// What `miniupnpd` writes its rules to.
const TABLE: &str = "table inet mapped {\n chain upnp_forward { }\n chain upnp_in { }\n chain upnp_out { }\n \
     chain forward { type filter hook forward priority 0; jump upnp_forward; }\n \
     chain prerouting { type nat hook prerouting priority -100; jump upnp_in; }\n \
     chain postrouting { type nat hook postrouting priority 100; jump upnp_out; }\n}\n";

/// What the router speaks.
#[derive(Clone, Copy)]
enum Speaks {
    /// PCP, and NAT-PMP.
    Pcp,
    Upnp,
}

/// The router of a, until it is dropped.
struct Router(Child);

impl Drop for Router {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _status = self.0.wait();
    }
}

fn load(hosts: &Hosts, rules: &str) {
    let file = hosts.folder.join("na/more.nft");
    fs::write(&file, rules).unwrap();
    let file = file.to_string_lossy();
    hosts.run("na", "nft", &["-f", &file]).unwrap();
}

/// Starts the router, which knows of no mapping.
fn start_router(hosts: &Hosts, speaks: Speaks) -> Router {
    load(
        hosts,
        &format!("table inet mapped {{ }}\ndelete table inet mapped\n{TABLE}"),
    );
    let folder = hosts.folder.join("na");
    let [upnp, pmp] = match speaks {
        Speaks::Pcp => ["no", "yes"],
        Speaks::Upnp => ["yes", "no"],
    };
    let config = format!(
        "ext_ifname=w0\next_ip={OUTER}\nlistening_ip=m0\nenable_upnp={upnp}\nenable_natpmp={pmp}\nsecure_mode=yes\nsystem_uptime=no\n\
         uuid=5b1cbb4f-1f4c-4a3e-9a6e-0d6c1d9c8e11\nupnp_table_name=mapped\nupnp_nat_table_name=mapped\n\
         upnp_forward_chain=upnp_forward\nupnp_nat_chain=upnp_in\nupnp_nat_postrouting_chain=upnp_out\n\
         allow 1024-65535 10.1.0.0/24 1024-65535\n"
    );
    let file = folder.join("miniupnpd.conf");
    fs::write(&file, config).unwrap();
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(folder.join("router.log"))
        .unwrap();
    let child = hosts
        .command("na", "miniupnpd")
        .args(["-d", "-f"])
        .arg(&file)
        .arg("-P")
        .arg(folder.join("miniupnpd.pid"))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    Router(child)
}

fn router_log(hosts: &Hosts) -> String {
    fs::read_to_string(hosts.folder.join("na/router.log")).unwrap_or_default()
}

/// Both sites behind symmetric NATs, of which that of a speaks `speaks`, and both hubs running. None where there is no
/// such router.
fn stage(speaks: Speaks) -> Option<(Hosts, Router)> {
    let why = match Command::new("miniupnpd").arg("--version").output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Some(error.to_string()),
    };
    if let Some(why) = why {
        println!("skipped: miniupnpd cannot be run: {why} (scripts/setup --bpf downloads it)");
        return None;
    }
    let kinds = [Kind::Symmetric; 2];
    let mut hosts = wired(kinds, 2)?;
    let wide = format!("{OUTER}/32");
    hosts
        .ip("na", &["address", "add", &wide, "dev", "w0"])
        .unwrap();
    hosts
        .ip("net", &["route", "add", &wide, "dev", SITES[0].port])
        .unwrap();
    let rules = kinds[0].rules(SITES[0].inner[0]);
    let rules = rules.replace("masquerade to ", &format!("snat to {OUTER}"));
    let rules = rules.replace("masquerade ", &format!("snat to {OUTER} "));
    load(&hosts, &format!("delete table ip nat\n{rules}"));
    configure(&hosts, kinds, &HUBS, |host, rest| match host {
        "a" => rest.replace(
            "[nat]\nenabled = true",
            "[nat]\nenabled = true\nport_mapping = true",
        ),
        "b" => rest,
        _ => rest.replace(SITES[0].outer[0], OUTER),
    });
    let router = start_router(&hosts, speaks);
    for (host, _) in HUBS {
        hosts.start(host).unwrap();
    }
    Some((hosts, router))
}

/// What a says of its mapping.
fn said(hosts: &Hosts) -> Value {
    hosts.status("a").unwrap()["nat"]["port_mapping"].clone()
}

/// a says that it has a mapping, by this.
#[track_caller]
fn assert_mapped(hosts: &Hosts, protocol: &str) {
    let is_so = || {
        let said = said(hosts);
        said["protocol"] == protocol && said["external"] == MAPPED
    };
    assert!(
        eventually(is_so),
        "{protocol}: {}\na:\n{}\nits router:\n{}",
        said(hosts),
        hosts.log("a"),
        router_log(hosts)
    );
}

/// The router comes to have so many mappings.
#[track_caller]
fn assert_mappings(hosts: &Hosts, count: usize) {
    let is_so = || mappings(hosts).matches("dnat").count() == count;
    assert!(
        eventually(is_so),
        "{count}: {}\n{}",
        mappings(hosts),
        router_log(hosts)
    );
}

/// What the router has mapped, as the kernel lists it.
fn mappings(hosts: &Hosts) -> String {
    let chain = ["list", "chain", "inet", "mapped", "upnp_in"];
    let said = hosts.run("na", "nft", &chain).unwrap();
    String::from_utf8(said.stdout).unwrap()
}

/// Whether it is what the operator is told.
fn is_told(hosts: &Hosts, words: &str) -> bool {
    let socket = hosts.socket("a").display().to_string();
    let program = virga().to_str().unwrap();
    let told = hosts
        .run("a", program, &["status", "--socket", &socket])
        .unwrap();
    String::from_utf8(told.stdout).unwrap().contains(words)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn two_sites_behind_symmetric_nats_meet_where_the_router_of_one_maps_a_port_by_pcp() {
    let Some((mut hosts, router)) = stage(Speaks::Pcp) else {
        return;
    };
    for host in ["b", "a"] {
        hosts.start(host).unwrap();
    }
    let there = Flow::start(&hosts, THERE, "a", "b").await;
    assert_mapped(&hosts, "PCP");
    assert!(is_told(&hosts, &format!("port mapping: {MAPPED} by PCP")));
    assert_mappings(&hosts, 1);
    assert_path(&hosts, "punched", "had us meet");
    there.assert_flows(200);
    there.assert_complete().await;
    // Switched off, and on again.
    let file = hosts.folder.join("a/node.toml");
    let text = fs::read_to_string(&file).unwrap();
    let socket = hosts.socket("a").display().to_string();
    for (is_on, count) in [("false", 0), ("true", 1)] {
        let text = text.replace("port_mapping = true", &format!("port_mapping = {is_on}"));
        fs::write(&file, text).unwrap();
        let reload = ["reload", "--socket", &socket];
        hosts.run("a", virga().to_str().unwrap(), &reload).unwrap();
        assert_mappings(&hosts, count);
    }
    // A killed node leaves it behind and takes it over; one that is stopped has it taken back.
    hosts.kill("a").unwrap();
    assert_mappings(&hosts, 1);
    hosts.start("a").unwrap();
    assert_mapped(&hosts, "PCP");
    assert_mappings(&hosts, 1);
    // A router that has restarted is asked again at once, and not only when the lease is half over; by its time, which
    // is that of a fresh start again, and was some seconds more.
    drop(router);
    let router = start_router(&hosts, Speaks::Pcp);
    assert_mappings(&hosts, 1);
    hosts.stop("a").unwrap();
    assert_mappings(&hosts, 0);
    drop(router);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn a_router_that_speaks_upnp_alone_maps_a_port_once_and_takes_it_back() {
    let Some((mut hosts, _router)) = stage(Speaks::Upnp) else {
        return;
    };
    for host in ["b", "a"] {
        hosts.start(host).unwrap();
    }
    let there = Flow::start(&hosts, THERE, "a", "b").await;
    assert_mapped(&hosts, "UPnP");
    assert_path(&hosts, "punched", "had us meet");
    there.assert_flows(200);
    there.assert_complete().await;
    hosts.kill("a").unwrap();
    hosts.start("a").unwrap();
    assert_mapped(&hosts, "UPnP");
    assert_mappings(&hosts, 1);
    hosts.stop("a").unwrap();
    assert_mappings(&hosts, 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn a_site_whose_own_address_is_another_one_has_the_port_mapped_to_that() {
    let Some((mut hosts, _router)) = stage(Speaks::Pcp) else {
        return;
    };
    hosts.start("a").unwrap();
    assert_mapped(&hosts, "PCP");
    let made = said(&hosts)["made"]["PCP"].as_u64().unwrap();
    // As by DHCP: the old address goes, and the way out with it.
    let inner = SITES[0].inner;
    for words in [
        format!("address delete {}/24 dev m0", inner[0]),
        format!("address add {MOVED}/24 dev m0"),
        format!("route replace default via {}", inner[1]),
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        hosts.ip("a", &words).unwrap();
    }
    let is_moved = || {
        let said = said(&hosts);
        said["made"]["PCP"].as_u64() > Some(made) && said["external"].is_string()
    };
    assert!(eventually(is_moved), "{}\n{}", said(&hosts), hosts.log("a"));
    let is_listed = || mappings(&hosts).contains(&format!("dnat ip to {MOVED}:4783"));
    assert!(eventually(is_listed), "{}", mappings(&hosts));
    hosts.stop("a").unwrap();
    // That of an address that the node does not have any more ends with its lease.
    let is_gone = || !mappings(&hosts).contains(MOVED);
    assert!(eventually(is_gone), "{}", mappings(&hosts));
}
