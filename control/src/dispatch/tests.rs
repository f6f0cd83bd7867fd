use super::*;
use crate::{
    channel::{Plan, Policy, PublishError, Setup, entry::Remote, status::ServiceStatus},
    config::{ChannelConfig, Entity, Listed},
};
use bytes::Bytes;
use std::{collections::BTreeSet, pin::Pin, sync::mpsc};
use virga_ebpf::{
    header::{NodeId, Subnet},
    subnet::Visibility,
};
use virga_transport::{
    ChannelName, Mode, NodeConfig, NodeLimits, Share,
    forward::Forwarder,
    io::{driver::DriverConfig, steer::Steer},
    worker::{Beginning, COMMANDS_MAX, Workers, WorkersConfig, spawn_all},
};

/// A node without peers, on so many workers; it may publish and subscribe on `a`.
struct Stage {
    workers: Workers<Service>,
    dispatch: Dispatch,
}

fn name(text: &str) -> ChannelName {
    ChannelName::parse(text).unwrap()
}

fn pattern() -> Pattern {
    Pattern::Channel(name("a"))
}

impl Stage {
    fn new(workers: usize, mode: Mode) -> Self {
        let seed = crate::keys::Secret::new([2; 32]);
        let entity = crate::keys::EntityKey::from(seed).public;
        let entities = || vec![Entity::from_key(entity)];
        let channels = vec![ChannelConfig {
            hash: name("a").hash(0),
            name: name("a"),
            salt: 0,
            priority: 0,
            mode,
            hold_max_s: 30,
            fan_out: 0,
            max_rate_pps: None,
            visibility: Visibility::Global,
            export_to: BTreeSet::new(),
            publish: Listed::Only(entities()),
            subscribe: Listed::Only(entities()),
            issuers: Vec::new(),
            capabilities: crate::config::CapabilityRules::default(),
            keep: None,
            scopes: Vec::new(),
        }];
        let presence = Arc::new(Presence::new(&channels, workers));
        let config = WorkersConfig {
            listen: ([127, 0, 0, 1], 0).into(),
            cores: vec![None; workers],
            steer: Steer::Kernel,
            driver: DriverConfig::default(),
        };
        let beginning = |share| Beginning {
            node: NodeConfig {
                network_id: "test".into(),
                psk: [1; 32],
                psk_generation: 0,
                node_key: [3; 32],
                entity_key: [2; 32],
                subnet: Subnet(0),
                peers: Vec::new(),
                share,
                handshake: virga_transport::HandshakePolicy::default(),
                limits: NodeLimits::default(),
                started_unix_ns: 0,
                seed: [share.worker(); 32],
            },
            forwarder: Forwarder::new(),
            service: ChannelService::new(&Setup {
                entity,
                peers: Vec::new(),
                channels: channels.clone(),
                share,
                presence: Arc::clone(&presence),
                tokens: Vec::new(),
                statements: crate::capability::Statements::default(),
                revocations: Vec::new(),
                unix_zero_ns: 0,
                neighbours: BTreeSet::new(),
                kept_up: BTreeSet::new(),
            }),
        };
        let workers = spawn_all(&config, beginning, |_: Share, _| {}).unwrap();
        let dispatch = Dispatch::new(
            workers.commanders().cloned(),
            Arc::clone(&presence),
            workers.clock(),
        );
        Self { workers, dispatch }
    }

    /// Until so many events have expired, and so many were too large: as all workers count it.
    async fn until_counted(&self, expired: u64, too_large: u64) {
        let status = |now_ns, parts: &mut Parts<Service>| parts.service.status(now_ns);
        let counts = async || {
            let services = self.dispatch.with_all(status).await.unwrap();
            let node = ServiceStatus::of_node(services);
            let of = |reason| node.reasons.get(reason).copied().unwrap_or(0);
            [of("expired"), node.channels[0].dropped, of("too_large")]
        };
        let all = [expired, expired, too_large];
        let counted = async {
            while counts().await != all {
                tokio::time::sleep(BUSY_PAUSE).await;
            }
        };
        in_time(counted).await;
        // What is counted twice is so a moment later.
        tokio::time::sleep(10 * BUSY_PAUSE).await;
        assert_eq!(counts().await, all);
    }

    /// How many subscribers each worker has.
    async fn subscribers(&self) -> Vec<usize> {
        let count = |_, parts: &mut Parts<Service>| parts.service.status(0).subscribers.len();
        self.dispatch.with_all(count).await.unwrap()
    }
}

