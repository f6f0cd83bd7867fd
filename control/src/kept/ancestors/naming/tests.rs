use super::super::{
    Arrived, Back, Coming, FIRST_EVENTS_MAX, FIRST_WITHIN, WAITS_WITHIN,
    names::{NAMED_AFTER, NAMED_WITHIN},
    tests::{Author, Node, Town, feed_of},
};
use super::*;
use crate::{
    kept::{
        places::{Found, Places},
        writer::Input,
    },
    reading::wire::{Given, Refusal, encode_batches},
};
use bytes::Bytes;
use std::time::Duration;
use tokio::{runtime::Handle, sync::mpsc};
use virga_state::{
    LogName, Options, bundle,
    history::Newest,
    io::open::{self, OpenLog},
};
use virga_transport::ChannelName;

const CHANNEL: &str = "test/signed";

/// A log, and what is done with what comes to it.
struct Desk {
    ancestors: Ancestors<Town>,
    channel: ChannelName,
    log: Vec<Bytes>,
    /// Batches that came twice.
    repeated: usize,
    /// What came of looking for what is named.
    ended: Vec<Ended>,
    _to: mpsc::Sender<Input>,
    inputs: mpsc::Receiver<Input>,
}

/// What a log says of itself that never had anything.
fn empty() -> Back {
    Back {
        newest: Newest {
            is_whole: true,
            ..Newest::default()
        },
        ..Back::default()
    }
}

impl Desk {
    fn new(nodes: &[&Node], back: Back) -> Self {
        let (to, inputs) = mpsc::channel(8);
        let shared = (Coming::default(), Places::default());
        let mut ancestors =
            Ancestors::new(Town::new(nodes), shared, to.downgrade(), Handle::current());
        let channel = ChannelName::parse(CHANNEL).unwrap();
        ancestors.looked((0, &channel), back);
        Self {
            ancestors,
            channel,
            log: Vec::new(),
            repeated: 0,
            ended: Vec::new(),
            _to: to,
            inputs,
        }
    }

    /// A live batch.
    fn arrives(&mut self, message: &Bytes) -> Arrived {
        let (log, now) = ((0, &self.channel), Instant::now());
        let arrived = self.ancestors.arrived(log, message, now);
        if arrived == Arrived::Next {
            self.append(message);
        }
        arrived
    }

    fn append(&mut self, message: &Bytes) {
        let (batch, payloads) = bundle::parse(message).unwrap();
        if self.ancestors.knows(&batch.signed.statement) {
            self.repeated += 1;
            return;
        }
        let payloads = payloads.into_iter().map(|range| &message[range]);
        let batch = batch.verify(payloads).unwrap();
        let offset = self.log.len() as u64;
        self.log.push(message.clone());
        self.ancestors.note((0, offset), &batch, 1);
        self.ancestors.names(0, &batch);
    }

    /// Until nobody looks for a feed.
    async fn settle(&mut self, feed: FeedId) {
        // What was named before the log was opened is noted now.
        for now in [Instant::now(), due()] {
            let told = self.ancestors.begin_names(now);
            assert!(told.is_empty());
        }
        while self.ancestors.is_named(feed) || self.ancestors.waits_since(feed).is_some() {
            match self.inputs.recv().await.unwrap() {
                Input::Fetched {
                    log,
                    feed,
                    messages,
                    done,
                } => {
                    for message in &messages {
                        if self.ancestors.is_next(log, feed, message) {
                            self.append(message);
                            self.ancestors.took(feed, message.len());
                        }
                    }
                    done.send(true).unwrap();
                }
                Input::Searched {
                    feed,
                    number,
                    found,
                    ..
                } => match self.ancestors.name_ended(feed, number, found) {
                    Ended::NotThis => {
                        for message in self.ancestors.end(feed, number) {
                            self.arrives(&message);
                        }
                    }
                    ended => self.ended.push(ended),
                },
                _ => panic!("nothing else is said to a log"),
            }
            self.ancestors.begin_names(due());
        }
    }
}

/// When what is named now is asked for.
fn due() -> Instant {
    Instant::now() + NAMED_AFTER
}

