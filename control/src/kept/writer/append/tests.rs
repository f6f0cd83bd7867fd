use super::*;
use crate::{
    channel::Presence,
    dispatch::Dispatch,
    kept::{
        ancestors::{
            Coming,
            tests::{Author, feed_of},
        },
        compaction::Compaction,
        places::Places,
        status::describe,
        writer::{Ancestors, Begun, Mesh},
    },
    keys::{EntityKey, Secret},
    reading::Reading,
    replicas::Replicas,
    signing::Signing,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicBool},
};
use tokio::sync::watch;
use virga_state::{
    Options,
    batch::Observed,
    io::{
        driver::{Driver, Way},
        open::OpenLog,
    },
};
use virga_transport::{ChannelName, io::clock::Clock};

const CHANNEL: &str = "test/signed";

/// A thread with a log of the channel; nothing runs it, and there is no other node.
struct Desk {
    thread: Thread,
    signing: Signing,
    _to: mpsc::Sender<Input>,
    inputs: mpsc::Receiver<Input>,
}

impl Desk {
    fn new(folder: &std::path::Path) -> Self {
        let channel = ChannelName::parse(CHANNEL).unwrap();
        let name = LogName::parse(CHANNEL).unwrap();
        let open = OpenLog::open(&folder.join("logs"), &name, Options::default(), [7; 16]).unwrap();
        let entity = EntityKey::from(Secret::new([9; 32]));
        let signing = Signing::new(folder, &entity);
        let presence = Arc::new(Presence::new(&[], 1));
        let dispatch = Dispatch::new([], presence, Clock::start());
        let (to, inputs) = mpsc::channel(8);
        let places = Places::default();
        let around = Mesh::new(dispatch.clone(), Reading::default());
        let shared = (Coming::default(), places.clone());
        let thread = Thread {
            states: vec![watch::Sender::new(describe(&open, &channel))],
            logs: vec![open],
            seats: vec![None],
            signed: vec![Some(channel)],
            signing: signing.clone(),
            replicas: Replicas::default(),
            dispatch,
            begun: BTreeMap::new(),
            ancestors: Ancestors::new(around, shared, to.downgrade(), Handle::current()),
            named: None,
            places,
            early: BTreeMap::new(),
            compaction: Compaction::new(vec![None], to.downgrade()),
            to: to.downgrade(),
            driver: Driver::open(Way::Auto),
            is_late: Arc::new(AtomicBool::new(false)),
        };
        Self {
            thread,
            signing,
            _to: to,
            inputs,
        }
    }

    /// Looks through the log, as at a start.
    async fn look(&mut self) {
        self.thread.look_back(&Handle::current(), 0..1);
        match self.inputs.recv().await {
            Some(Input::LookedBack { log, back }) => self.thread.looked_back(log, *back),
            _ => panic!("it is looked through once"),
        }
    }

    /// A live batch.
    fn arrives(&mut self, message: &Bytes) {
        let arrived = self.thread.append_arrived(0, message, Instant::now());
        arrived.unwrap();
    }

    fn fetched(&mut self, messages: &[Bytes]) -> bool {
        self.thread.fetched(0, feed_of(&messages[0]), messages)
    }

    /// How many events came as others name them, were missing in front of others, came again and were refused, and how many
    /// there are.
    fn counts(&self) -> [u64; 5] {
        let state = self.thread.states[0].borrow();
        let end = self.thread.logs[0].log.end();
        [
            state.named,
            state.repaired,
            state.repeated,
            state.refused,
            end,
        ]
    }
}

/// What somebody says, and what another says who has observed all of it.
fn told(count: u64) -> (Vec<Bytes>, Bytes) {
    let (mut one, mut other) = (Author::new(1, CHANNEL), Author::new(2, CHANNEL));
    let messages: Vec<Bytes> = (0..count).map(|at| one.say(&at.to_be_bytes())).collect();
    let (feed, (count, head)) = (feed_of(&messages[0]), one.end.end());
    let observed = Observed { feed, count, head };
    (messages, other.say_after(vec![observed], b"seen"))
}

#[tokio::test]
async fn what_was_fetched_is_appended_once_and_in_order_and_counted_as_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = Desk::new(folder.path());
    desk.look().await;
    let (messages, naming) = told(10);
    let feed = feed_of(&messages[0]);
    desk.arrives(&messages[0]);
    // Nobody asked for it: it is what was missing in front of something.
    assert!(desk.fetched(&messages[1..2]));
    assert_eq!(desk.counts(), [0, 1, 0, 0, 2]);
    desk.arrives(&naming);
    let due = Instant::now() + Duration::from_secs(1);
    assert!(desk.thread.ancestors.begin_names(due).is_empty());
    assert!(desk.thread.ancestors.is_named(feed));
    assert!(desk.fetched(&messages[2..5]));
    assert_eq!(desk.counts(), [3, 1, 0, 0, 6]);
    // What is there is passed over, and the rest of the answer taken.
    assert!(desk.fetched(&messages[..6]));
    assert_eq!(desk.counts(), [4, 1, 0, 0, 7]);
    // What does not follow, what is not as it was signed, and what is behind that.
    assert!(!desk.fetched(&messages[7..]));
    let mut changed = messages[6].to_vec();
    *changed.last_mut().unwrap() ^= 1;
    assert!(!desk.fetched(&[changed.into(), messages[6].clone()]));
    assert_eq!(desk.counts(), [4, 1, 0, 1, 7]);
    assert!(desk.fetched(&messages[6..]));
    for message in &messages {
        desk.arrives(message);
    }
    assert_eq!(desk.counts(), [8, 1, 10, 1, 11]);
    // A log that is kept no more takes none.
    let (other, _) = told(11);
    desk.thread.leave(0, true);
    assert!(!desk.fetched(&other[10..]));
    assert_eq!(desk.counts()[4], 11);
}