fn events(range: std::ops::Range<usize>) -> Vec<Bytes> {
    range.map(|n| Bytes::from(n.to_string())).collect()
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    let patience = Duration::from_secs(60);
    tokio::time::timeout(patience, future)
        .await
        .expect("in time")
}

#[tokio::test]
async fn a_program_on_the_node_gets_each_event_once_whatever_the_workers() {
    for (workers, mode) in [
        (1, Mode::Ordered),
        (3, Mode::Ordered),
        (3, Mode::Unreliable),
    ] {
        let stage = Stage::new(workers, mode);
        let mut first = stage.dispatch.subscribe(&pattern()).await.unwrap();
        let second = stage.dispatch.subscribe(&pattern()).await.unwrap();
        assert_eq!(stage.subscribers().await, vec![2; workers]);
        let report = stage
            .dispatch
            .publish((&name("a"), None), events(0..50), 3)
            .await;
        let report = report.unwrap();
        assert_eq!((report.published, report.refused), (50, 3));
        assert_eq!((report.subscribers, report.unheard), (2, 0));
        let mut got = Vec::new();
        while got.len() < 50 {
            let taken = in_time(first.take(512)).await;
            got.extend(taken.into_iter().map(|d| (d.sequence, d.payload)));
        }
        let all: Vec<_> = (1..).zip(events(0..50)).collect();
        assert_eq!(got, all);
        let waits = |times: &Times| times.summary().count;
        assert_eq!(stage.dispatch.delivery_wait(waits), 50);
        drop((first, second));
        while stage.subscribers().await != vec![0; workers] {}
        let report = stage
            .dispatch
            .publish((&name("a"), None), events(0..5), 0)
            .await;
        assert_eq!(report.unwrap().unheard, 5);
        let status = |now_ns, parts: &mut Parts<Service>| parts.service.status(now_ns);
        let services = stage.dispatch.with_all(status).await.unwrap();
        let node = ServiceStatus::of_node(services);
        assert_eq!(node.channels[0].published, 55);
        assert_eq!(node.reasons["too_large"], 3);
        stage.workers.stop();
    }
}

#[tokio::test]
async fn what_the_services_refuse_is_refused_whole() {
    let stage = Stage::new(2, Mode::Ordered);
    let other = Pattern::Prefix(name("b"));
    let refused = stage.dispatch.subscribe(&other).await.err().unwrap();
    assert_eq!(refused, SubscribeError::UnknownChannel(other).into());
    assert_eq!(stage.subscribers().await, [0, 0]);
    let refused = stage
        .dispatch
        .publish((&name("b"), None), Vec::new(), 0)
        .await;
    assert_eq!(refused, Err(PublishError::UnknownChannel(name("b"))));
    let dispatch = stage.dispatch.clone();
    stage.workers.stop();
    let ended = dispatch.publish((&name("a"), None), Vec::new(), 0).await;
    assert_eq!(ended, Err(PublishError::Stopping));
    let ended = dispatch.subscribe(&pattern()).await.err();
    assert_eq!(ended, Some(NoSubscription::Ended(Ended)));
}

/// Two workers of which one is busy, and subscribers that do not read: who publishes has the turn until it is let go.
async fn held_up_by(busy: usize) -> (Stage, Busy) {
    let stage = Stage::new(2, Mode::Ordered);
    stage.hold().await;
    let busy = Busy::new(&stage, busy);
    (stage, busy)
}

/// Has begun, and cannot end yet.
async fn pending<F: Future>(future: F) -> Pin<Box<F>> {
    let mut future = Box::pin(future);
    assert!(futures_util::poll!(&mut future).is_pending());
    future
}

/// A worker that does nothing until it is let go, and has no room for another command.
struct Busy {
    commander: Commander<Service>,
    release: mpsc::Sender<()>,
}

impl Busy {
    fn new(stage: &Stage, worker: usize) -> Self {
        let commander = stage.dispatch.commanders[worker].clone();
        let (begun, has_begun) = mpsc::channel();
        let (release, released) = mpsc::channel::<()>();
        let block: Task<Service> = Box::new(move |_, _| {
            begun.send(()).unwrap();
            released.recv().unwrap();
        });
        assert!(commander.run(block).is_ok());
        has_begun.recv().unwrap();
        let nothing = || Command::Drained(SubscriberId(999));
        for _ in 0..COMMANDS_MAX {
            assert!(commander.command(nothing()).is_ok());
        }
        Self { commander, release }
    }