/// What somebody says, each event a batch of its own, and what another says who has observed all of it.
fn told(count: usize) -> (Vec<Bytes>, Bytes, Author) {
    let (mut one, mut other) = (Author::new(1, CHANNEL), Author::new(2, CHANNEL));
    let messages: Vec<Bytes> = (0..count).map(|at| one.say(&at.to_be_bytes())).collect();
    let naming = other.say_after(vec![observed(&one, &messages)], b"seen");
    (messages, naming, one)
}

fn observed(author: &Author, messages: &[Bytes]) -> Observed {
    let (count, head) = author.end.end();
    let feed = feed_of(&messages[0]);
    Observed { feed, count, head }
}

/// A node that has these.
fn keeper(messages: &[Bytes]) -> Node {
    let messages = messages.to_vec();
    let feed = messages.first().map(feed_of);
    Node::new(move |wanted, _| {
        let after = usize::try_from(wanted.after).unwrap();
        let to = usize::try_from(wanted.to).map_or(messages.len(), |to| to.min(messages.len()));
        let has_feed = feed == Some(wanted.feed);
        let some = messages.get(after..to).filter(|_| has_feed);
        let some = some.unwrap_or_default();
        let some: Vec<Vec<u8>> = some.iter().map(|one| one.to_vec()).collect();
        Some(match some.is_empty() {
            true => Given::Refused(Refusal::NoMore, String::new()),
            false => Given::Events {
                log: [1; 16],
                next: to as u64,
                frames: encode_batches(&some).into(),
            },
        })
    })
}

#[tokio::test]
async fn what_is_named_comes_behind_what_is_there_and_a_live_copy_of_it_is_not_appended_again() {
    let (messages, naming, mut author) = told(10);
    let feed = feed_of(&messages[0]);
    let mut desk = Desk::new(&[&keeper(&messages)], empty());
    assert_eq!(desk.arrives(&naming), Arrived::Next);
    desk.settle(feed).await;
    let all = [std::slice::from_ref(&naming), &messages[..]].concat();
    assert_eq!(desk.log, all);
    assert_eq!(desk.ended, [Ended::Quiet]);
    for message in messages.iter().skip(3).chain([&naming]) {
        assert_eq!(desk.arrives(message), Arrived::Next);
    }
    assert_eq!((desk.repeated, desk.log.len()), (8, 11));
    // What follows goes on behind it; what contradicts it is there to be seen.
    let next = author.say(b"next");
    let mut twin = Author::new(1, CHANNEL);
    let other = twin.say(b"another first");
    for message in [&next, &other] {
        assert_eq!(desk.arrives(message), Arrived::Next);
    }
    assert_eq!(desk.log, [&all[..], &[next, other]].concat());
    desk.settle(feed).await;
    assert_eq!(desk.ended.len(), 1, "it is asked for once");
}

#[tokio::test]
async fn what_came_live_meanwhile_is_not_taken_again_from_another_node() {
    let (messages, naming, mut author) = told(10);
    let feed = feed_of(&messages[0]);
    let more = [author.say(b"11"), author.say(b"12")];
    let all = [&messages[..], &more].concat();
    for begun in [0, 4] {
        let mut desk = Desk::new(&[&keeper(&all)], empty());
        for message in &messages[..begun] {
            desk.arrives(message);
        }
        desk.arrives(&naming);
        desk.ancestors.begin_names(due());
        assert!(desk.ancestors.is_named(feed));
        // The next ones come themselves while somebody looks for them.
        for message in &messages[begun..begun + 2] {
            assert_eq!(desk.arrives(message), Arrived::Next);
        }
        desk.settle(feed).await;
        let expected = [
            &messages[..begun],
            std::slice::from_ref(&naming),
            &messages[begun..],
        ]
        .concat();
        assert_eq!(desk.log, expected, "{begun}");
        assert_eq!(desk.repeated, 0);
        // Those behind what is looked for wait for it.
        let mut desk = Desk::new(&[&keeper(&all)], empty());
        for message in &messages[..begun] {
            desk.arrives(message);
        }
        desk.arrives(&naming);
        desk.ancestors.begin_names(due());
        for message in &more {
            assert_eq!(desk.arrives(message), Arrived::Waits, "{begun}");
        }
        assert!(!desk.ancestors.is_named(feed), "it is looked for once");
        desk.settle(feed).await;
        assert_eq!(desk.log, [&expected[..], &more].concat(), "{begun}");
        for message in &all {
            desk.arrives(message);
        }
        assert_eq!((desk.repeated, desk.log.len()), (12, 13));
    }
}