#[tokio::test]
async fn nobody_has_what_is_named_and_that_is_told_of_and_asked_for_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = Desk::new(folder.path());
    desk.look().await;
    let (messages, naming) = told(10);
    let feed = feed_of(&messages[0]);
    desk.arrives(&messages[0]);
    desk.arrives(&naming);
    let unfound = |desk: &Desk, why: Unfound| desk.thread.states[0].borrow().unfound[why.name()];
    let due = Instant::now() + Duration::from_secs(1);
    desk.thread.ancestors.begin_names(due);
    // Another search's end is not this one's.
    let nobody = Err(Unfound::Nobody);
    desk.thread.searched(0, (feed, 99), nobody);
    assert!(desk.thread.ancestors.is_named(feed));
    desk.thread.searched(0, (feed, 1), nobody);
    assert!(!desk.thread.ancestors.is_named(feed));
    assert_eq!(unfound(&desk, Unfound::Nobody), 1);
    // A minute later it is asked for again, and less and less often once it has waited for long.
    let begin = |desk: &mut Desk, after| {
        let now = due + Duration::from_secs(after);
        let told = desk.thread.ancestors.begin_names(now);
        (told, desk.thread.ancestors.is_named(feed))
    };
    assert_eq!(begin(&mut desk, 62), (Vec::new(), true));
    desk.thread.searched(0, (feed, 2), nobody);
    assert_eq!(unfound(&desk, Unfound::Nobody), 2);
    let late = vec![(0, Unfound::Late)];
    assert_eq!(begin(&mut desk, 400), (late, false));
    assert_eq!(begin(&mut desk, 461), (Vec::new(), true));
    desk.thread.searched(0, (feed, 3), nobody);
    assert_eq!(unfound(&desk, Unfound::Nobody), 2, "that was told of");
}

/// A folder with a log that these messages came to, and nothing that runs it.
async fn kept(messages: &[Bytes]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = Desk::new(folder.path());
    desk.look().await;
    for message in messages {
        desk.arrives(message);
    }
    desk.thread.settle();
    folder
}

/// How many events of which feeds what was signed says that it observed.
fn named_by(signed: &[u8]) -> Vec<(FeedId, u64)> {
    let (batch, _) = bundle::parse(signed).unwrap();
    let observed = batch.frontier.iter().map(|one| (one.feed, one.count));
    observed.collect()
}

#[tokio::test]
async fn what_is_signed_after_a_start_names_what_the_log_had_before() {
    let (messages, _) = told(3);
    let folder = kept(&messages).await;
    let mut desk = Desk::new(folder.path());
    desk.signing.begin_looking();
    let (signing, own) = (
        desk.signing.clone(),
        ChannelName::parse("test/own").unwrap(),
    );
    let events = vec![Bytes::from_static(b"own")];
    let signed = tokio::spawn(async move {
        signing.looked(None).await;
        signing.sign(&own, events, None).await.unwrap().0
    });
    // It has time to, and does not.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!signed.is_finished());
    desk.look().await;
    let signed = signed.await.unwrap();
    assert_eq!(named_by(&signed[0]), [(feed_of(&messages[0]), 3)]);
}

#[tokio::test]
async fn what_is_signed_after_a_log_was_begun_names_what_that_had_before() {
    let (messages, _) = told(3);
    let (before, folder) = (kept(&messages).await, tempfile::tempdir().unwrap());
    let mut desk = Desk::new(folder.path());
    // What is signed waits no more for what the start looks through.
    desk.thread.look_back(&Handle::current(), 0..1);
    assert!(!desk.signing.is_looking());
    let at_start = desk.inputs.recv().await;
    assert!(matches!(at_start, Some(Input::LookedBack { log: 0, .. })));
    let (channel, name) = (desk.thread.signed[0].clone(), LogName::parse(CHANNEL));
    let (channel, logs) = (channel.unwrap(), before.path().join("logs"));
    let open = OpenLog::open(&logs, &name.unwrap(), Options::default(), [8; 16]).unwrap();
    let log = desk.thread.begin(Begun {
        state: watch::Sender::new(describe(&open, &channel)),
        open,
        channel,
        rules: None,
    });
    desk.thread.look_back_begun(&Handle::current(), log);
    assert!(desk.signing.is_looking());
    let Some(Input::LookedBack { log, back }) = desk.inputs.recv().await else {
        panic!("it is looked through once");
    };
    desk.thread.looked_back(log, *back);
    assert!(
        !desk.signing.is_looking(),
        "the other one is not waited for"
    );
    let (own, events) = (
        ChannelName::parse("test/own").unwrap(),
        vec![Bytes::from_static(b"own")],
    );
    let signed = desk.signing.sign(&own, events, None).await.unwrap().0;
    assert_eq!(named_by(&signed[0]), [(feed_of(&messages[0]), 3)]);
}

#[tokio::test]
async fn what_is_signed_does_not_wait_for_a_log_that_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let mut desk = Desk::new(folder.path());
    desk.signing.begin_looking();
    desk.thread.look_back(&Handle::current(), 0..1);
    assert!(desk.signing.is_looking());
    desk.thread.leave(0, true);
    assert!(!desk.signing.is_looking());
}
