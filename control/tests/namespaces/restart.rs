//! The daemon goes, packets go on.

use std::time::Duration;

use virga::nic::maps;
use virga_ebpf::{limits::LAYOUT_VERSION, publish::Store as _};

use crate::{
    hosts::eventually,
    stage::{
        LOSSY, RELIABLE, Sink, V4, assert_complete, forwarded, line, publish, publishing, virga,
    },
};

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn restarting_and_upgrading_the_router_loses_no_transit_packet() {
    let mut hosts = line("native", &V4);
    let sink = Sink::subscribe(&hosts, LOSSY).await;
    let program = program_id(&hosts);
    let published = publishing(&hosts, LOSSY, 2_000, Duration::from_secs(8));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(
        hosts.stop("router").unwrap(),
        "it ends well: {}",
        hosts.log("router")
    );
    tokio::time::sleep(Duration::from_millis(700)).await;
    hosts.start("router").unwrap();
    let upgraded = program_id(&hosts);
    assert_ne!(
        program, upgraded,
        "a new daemon brings a program of its own"
    );
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = forwarded(&hosts, "router");
    assert!(before > 0);
    hosts.kill("router").unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    hosts.start("router").unwrap();
    assert!(
        forwarded(&hosts, "router") >= before,
        "counters go on where they were"
    );
    let count = published.await.unwrap();
    assert_complete(&sink.numbers().await, count);
    println!(
        "{count} events on an unreliable stream, a stop, a kill -9 and two upgrades: none lost"
    );
}

fn links(folder: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder.join("links")).unwrap();
    entries
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