#[tokio::test]
async fn an_opened_log_tells_what_it_has_and_what_it_lacks() {
    let (messages, naming, _) = told(10);
    let feed = feed_of(&messages[0]);
    let folder = tempfile::tempdir().unwrap();
    let name = LogName::parse(CHANNEL).unwrap();
    let has = [&messages[..4], std::slice::from_ref(&naming)].concat();
    let mut log = OpenLog::open(folder.path(), &name, Options::default(), [7; 16]).unwrap();
    for message in &has {
        let (batch, payloads) = bundle::parse(message).unwrap();
        let payloads: Vec<&[u8]> = payloads.into_iter().map(|range| &message[range]).collect();
        log.log.append_signed(1, &batch, &payloads).unwrap();
    }
    log.close().unwrap();
    let disk = open::read(folder.path(), &name).unwrap();
    let places = Places::default();
    let back = Back::look(&disk, &name, &places, || true).unwrap();
    assert!(back.newest.is_whole);
    let mut desk = Desk::new(&[&keeper(&messages)], back);
    // The copies of before come once more.
    for message in &has {
        assert_eq!(desk.arrives(message), Arrived::Next);
    }
    assert_eq!((desk.repeated, desk.log.len()), (5, 0));
    desk.settle(feed).await;
    assert_eq!(desk.log, messages[4..]);
    for message in &messages {
        desk.arrives(message);
    }
    assert_eq!((desk.repeated, desk.log.len()), (15, 6));
    // Where it is in the log is known, too, and of what is not there that it is not.
    let wanted = |feed, after, to| Wanted { feed, after, to };
    let found = places.find(&desk.channel, wanted(feed, 2, 9));
    assert_eq!(found, Found::Within(2..3, wanted(feed, 2, 4)));
    let none = places.find(&desk.channel, wanted(FeedId([9; 32]), 0, 9));
    assert_eq!(none, Found::Nothing);
}

#[tokio::test]
async fn of_a_log_that_is_not_known_from_its_beginning_only_what_goes_on_is_asked_for() {
    let (messages, naming, _) = told(10);
    let feed = feed_of(&messages[0]);
    let keeper = keeper(&messages);
    let mut desk = Desk::new(&[&keeper], Back::default());
    desk.arrives(&naming);
    // It may have had all of them.
    assert_eq!(desk.ancestors.begin_names(due()), [(0, Unfound::Unsure)]);
    assert!(!desk.ancestors.is_named(feed));
    assert_eq!(keeper.asked(), 0);
    // As one of the feed comes, the log begins with it, and goes on there.
    assert_eq!(desk.arrives(&messages[6]), Arrived::Next);
    let (mut one, mut third) = (Author::new(1, CHANNEL), Author::new(3, CHANNEL));
    let same: Vec<Bytes> = (0..10_usize).map(|at| one.say(&at.to_be_bytes())).collect();
    assert_eq!(same, messages);
    desk.arrives(&third.say_after(vec![observed(&one, &messages)], b"seen, too"));
    desk.settle(feed).await;
    assert_eq!(desk.log[3..], messages[7..]);
}

/// An entity says that it has observed that much of a feed.
fn names(namer: &mut Author, feed: FeedId, count: u64) -> Bytes {
    let head = feed.0;
    namer.say_after(vec![Observed { feed, count, head }], b"seen")
}

