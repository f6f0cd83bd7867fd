use super::*;
use crate::{
    channel::{ChannelService, Setup},
    config::{ChannelConfig, Entity},
};
use std::{sync::mpsc, time::Duration};
use virga_ebpf::header::Subnet;
use virga_transport::{
    Mode, NodeConfig, NodeLimits,
    forward::Forwarder,
    worker::{COMMANDS_MAX, Task, Worker, WorkerConfig, WorkerHandle},
};

fn worker() -> WorkerHandle<Service> {
    let seed = crate::keys::Secret::new([2; 32]);
    let entity = crate::keys::EntityKey::from(seed).public;
    let name = ChannelName::parse("a").unwrap();
    let channel = ChannelConfig {
        hash: name.hash(0),
        name,
        salt: 0,
        priority: 0,
        mode: Mode::Ordered,
        hold_max_s: 30,
        max_rate_pps: None,
        publish: Vec::new(),
        subscribe: vec![Entity::from_key(entity)],
    };
    let service = ChannelService::new(&Setup {
        entity,
        peers: Vec::new(),
        channels: vec![channel],
    });
    let node = NodeConfig {
        network_id: "test".into(),
        psk: [1; 32],
        psk_generation: 0,
        node_key: [3; 32],
        entity_key: [2; 32],
        subnet: Subnet(0),
        peers: Vec::new(),
        share: virga_transport::Share::WHOLE,
        limits: NodeLimits::default(),
        started_unix_ns: 0,
        seed: [4; 32],
    };
    let config = WorkerConfig {
        listen: ([127, 0, 0, 1], 0).into(),
        core: None,
    };
    Worker::spawn(&config, node, Forwarder::new(), service, |_| {}).unwrap()
}

/// How many subscribers the worker has; none while it is busy.
async fn subscribers(commander: &Commander<Service>) -> Option<usize> {
    let (reply, answer) = oneshot::channel();
    let count: Task<Service> = Box::new(move |_, parts| {
        let status = parts.service.status(0);
        reply.send(status.subscribers.len()).unwrap();
    });
    commander.run(count).ok()?;
    answer.await.ok()
}

#[tokio::test]
async fn a_subscriber_that_leaves_while_the_worker_is_busy_is_let_go() {
    let worker = worker();
    let commander = worker.commander();
    let (outlet, _drain) = outlet::queue();
    let (reply, answer) = oneshot::channel();
    let subscribe = Command::Subscribe {
        pattern: Pattern::Channel(ChannelName::parse("a").unwrap()),
        outlet,
        done: Box::new(move |subscribed| reply.send(subscribed).unwrap()),
    };
    assert!(commander.command(subscribe).is_ok());
    let id = answer.await.unwrap().unwrap();

    let (begun, has_begun) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let block: Task<Service> = Box::new(move |_, _| {
        begun.send(()).unwrap();
        released.recv().unwrap();
    });
    assert!(commander.run(block).is_ok());
    has_begun.recv().unwrap();
    for _ in 0..COMMANDS_MAX {
        let other = Command::Drained(SubscriberId(999));
        assert!(commander.command(other).is_ok());
    }
    leave(commander, id);
    release.send(()).unwrap();
    let gone = async {
        while subscribers(commander).await != Some(0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone)
        .await
        .expect("it is let go");
    worker.stop();
}