    /// Lets it go; returns once it has done all that it was asked.
    async fn go_on(self) {
        self.release.send(()).unwrap();
        let (done, is_done) = oneshot::channel();
        let last: Task<Service> = Box::new(move |_, _| done.send(()).unwrap());
        run(&self.commander, last).await.unwrap();
        is_done.await.unwrap();
    }
}

impl Stage {
    /// A subscriber at each worker that wants nothing yet: all batches wait.
    async fn hold(&self) {
        let hold = |_, parts: &mut Parts<Service>| {
            let remote = Remote {
                patterns: 1,
                held: true,
                ..Remote::default()
            };
            parts.service.entries[0].roster.insert(NodeId(9), remote);
            parts.service.note_presence(0);
        };
        self.dispatch.with_all(hold).await.unwrap();
    }

    /// The first event of each batch that waits, by worker.
    async fn waiting(&self) -> Vec<Vec<Bytes>> {
        let first = |_, parts: &mut Parts<Service>| {
            let waiting = parts.service.entries[0].waiting.iter();
            waiting.map(|batch| batch.events()[0].clone()).collect()
        };
        self.dispatch.with_all(first).await.unwrap()
    }

    async fn until_waiting(&self, batches: usize) -> Vec<Vec<Bytes>> {
        loop {
            let waiting = self.waiting().await;
            if waiting.iter().all(|at_one| at_one.len() == batches) {
                return waiting;
            }
            tokio::time::sleep(BUSY_PAUSE).await;
        }
    }
}

#[tokio::test]
async fn two_publishers_at_a_time_are_in_one_order_at_all_workers() {
    let (stage, busy) = held_up_by(1).await;
    let channel = name("a");
    let publish = |range| stage.dispatch.publish((&channel, None), events(range), 0);
    let mut first = pending(publish(1..2)).await;
    in_time(busy.go_on()).await;
    // The other worker has room again, and this one comes before the first one looks.
    let mut second = pending(publish(2..3)).await;
    let waiting = tokio::select! {
        _ = &mut first => panic!("its subscribers hold it up"),
        _ = &mut second => panic!("its subscribers hold it up"),
        waiting = in_time(stage.until_waiting(2)) => waiting,
    };
    assert_eq!(waiting, [events(1..3), events(1..3)]);
    stage.workers.stop();
    let ended = tokio::join!(first, second);
    assert_eq!(ended.0, Err(PublishError::Stopping));
    assert_eq!(ended.1, Err(PublishError::Stopping));
}

#[tokio::test]
async fn a_deadline_bounds_the_wait_for_the_turn_too() {
    let (stage, busy) = held_up_by(1).await;
    let channel = name("a");
    let _first = pending(stage.dispatch.publish((&channel, None), events(1..2), 0)).await;
    // It has the turn until the busy worker takes its part.
    let within = Some(Duration::from_millis(20));
    let second = stage.dispatch.publish((&channel, within), events(2..5), 1);
    let report = in_time(second).await.unwrap();
    assert_eq!(
        (report.published, report.expired, report.refused),
        (0, 3, 1)
    );
    in_time(busy.go_on()).await;
    stage.until_counted(3, 1).await;
    stage.workers.stop();
}

#[tokio::test]
async fn what_a_fan_out_gives_up_before_its_turn_is_counted_once() {
    let (stage, busy) = held_up_by(1).await;
    let channel = name("a");
    let _first = pending(stage.dispatch.publish((&channel, None), events(1..2), 0)).await;
    for within in [0, 20] {
        let plan = Plan {
            policy: Policy::FailFast,
            within: Duration::from_millis(within),
            ..Plan::default()
        };
        let late = in_time(stage.dispatch.fan_out(&channel, events(2..5), plan)).await;
        let late = late.unwrap();
        assert_eq!((late.is_met, late.published), (false, 0));
    }
    in_time(busy.go_on()).await;
    stage.until_counted(6, 0).await;
    stage.workers.stop();
}