#[tokio::test]
async fn who_names_what_nobody_knows_is_told_of_once_and_what_else_it_names_does_not_wait_for_that()
{
    let (messages, ..) = told(10);
    let feed = feed_of(&messages[0]);
    let nodes = [keeper(&[]), keeper(&messages)];
    let mut desk = Desk::new(&[&nodes[0], &nodes[1]], empty());
    desk.arrives(&messages[0]);
    // Of other channels, or of nobody: three hundred feeds.
    let mut namer = Author::new(2, CHANNEL);
    let foreign: Vec<FeedId> = (0..300_u64)
        .map(|at| {
            let mut feed = [3; 32];
            feed[..8].copy_from_slice(&at.to_be_bytes());
            FeedId(feed)
        })
        .collect();
    for (feed, count) in foreign.iter().zip(1..) {
        let message = names(&mut namer, *feed, count);
        assert_eq!(desk.arrives(&message), Arrived::Next);
    }
    let began = Instant::now();
    assert!(desk.ancestors.begin_names(due()).is_empty());
    let searched = |desk: &Desk| {
        foreign
            .iter()
            .filter(|one| desk.ancestors.is_named(**one))
            .count()
    };
    assert_eq!(searched(&desk), 1, "one of an entity at a time");
    // The same entity names what there is, too.
    desk.arrives(&names(&mut namer, feed, 10));
    desk.settle(feed).await;
    assert!(desk.log.ends_with(&messages[1..]));
    assert_eq!(desk.ended, [Ended::Quiet]);
    desk.settle(foreign[0]).await;
    assert_eq!(desk.ended[1..], [Ended::Told(Unfound::Unknown)]);
    // Not for what nobody had, either.
    desk.arrives(&names(&mut namer, foreign[0], 400));
    assert!(desk.ancestors.begin_names(due()).is_empty());
    assert!(desk.ancestors.is_named(foreign[1]) && !desk.ancestors.is_named(foreign[0]));
    let again = Instant::now() + Duration::from_secs(61);
    desk.ancestors.names.suspend(foreign[1]);
    let said = namer.say(b"seen");
    let entity = bundle::parse(&said).unwrap().0.signed.statement.entity;
    let unknown = &mut desk.ancestors.names.unknown;
    for next in &foreign[1..256] {
        unknown.in_vain((*next, entity), again);
    }
    desk.ancestors.begin_names(again);
    assert!(
        desk.ancestors.is_named(foreign[0]),
        "a minute later it is looked again"
    );
    let asked = nodes[0].asked();
    let most = 2 * (8 + 2 * usize::try_from(began.elapsed().as_secs()).unwrap());
    assert!(
        asked <= most,
        "each search asks again every second at the most: {asked}"
    );
}

#[tokio::test]
async fn what_several_nodes_hold_or_is_kept_no_more_is_asked_of_nobody() {
    let node = keeper(&[]);
    let mut desk = Desk::new(&[&node], empty());
    let channels = ["test/replicated", "test/left"].map(|name| ChannelName::parse(name).unwrap());
    desk.ancestors.replicated(&channels[0]);
    desk.ancestors.looked((1, &channels[1]), empty());
    // One whose events are in a log of that many nodes, and one that says something here as well.
    let [only_there, here] = [4, 5].map(|seed| Author::new(seed, CHANNEL));
    let entity_of = |mut author: Author| {
        let (batch, _) = bundle::parse(&author.say(b"here")).unwrap();
        batch.signed.statement.entity
    };
    let (message, entities) = (here.clone().say(b"here"), [only_there, here].map(entity_of));
    desk.ancestors.note_entity(entities[0]);
    desk.arrives(&message);
    desk.ancestors.leave(1);
    let mut namer = Author::new(2, CHANNEL);
    for channel in &channels {
        let name = LogName::parse(channel.as_str()).unwrap();
        for entity in &entities {
            let feed = FeedId::of(&name, entity);
            desk.arrives(&names(&mut namer, feed, 9));
            assert!(desk.ancestors.begin_names(due()).is_empty());
            assert!(!desk.ancestors.is_named(feed), "{channel}");
        }
    }
    assert_eq!(node.asked(), 0);
    // Where it is kept again, it is.
    desk.ancestors.take_in(1);
    let name = LogName::parse(channels[1].as_str()).unwrap();
    let feed = FeedId::of(&name, &entities[0]);
    desk.arrives(&names(&mut namer, feed, 9));
    desk.ancestors.begin_names(due());
    assert!(desk.ancestors.is_named(feed));
}

