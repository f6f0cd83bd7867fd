//! Several workers in a node: peers spread over them, packets steered, events fanned out and joined.

use crate::{
    payloads,
    stage::{Channel, RELIABLE, Stage, eventually, in_time},
};
use std::collections::BTreeMap;
use virga::mesh::Subscription;

/// From a to everybody, itself included.
const TO_ALL: Channel = Channel {
    name: "all/a",
    subscribe: &["a", "router", "b"],
    ..RELIABLE
};
/// The others' answers.
const FROM_B: Channel = Channel {
    name: "to/b",
    publish: &["b"],
    subscribe: &["a"],
    ..RELIABLE
};
const FROM_ROUTER: Channel = Channel {
    name: "to/router",
    publish: &["router"],
    ..FROM_B
};
/// Nothing of it travels again.
const UNRELIABLE: Channel = Channel {
    name: "loose/a",
    reliable: false,
    ..TO_ALL
};
const CHANNELS: [Channel; 4] = [TO_ALL, FROM_B, FROM_ROUTER, UNRELIABLE];

/// Three nodes, not running yet; at a with two workers, each has one of the others as its peer.
fn stage(workers: &[(&str, usize)]) -> Stage {
    let stage = loop {
        let stage = Stage::new(&CHANNELS);
        let parity = |name| stage.node(name).id.0 % 2;
        if parity("router") != parity("b") {
            break stage;
        }
    };
    for &(name, workers) in workers {
        let section = format!("workers = {workers}\n[forwarding]");
        stage.edit(name, "[forwarding]", &section);
    }
    stage
}

async fn start(stage: &mut Stage) {
    for name in ["router", "b", "a"] {
        stage.start(name).await;
    }
}

fn numbered(from: &str, count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|n| format!("{from} {n}").into()).collect()
}

/// The payloads of the next `count` deliveries, by the first word in them.
async fn by_sender(events: &mut Subscription, count: usize) -> BTreeMap<String, Vec<Vec<u8>>> {
    let mut all = BTreeMap::<_, Vec<_>>::new();
    for payload in payloads(events, count).await {
        let text = String::from_utf8(payload.to_vec()).unwrap();
        let sender = text.split(' ').next().unwrap().to_owned();
        all.entry(sender).or_default().push(payload.to_vec());
    }
    all
}