/// Else who publishes much that is late while a worker is busy has the node hold all of that.
#[tokio::test]
async fn of_however_many_late_events_one_command_is_on_its_way() {
    let (stage, busy) = held_up_by(0).await;
    let channel = name("a");
    let _first = pending(stage.dispatch.publish((&channel, None), events(1..2), 0)).await;
    let tasks = || {
        tokio::runtime::Handle::current()
            .metrics()
            .num_alive_tasks()
    };
    let before = tasks();
    for _ in 0..500 {
        let late = (&channel, Some(Duration::ZERO));
        let late = stage.dispatch.publish(late, events(2..5), 1);
        assert_eq!(in_time(late).await.unwrap().expired, 3);
    }
    assert_eq!(tasks(), before + 1);
    in_time(busy.go_on()).await;
    stage.until_counted(1_500, 500).await;
    // And again, once those are counted.
    let _turn = stage.dispatch.gate(0).pass(None).await;
    let late = (&channel, Some(Duration::ZERO));
    let late = stage.dispatch.publish(late, events(2..5), 1);
    assert_eq!(in_time(late).await.unwrap().expired, 3);
    stage.until_counted(1_503, 501).await;
    stage.workers.stop();
}

#[tokio::test]
async fn a_publish_that_is_given_up_half_way_goes_to_every_worker() {
    let (stage, busy) = held_up_by(1).await;
    let channel = name("a");
    drop(pending(stage.dispatch.publish((&channel, None), events(1..2), 0)).await);
    in_time(busy.go_on()).await;
    assert_eq!(
        in_time(stage.until_waiting(1)).await,
        [events(1..2), events(1..2)]
    );
    stage.workers.stop();
}

#[tokio::test]
async fn publishers_that_go_away_leave_no_more_than_so_many_batches() {
    let stage = Stage::new(2, Mode::Ordered);
    stage.hold().await;
    let channel = name("a");
    for _ in 0..BATCHES_WAITING_MAX + 10 {
        drop(pending(stage.dispatch.publish((&channel, None), events(1..2), 0)).await);
        // A task that never gives way gets no lock at some point.
        tokio::task::yield_now().await;
    }
    let waiting = in_time(stage.until_waiting(BATCHES_WAITING_MAX)).await;
    assert_eq!(waiting[0].len(), BATCHES_WAITING_MAX);
    // One with a deadline hears that there was no place in time.
    let within = Some(Duration::from_millis(20));
    let publish = stage.dispatch.publish((&channel, within), events(1..4), 1);
    let report = in_time(publish).await.unwrap();
    assert_eq!(
        (report.published, report.expired, report.refused),
        (0, 3, 1)
    );
    stage.workers.stop();
}

#[tokio::test]
async fn a_subscriber_that_leaves_while_a_worker_is_busy_is_let_go() {
    let stage = Stage::new(2, Mode::Ordered);
    let subscribed = stage.dispatch.subscribe(&pattern()).await.unwrap();
    let busy = Busy::new(&stage, 1);
    drop(subscribed);
    in_time(busy.go_on()).await;
    in_time(async { while stage.subscribers().await != [0, 0] {} }).await;
    stage.workers.stop();
}

#[tokio::test]
async fn what_was_late_before_it_was_signed_is_not_in_the_feed() {
    let state = tempfile::tempdir().unwrap();
    let key = crate::keys::EntityKey::from(crate::keys::Secret::new([2; 32]));
    let signing = Signing::new(state.path(), &key);
    let stage = Stage::new(2, Mode::Signed);
    let dispatch = stage.dispatch.clone().signing(signing.clone());
    signing.begin_looking();
    let within = Duration::from_millis(20);
    let name = name("a");
    let late = dispatch.publish((&name, Some(within)), events(0..3), 1);
    let late = in_time(late).await.unwrap();
    assert_eq!((late.published, late.expired, late.refused), (0, 3, 1));
    stage.until_counted(3, 1).await;
    let plan = Plan {
        policy: Policy::FailFast,
        within,
        ..Plan::default()
    };
    let late = in_time(dispatch.fan_out(&name, events(0..3), plan)).await;
    let late = late.unwrap();
    assert_eq!((late.is_met, late.published), (false, 0));
    stage.until_counted(6, 1).await;
    assert!(signing.is_looking(), "it was not waited for that long");
    // Nor is what waits still as the node stops.
    let early = dispatch.publish((&name, None), events(0..1), 0);
    let stops = async {
        // It has time to be let through before.
        tokio::time::sleep(Duration::from_millis(50)).await;
        stage.workers.stop();
        signing.looked_through(0);
    };
    let (early, ()) = in_time(async { tokio::join!(early, stops) }).await;
    assert_eq!(early, Err(PublishError::Stopping));
    let signed = signing.sign(&name, events(0..1), None).await.unwrap().0;
    let (batch, _) = virga_state::bundle::parse(&signed[0]).unwrap();
    assert_eq!(batch.signed.statement.first, 1);
}