#[tokio::test]
async fn what_is_known_meanwhile_is_asked_for_where_it_belongs() {
    let node = keeper(&[]);
    let mut desk = Desk::new(&[&node], empty());
    let other = ChannelName::parse("test/other").unwrap();
    desk.ancestors.looked((1, &other), empty());
    let mut author = Author::new(1, "test/other");
    let (first, second) = (author.say(b"first"), author.say(b"second"));
    let feed = feed_of(&first);
    let mut namer = Author::new(2, CHANNEL);
    desk.arrives(&names(&mut namer, feed, 2));
    desk.ancestors.begin_names(Instant::now());
    assert!(desk.ancestors.names.unknown.has(feed));
    // Something of it comes, to another log than where it is named.
    let (batch, payloads) = bundle::parse(&first).unwrap();
    let payloads = payloads.into_iter().map(|range| &first[range]);
    desk.ancestors
        .note((1, 0), &batch.verify(payloads).unwrap(), 1);
    desk.ancestors.begin_names(Instant::now());
    assert!(!desk.ancestors.names.unknown.has(feed));
    desk.ancestors.begin_names(due());
    assert_eq!(desk.ancestors.names.searched_for(feed), Some(1));
    assert!(desk.ancestors.is_next(1, feed, &second));
}

#[tokio::test]
async fn a_log_that_lets_go_of_some_gets_nothing_from_before_it_began() {
    let (messages, naming, _) = told(10);
    let feed = feed_of(&messages[0]);
    let node = keeper(&messages);
    let back = Back {
        lets_go: true,
        ..empty()
    };
    let mut desk = Desk::new(&[&node], back);
    desk.arrives(&naming);
    let told = desk.ancestors.begin_names(due());
    assert_eq!(told, [(0, Unfound::Unsure)]);
    assert!(!desk.ancestors.is_named(feed));
    assert_eq!(node.asked(), 0);
    // It begins with what comes, at once.
    assert_eq!(desk.arrives(&messages[6]), Arrived::Next);
    assert_eq!(desk.log.len(), 2);
}

#[tokio::test]
async fn nobody_has_what_an_entity_says_wait_for_long_by_naming_it() {
    // What an entity says behind so many events.
    let behind = |count| {
        let mut author = Author::new(1, CHANNEL);
        author.skip(CHANNEL, count);
        author.say(b"late")
    };
    let feed = feed_of(&behind(0));
    let mut namer = Author::new(2, CHANNEL);
    let named = names(&mut namer, feed, 1 << 40);
    let silent = Node::new(|_, _| None);
    // Too much is missing: the log begins with what comes, and nobody looks for the rest.
    let mut desk = Desk::new(&[&silent], empty());
    desk.arrives(&named);
    desk.ancestors.begin_names(due());
    assert!(desk.ancestors.is_named(feed));
    assert_eq!(desk.arrives(&behind(FIRST_EVENTS_MAX + 1)), Arrived::Next);
    assert!(!desk.ancestors.is_named(feed));
    // A little is waited for, and not for long.
    let mut desk = Desk::new(&[&silent], empty());
    desk.arrives(&named);
    assert_eq!(desk.arrives(&behind(FIRST_EVENTS_MAX)), Arrived::Waits);
    let gap = &desk.ancestors.gaps[&feed];
    assert!(gap.until <= Instant::now() + FIRST_WITHIN);
    // The same where some of it was got, since it is named, however much is missing: that goes on meanwhile.
    let mut desk = Desk::new(&[&silent], empty());
    desk.arrives(&named);
    desk.ancestors.begin_names(due());
    desk.append(&behind(0));
    let late = behind(FIRST_EVENTS_MAX + 2);
    assert_eq!(desk.arrives(&late), Arrived::Waits);
    assert!(!desk.ancestors.is_named(feed));
    let gap = &desk.ancestors.gaps[&feed];
    assert!(gap.search.is_some() && gap.until <= Instant::now() + FIRST_WITHIN);
    desk.ancestors.give_up(feed);
    desk.append(&late);
    // From then on it is as any other.
    assert_eq!(desk.arrives(&behind(FIRST_EVENTS_MAX + 10)), Arrived::Waits);
    let gap = &desk.ancestors.gaps[&feed];
    assert!(gap.until > Instant::now() + FIRST_WITHIN);
}

#[tokio::test]
async fn what_came_by_name_as_far_as_it_is_named_is_followed_as_what_came_by_itself() {
    let (messages, naming, mut author) = told(10);
    let feed = feed_of(&messages[0]);
    let mut desk = Desk::new(&[&keeper(&messages)], empty());
    desk.arrives(&naming);
    desk.settle(feed).await;
    assert_eq!(desk.log.len(), 11);
    // Much is said meanwhile that does not come here.
    author.skip(CHANNEL, 2 * FIRST_EVENTS_MAX);
    assert_eq!(desk.arrives(&author.say(b"late")), Arrived::Waits);
    let gap = &desk.ancestors.gaps[&feed];
    assert!(gap.search.is_some() && gap.until > Instant::now() + FIRST_WITHIN);
}