/// Everybody hears a, and a hears everybody: once, and in order.
async fn talk(stage: &Stage, count: usize) {
    let a = stage.mesh("a").await;
    let mut at_all = Vec::new();
    for name in ["a", "router", "b"] {
        let mesh = stage.mesh(name).await;
        at_all.push(mesh.subscribe(TO_ALL.name).await.unwrap());
    }
    let mut answers = a.subscribe_prefix("to").await.unwrap();
    let waiting = a.wait_for_subscribers(TO_ALL.name, 3);
    assert_eq!(in_time("all subscriptions", waiting).await.unwrap(), 3);
    for (name, channel) in [("b", FROM_B), ("router", FROM_ROUTER)] {
        let mesh = stage.mesh(name).await;
        let waiting = mesh.wait_for_subscribers(channel.name, 1);
        assert_eq!(in_time(channel.name, waiting).await.unwrap(), 1);
    }

    let sent = numbered("a", count);
    let reading = at_all.iter_mut().map(|events| payloads(events, count));
    let reading = futures_util::future::join_all(reading);
    let publishing = a.publish_batch(TO_ALL.name, &sent);
    let (published, arrived) = tokio::join!(publishing, reading);
    let published = published.unwrap();
    assert_eq!(published.published, count as u64);
    assert_eq!((published.subscribers, published.unheard), (3, 0));
    assert!(arrived.iter().all(|events| *events == sent), "out of order");

    for (name, channel) in [("b", FROM_B), ("router", FROM_ROUTER)] {
        let mesh = stage.mesh(name).await;
        let events = numbered(name, 100);
        let published = mesh.publish_batch(channel.name, &events).await.unwrap();
        assert_eq!(published.published, 100);
    }
    let heard = by_sender(&mut answers, 200).await;
    assert_eq!(heard["b"], numbered("b", 100));
    assert_eq!(heard["router"], numbered("router", 100));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_a_node_share_its_peers_and_every_packet_finds_its_own() {
    let mut stage = stage(&[("a", 2), ("router", 2), ("b", 2)]);
    start(&mut stage).await;
    talk(&stage, 3_000).await;
    let a = stage.status("a").await;
    assert!(a.steering.contains("the kernel puts"), "{}", a.steering);
    assert_eq!(a.workers.len(), 2);
    for worker in &a.workers {
        assert!(worker.sessions >= 1 && worker.core.is_none(), "{worker:?}");
        assert!(worker.transport.received_datagrams > 4, "{worker:?}");
        assert!(worker.socket.sent.datagrams > 4, "{worker:?}");
        // Steered before it is read: the kernel does not join runs of several senders.
        assert_eq!(worker.worker.handed_over, 0, "{worker:?}");
    }
    let sum = |of: fn(&virga::api::status::OneWorker) -> u64| a.workers.iter().map(of).sum::<u64>();
    assert_eq!(
        a.transport.received_datagrams,
        sum(|w| w.transport.received_datagrams)
    );
    assert_eq!(a.worker.turns, sum(|w| w.worker.turns));
    assert!(a.workers.iter().all(|w| w.times["handling"].count > 0));
    assert_eq!(a.delivery_wait.count, 3_200);
    let path = &a.sessions[0].path;
    assert!(
        path.datagram_bytes > 1_000 && path.window_bytes > 0,
        "{path:?}"
    );
    let channel = &a.channels[0];
    assert_eq!((channel.published, channel.sent), (3_000, 6_000));
    assert_eq!(channel.dropped, 0);
    assert_eq!(a.transport.drops["unknown_session"], 0);
    let class = a.transport.classes[&0];
    assert!(class.sent_events >= 6_000, "{class:?}");
    assert!(
        class.sent_packets > 0 && class.queued_bytes == 0,
        "{class:?}"
    );
    // Transit too is spread, by the sessions that pass.
    let router = stage.status("router").await;
    assert!(router.userspace.outcomes["redirect"].packets > 0);
    let text = stage.node("a").run(&["status"]).stdout;
    let text = String::from_utf8(text).unwrap();
    assert!(text.contains("\n  worker 1: "), "{text}");
    let text = stage.node("a").run(&["status", "--verbose"]).stdout;
    let text = String::from_utf8(text).unwrap();
    for say in [
        "\nworker 1, driver ",
        "\n  handling: ",
        "\nclass 7: ",
        "\n  delivery_wait: 3200 times; ",
    ] {
        assert!(text.contains(say), "{say:?} is not in {text}");
    }
}

/// Cores that the kernel lets a process's workers run on, worker by worker.
fn allowed(process: u32) -> BTreeMap<String, String> {
    let of_task = |task: std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().trim().to_owned()
        };
        (field("Name:"), field("Cpus_allowed_list:"))
    };
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    let tasks = tasks.map(|task| of_task(task.unwrap()));
    tasks
        .filter(|(name, _)| name.starts_with("virga-worker-"))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_stay_on_the_cores_that_are_named_or_found() {
    let mut stage = stage(&[]);
    let own = rustix::thread::sched_getaffinity(None).unwrap();
    let of_own = (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| own.is_set(*core));
    let mut named: Vec<usize> = of_own.take(2).collect();
    named.reverse();
    let section = format!("worker_cores = {named:?}\n[forwarding]");
    stage.edit("a", "[forwarding]", &section);
    stage.edit("b", "[forwarding]", "workers = \"auto\"\n[forwarding]");
    start(&mut stage).await;
    talk(&stage, 500).await;
    for (name, wanted) in [("a", Some(named)), ("b", None)] {
        let status = stage.status(name).await;
        let asked = match wanted {
            Some(_) => "worker_cores",
            None => "auto",
        };
        let printed = stage.node(name).run(&["status"]).stdout;
        let printed = String::from_utf8(printed).unwrap();
        for worker in &status.workers {
            let (core, why) = (worker.core.unwrap(), &worker.core_why);
            assert!(why.starts_with(asked) && why.contains("NUMA node"), "{why}");
            let line = format!("worker {} on core {core} ({why}): ", worker.number);
            assert!(printed.contains(&line), "{line}: {printed}");
        }
        let cores: Vec<usize> = status.workers.iter().filter_map(|w| w.core).collect();
        assert_eq!(cores.len(), status.workers.len(), "{name}");
        assert!(!cores.is_empty() && wanted.is_none_or(|wanted| wanted == cores));
        let told = (0..).zip(&cores);
        let told = told.map(|(n, core)| (format!("virga-worker-{n}"), core.to_string()));
        assert_eq!(allowed(stage.process(name)), told.collect(), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_of_one_and_of_three_workers_find_each_other_again_after_a_kill() {
    let mut stage = stage(&[("a", 1), ("router", 2), ("b", 3)]);
    start(&mut stage).await;
    talk(&stage, 500).await;
    stage.kill("b");
    // What is left of the old sessions names workers that there are no more.
    stage.edit("b", "workers = 3", "workers = 2");
    stage.start("b").await;
    talk(&stage, 500).await;
    stage.kill("a");
    stage.edit("a", "workers = 1", "workers = 3");
    stage.start("a").await;
    talk(&stage, 500).await;
    assert_eq!(stage.status("a").await.workers.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn unreliable_events_wait_for_no_other_workers_peer() {
    let mut stage = stage(&[("a", 2), ("router", 2), ("b", 1)]);
    start(&mut stage).await;
    let mut events = stage
        .mesh("router")
        .await
        .subscribe(UNRELIABLE.name)
        .await
        .unwrap();
    let _gone = stage
        .mesh("b")
        .await
        .subscribe(UNRELIABLE.name)
        .await
        .unwrap();
    let a = stage.mesh("a").await;
    let waiting = a.wait_for_subscribers(UNRELIABLE.name, 2);
    assert_eq!(in_time("both", waiting).await.unwrap(), 2);
    // It acknowledges nothing from now on: its queue at a fills up and stays full.
    stage.signal("b", "-STOP");
    let sender = tokio::spawn(async move {
        for round in 0..40 {
            // Ten megabytes in all, of which the queue takes two.
            let batch = vec![[round; 500]; 500];
            let publishing = a.publish_batch(UNRELIABLE.name, &batch);
            let published = in_time("a round", publishing).await.unwrap();
            assert_eq!(published.published, 500);
        }
    });
    in_time("an event", payloads(&mut events, 1_000)).await;
    in_time("twenty thousand events past a peer that is stuck", sender)
        .await
        .unwrap();
    eventually("what b lost is counted", async || {
        let a = stage.mesh("a").await.status().await.ok()?;
        (a.channel_reasons["peer_full"] > 1_000).then_some(())
    })
    .await;
    stage.signal("b", "-CONT");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_node_takes_little_memory() {
    let stage = Stage::running(&CHANNELS).await;
    let process = stage.process("a");
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    // Without the pages of the binary, which is large without optimisation: `scripts/bench transport` has all of a release.
    let resident = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    let kib = resident.and_then(|r| r.trim().strip_suffix(" kB"));
    let kib: u32 = kib.unwrap().parse().unwrap();
    println!("{} MiB resident", kib / 1024);
    assert!(kib < 24 * 1024, "{kib} KiB");
}