/// Id of the program that runs on the router's interface.
fn program_id(hosts: &crate::hosts::Hosts) -> String {
    let shown = hosts
        .run("router", "ip", &["-details", "link", "show", "dev", "ma"])
        .unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    let id = shown
        .split("prog/xdp id ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next());
    id.unwrap_or_else(|| panic!("no XDP program on the interface: {shown}"))
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn an_end_node_that_is_killed_and_started_again_is_known_again() {
    let mut hosts = line("native", &V4);
    let sink = Sink::subscribe(&hosts, RELIABLE).await;
    let count = publish(&hosts, RELIABLE, 200, Duration::from_secs(1)).await;
    assert_complete(&sink.numbers().await, count);
    hosts.kill("b").unwrap();
    hosts.start("b").unwrap();
    let sink = Sink::subscribe(&hosts, RELIABLE).await;
    let count = publish(&hosts, RELIABLE, 200, Duration::from_secs(1)).await;
    assert_complete(&sink.numbers().await, count);
    hosts.kill("a").unwrap();
    hosts.start("a").unwrap();
    let sink = Sink::subscribe(&hosts, RELIABLE).await;
    let count = publish(&hosts, RELIABLE, 200, Duration::from_secs(1)).await;
    assert_complete(&sink.numbers().await, count);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn pins_have_readable_names_and_detach_removes_them() {
    let mut hosts = line("native", &V4);
    let name = hosts.node_name("router");
    let folder = std::path::Path::new("/sys/fs/bpf/virga").join(&name);
    assert!(
        folder.join("programs/virga").exists()
            && links(&folder).iter().any(|l| l.starts_with("ma-"))
    );
    match std::process::Command::new("bpftool")
        .args(["prog", "show", "pinned"])
        .arg(folder.join("programs/virga"))
        .output()
    {
        Err(error) => println!("skipped: bpftool cannot be run: {error}"),
        Ok(shown) if !shown.status.success() => {
            println!(
                "skipped: bpftool: {}",
                String::from_utf8_lossy(&shown.stderr)
            );
        }
        Ok(shown) => {
            let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
            assert!(shown.contains("name virga"), "{shown}");
            for map in maps::MAP_NAMES {
                let path = folder.join(maps_of(65_536)).join(map);
                let shown = std::process::Command::new("bpftool")
                    .args(["map", "show", "pinned"])
                    .arg(path)
                    .output()
                    .unwrap();
                let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
                assert!(shown.contains(&format!("name {map}")), "{shown}");
            }
        }
    }
    let path = folder.to_string_lossy().into_owned();
    let nobody = [
        "--reuid",
        "65534",
        "--regid",
        "65534",
        "--clear-groups",
        "flock",
        "-n",
        &path,
        "true",
    ];
    assert!(
        hosts.run("router", "setpriv", &nobody).is_err(),
        "nobody else may lock it"
    );
    let file = hosts.folder.join("router/node.toml");
    let second = hosts.folder.join("router/second.toml");
    let before = links(&folder);
    for mode in ["auto", "userspace"] {
        let text = std::fs::read_to_string(&file).unwrap();
        // It would pin maps of another size.
        let text = text.replace("[forwarding]", "[forwarding]\ndestinations_max = 1000");
        let text = text.replace("\"native\"", &format!("\"{mode}\""));
        let text = text
            .replace("0.0.0.0:4783", "0.0.0.0:4799")
            .replace("router.sock", "second.sock")
            .replace("/state\"", "/second-state\"");
        std::fs::write(&second, text).unwrap();
        let run = ["node", "run", "--config", &second.to_string_lossy()].map(str::to_owned);
        let run: Vec<&str> = run.iter().map(String::as_str).collect();
        let refused = hosts
            .run("router", &virga().to_string_lossy(), &run)
            .unwrap_err();
        assert!(
            refused.to_string().contains("stop it first"),
            "{mode}: {refused}"
        );
        assert!(!folder.join(maps_of(1_000)).exists(), "{mode}");
        assert_eq!(links(&folder), before, "{mode}");
    }
    let detach = ["node", "detach", &name];
    let refused = hosts
        .run("router", &virga().to_string_lossy(), &detach)
        .unwrap_err();
    assert!(refused.to_string().contains("stop it first"), "{refused}");
    hosts.stop("router").unwrap();
    assert!(
        folder.exists(),
        "a stopped daemon leaves the NIC path running"
    );
    hosts
        .run(
            "router",
            &virga().to_string_lossy(),
            &["node", "detach", &name],
        )
        .unwrap();
    assert!(!folder.exists());
    let is_attached = || {
        let shown = hosts
            .run("router", "ip", &["link", "show", "dev", "ma"])
            .unwrap();
        String::from_utf8_lossy(&shown.stdout).contains("prog/xdp")
    };
    assert!(
        eventually(|| !is_attached()),
        "the program is off the interface"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn another_map_layout_and_back_again_loses_no_transit_packet() {
    let mut hosts = line("native", &V4);
    let sink = Sink::subscribe(&hosts, LOSSY).await;
    let published = publishing(&hosts, LOSSY, 2_000, Duration::from_secs(6));
    let folder = std::path::Path::new("/sys/fs/bpf/virga").join(hosts.node_name("router"));
    let file = hosts.folder.join("router/node.toml");
    let first = std::fs::read_to_string(&file).unwrap();
    // Maps of another size are other maps: filled before the program that reads them is put in place.
    let second = first.replace("[forwarding]", "[forwarding]\ndestinations_max = 1000");
    for (text, maps, gone) in [
        (&second, maps_of(1_000), maps_of(65_536)),
        (&first, maps_of(65_536), maps_of(1_000)),
    ] {
        tokio::time::sleep(Duration::from_secs(1)).await;
        hosts.stop("router").unwrap();
        std::fs::write(&file, text).unwrap();
        hosts.start("router").unwrap();
        assert!(folder.join(maps).exists() && !folder.join(gone).exists());
    }
    let count = published.await.unwrap();
    assert_complete(&sink.numbers().await, count);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn an_older_version_over_a_newer_ones_maps_fills_its_own_and_loses_no_transit_packet() {
    let mut hosts = line("native", &V4);
    let sink = Sink::subscribe(&hosts, LOSSY).await;
    let published = publishing(&hosts, LOSSY, 2_000, Duration::from_secs(6));
    let folder = std::path::Path::new("/sys/fs/bpf/virga").join(hosts.node_name("router"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    hosts.stop("router").unwrap();
    // As a version with the next layout leaves it: its program forwards, by maps that are filled and pinned under its name.
    let newer = folder.join(format!("maps-v{}-65536", LAYOUT_VERSION + 1));
    std::fs::rename(folder.join(maps_of(65_536)), &newer).unwrap();
    {
        let (_ebpf, mut maps) = maps::load(Some(&newer), 65_536).unwrap();
        let mut settings = maps.settings().unwrap();
        assert_eq!(settings.layout, LAYOUT_VERSION);
        settings.layout = LAYOUT_VERSION + 1;
        maps.set_settings(&settings).unwrap();
    }
    let before = program_id(&hosts);
    hosts.start("router").unwrap();
    let log = hosts.log("router");
    assert!(log.contains("a newer version's maps are pinned"), "{log}");
    assert_ne!(program_id(&hosts), before, "its own program is in place");
    assert!(folder.join(maps_of(65_536)).exists() && !newer.exists());
    let count = published.await.unwrap();
    assert_complete(&sink.numbers().await, count);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: scripts/test runs it"]
async fn a_change_of_mode_or_interfaces_leaves_no_stale_program_behind() {
    let mut hosts = line("native", &V4);
    let file = hosts.folder.join("router/node.toml");
    let native = std::fs::read_to_string(&file).unwrap();
    let program_of = |hosts: &crate::hosts::Hosts, interface: &str| {
        let shown = hosts
            .run("router", "ip", &["link", "show", "dev", interface])
            .unwrap();
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        ["xdpgeneric", "xdp"]
            .into_iter()
            .find(|mode| shown.contains(&format!(" {mode} ")))
    };
    let generic = native.replace("\"native\"", "\"generic\"");
    let one = native.replace("\"ma\", \"mb\"", "\"ma\"");
    let userspace = native.replace("\"native\"", "\"userspace\"");
    for (text, on_ma, on_mb, named) in [
        (&generic, Some("xdpgeneric"), Some("xdpgeneric"), 2),
        (&native, Some("xdp"), Some("xdp"), 2),
        // mb keeps a program: the one that lets everything through, as redirect target.
        (&one, Some("xdp"), Some("xdp"), 2),
        (&userspace, None, None, 0),
    ] {
        hosts.stop("router").unwrap();
        std::fs::write(&file, text).unwrap();
        hosts.start("router").unwrap();
        let status = hosts.status("router").unwrap();
        let interfaces = status["forwarding"]["interfaces"].as_array().unwrap();
        assert_eq!(interfaces.len(), named, "{status}");
        assert!(
            eventually(|| program_of(&hosts, "ma") == on_ma),
            "{:?}",
            program_of(&hosts, "ma")
        );
        assert!(
            eventually(|| program_of(&hosts, "mb") == on_mb),
            "{:?}",
            program_of(&hosts, "mb")
        );
        let sink = Sink::subscribe(&hosts, RELIABLE).await;
        let count = publish(&hosts, RELIABLE, 200, Duration::from_secs(1)).await;
        assert_complete(&sink.numbers().await, count);
    }
}

/// The folder of maps with room for so many destinations.
fn maps_of(destinations: u32) -> String {
    format!("maps-v{LAYOUT_VERSION}-{destinations}")
}