#[tokio::test]
async fn what_is_named_once_is_got_when_somebody_has_it_however_late() {
    let (messages, naming, _) = told(10);
    let feed = feed_of(&messages[0]);
    let mut desk = Desk::new(&[&keeper(&messages)], empty());
    desk.arrives(&messages[0]);
    desk.arrives(&naming);
    // Nobody was there for all that time.
    let late = Instant::now() + NAMED_WITHIN;
    assert_eq!(desk.ancestors.begin_names(late), [(0, Unfound::Late)]);
    assert!(!desk.ancestors.is_named(feed));
    desk.ancestors.begin_names(late + Duration::from_secs(61));
    assert!(desk.ancestors.is_named(feed), "it is asked for less often");
    desk.settle(feed).await;
    assert_eq!(desk.log[2..], messages[1..]);
    assert_eq!(desk.ended, [Ended::Quiet]);
    assert!(!desk.ancestors.names.unknown.has(feed));
}

#[tokio::test]
async fn what_an_opened_log_names_and_has_no_place_is_told_of() {
    let mut back = empty();
    for number in 0..300_u64 {
        let mut feed = [3; 32];
        feed[..8].copy_from_slice(&number.to_be_bytes());
        back.named.note(FeedId(feed), [2; 32], 1);
    }
    let mut desk = Desk::new(&[], back);
    let now = Instant::now();
    assert_eq!(desk.ancestors.begin_names(now), [(0, Unfound::Full)]);
    assert!(desk.ancestors.begin_names(now).is_empty());
}

#[tokio::test]
async fn a_log_that_is_left_gets_nothing_until_it_is_kept_again() {
    let (messages, naming, _) = told(10);
    let feed = feed_of(&messages[0]);
    let mut desk = Desk::new(&[&keeper(&messages)], empty());
    desk.arrives(&naming);
    desk.ancestors.begin_names(due());
    assert!(desk.ancestors.is_named(feed));
    desk.ancestors.leave(0);
    assert!(!desk.ancestors.is_named(feed));
    assert!(!desk.ancestors.is_next(0, feed, &messages[0]));
    assert!(desk.ancestors.begin_names(due()).is_empty());
    assert!(!desk.ancestors.is_named(feed));
    desk.ancestors.take_in(0);
    // Whoever names it then has it looked for.
    let (mut one, mut third) = (Author::new(1, CHANNEL), Author::new(3, CHANNEL));
    let same: Vec<Bytes> = (0..10_usize).map(|at| one.say(&at.to_be_bytes())).collect();
    assert_eq!(same, messages);
    desk.arrives(&third.say_after(vec![observed(&one, &messages)], b"seen, too"));
    desk.settle(feed).await;
    assert_eq!(desk.log[2..], messages[..]);
}

#[tokio::test]
async fn events_behind_gaps_behind_gaps_wait_no_longer_than_any_other() {
    let (messages, ..) = told(10);
    let mut desk = Desk::new(&[], empty());
    desk.arrives(&messages[0]);
    let log = (0, &desk.channel.clone());
    let mut arrives = |waited| {
        let since = Instant::now().checked_sub(waited).unwrap();
        desk.ancestors.arrived(log, &messages[5], since)
    };
    assert_eq!(arrives(WAITS_WITHIN), Arrived::Without(Unfound::Late));
    assert_eq!(arrives(WAITS_WITHIN / 2), Arrived::Waits);
    let gap = &desk.ancestors.gaps[&feed_of(&messages[0])];
    assert!(gap.until <= Instant::now() + WAITS_WITHIN / 2);
}

#[tokio::test]
async fn however_much_is_named_only_some_has_its_turn_at_a_time() {
    let mut desk = Desk::new(&[], Back::default());
    for number in 0..150 {
        let by = ([2; 32], 0);
        desk.ancestors
            .note_name((FeedId([number; 32]), 1), by, Instant::now());
    }
    let turns = [(); 4].map(|()| desk.ancestors.begin_names(due()).len());
    assert_eq!(turns, [TURNS_MAX, TURNS_MAX, 150 - 2 * TURNS_MAX, 0]);
}
