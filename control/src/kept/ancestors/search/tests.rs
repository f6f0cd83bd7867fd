use super::*;
use crate::{
    kept::ancestors::tests::{Author, Node, Town, feed_of},
    reading::wire::{Given, Refusal, encode_batches},
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};
use tokio::sync::mpsc;

/// Times that a test has; each far above what it takes here, where something is to come of it.
const SHORT: Times = Times {
    patience: Duration::from_millis(1_500),
    patience_max: Duration::from_secs(60),
    whole: Duration::from_secs(60),
    answer: Duration::from_millis(400),
    next: Duration::from_millis(100),
    round: Duration::from_millis(800),
    silent: Duration::from_secs(60),
};
/// What the log has.
const HAS: usize = 2;

/// What an entity said, and a log that has the first of it.
struct Stage {
    messages: Vec<Bytes>,
    head: Hash,
    times: Times,
    how: How,
    silent: Arc<Silent>,
    bytes_left: usize,
}

/// What came of a search, and what the log was given.
type Found = (Result<(), Unfound>, Vec<Bytes>);

impl Stage {
    fn new(count: usize) -> Self {
        let mut author = Author::new(1, "test/signed");
        let mut stage = Self {
            messages: Vec::new(),
            head: Hash::default(),
            how: How::Followed,
            times: SHORT,
            silent: Arc::default(),
            bytes_left: usize::MAX,
        };
        for at in 0..count {
            stage.messages.push(author.say(at.to_string().as_bytes()));
            if at + 1 == HAS {
                stage.head = author.end.end().1;
            }
        }
        stage
    }

    /// Searches for all that the log has not.
    async fn search(&self, town: Town) -> Found {
        let (to, mut inputs) = mpsc::channel(8);
        let search = Search {
            around: town,
            times: self.times,
            channel: ChannelName::parse("test/signed").unwrap(),
            wanted: Wanted {
                feed: feed_of(&self.messages[0]),
                after: HAS as u64,
                to: self.messages.len() as u64,
            },
            head: self.head,
            since_unix_ns: u64::MAX,
            how: self.how,
            bytes_left: self.bytes_left,
            silent: Arc::clone(&self.silent),
            log: 3,
            number: 4,
            to: to.downgrade(),
        };
        let searching = tokio::spawn(search.run());
        let mut given = Vec::new();
        loop {
            match inputs.recv().await.unwrap() {
                Input::Fetched {
                    log,
                    feed,
                    messages,
                    done,
                } => {
                    assert_eq!((log, feed), (3, feed_of(&self.messages[0])));
                    given.extend(messages);
                    done.send(true).unwrap();
                }
                Input::Searched {
                    log, number, found, ..
                } => {
                    assert_eq!((log, number), (3, 4));
                    searching.await.unwrap();
                    return (found, given);
                }
                _ => panic!("nothing else is said to a log"),
            }
        }
    }

    /// All that is missing was given, in order.
    fn is_whole(&self, (found, given): &Found) -> bool {
        *found == Ok(()) && given[..] == self.messages[HAS..]
    }

    /// A node that has all, and gives so many at a time.
    fn keeper(&self, at_a_time: usize) -> Node {
        let messages = self.messages.clone();
        Node::new(move |wanted, _| Some(batches(&messages, wanted, at_a_time)))
    }
}

/// What is behind those that somebody has.
fn batches(messages: &[Bytes], wanted: Wanted, most: usize) -> Given {
    let after = usize::try_from(wanted.after).unwrap();
    let to = messages.len().min(after + most);
    let some: Vec<Vec<u8>> = messages[after..to].iter().map(|one| one.to_vec()).collect();
    match some.is_empty() {
        true => no(Refusal::NoMore),
        false => Given::Events {
            log: [1; 16],
            next: to as u64,
            frames: encode_batches(&some).into(),
        },
    }
}

/// No batch, and where to look on.
fn on(next: u64) -> Given {
    Given::Events {
        log: [1; 16],
        next,
        frames: Bytes::new(),
    }
}

fn no(refusal: Refusal) -> Given {
    Given::Refused(refusal, String::new())
}

fn silent() -> Node {
    Node::new(|_, _| None)
}

#[tokio::test]
async fn silent_nodes_do_not_keep_another_from_giving() {
    let stage = Stage::new(20);
    let (one, two, third) = (silent(), silent(), stage.keeper(3));
    let found = stage.search(Town::new(&[&one, &two, &third])).await;
    assert!(stage.is_whole(&found), "{:?}", found.0);
    assert!(one.asked() >= 1 && two.asked() >= 1);
}

#[tokio::test]
async fn a_node_that_stops_in_the_middle_is_one_of_many_again() {
    let stage = Stage::new(20);
    // The first gives two batches and no more; the second nothing before it has.
    let is_begun = Arc::new(AtomicBool::new(false));
    let (first, second) = (stage.messages.clone(), stage.messages.clone());
    let begun = Arc::clone(&is_begun);
    let first = Node::new(move |wanted, _| {
        let is_first = !begun.swap(true, Ordering::Relaxed);
        is_first.then(|| batches(&first, wanted, 2))
    });
    let second = Node::new(move |wanted, _| match is_begun.load(Ordering::Relaxed) {
        true => Some(batches(&second, wanted, 100)),
        false => Some(no(Refusal::Full)),
    });
    let found = stage.search(Town::new(&[&first, &second])).await;
    assert!(stage.is_whole(&found), "{:?}", found.0);
}

/// A node that says for ever that it may have some further on.
fn further() -> Node {
    Node::new(|_, cursor| match cursor {
        Cursor::Offset(from) => Some(on(from + 1)),
        _ => Some(on(1)),
    })
}

#[tokio::test]
async fn who_answers_without_an_end_holds_up_a_log_for_so_long_and_no_other_node() {
    let mut stage = Stage::new(20);
    let (endless, keeper) = (further(), stage.keeper(1));
    let found = stage.search(Town::new(&[&endless, &keeper])).await;
    assert!(stage.is_whole(&found), "{:?}", found.0);
    stage.times.patience_max = Duration::from_secs(1);
    let (endless, began) = (further(), Instant::now());
    let found = stage.search(Town::new(&[&endless])).await;
    assert_eq!(found, (Err(Unfound::Late), Vec::new()));
    // Nor does it keep this node busy.
    let most = began.elapsed().as_millis() / FURTHER.as_millis() + 10;
    assert!((2..most).contains(&(endless.asked() as u128)), "{most}");
    // One that stands at its place is heard for no longer.
    let standing = Node::new(|_, _| Some(on(7)));
    let found = stage.search(Town::new(&[&standing])).await;
    assert_eq!(found, (Err(Unfound::Late), Vec::new()));
    // One that goes back is not believed.
    let back = Node::new(|_, cursor| match cursor {
        Cursor::Offset(from) => Some(on(from - 1)),
        _ => Some(on(5)),
    });
    let found = stage.search(Town::new(&[&back])).await;
    assert_eq!(found, (Err(Unfound::Wrong), Vec::new()));
}

#[tokio::test]
async fn who_gives_too_slowly_holds_up_a_log_for_so_long() {
    let mut stage = Stage::new(200);
    stage.times.whole = Duration::from_secs(1);
    let messages = stage.messages.clone();
    let slow = Node::new(move |wanted, _| {
        std::thread::sleep(Duration::from_millis(20));
        Some(batches(&messages, wanted, 1))
    });
    let (found, given) = stage.search(Town::new(&[&slow])).await;
    assert_eq!(found, Err(Unfound::Late));
    assert_eq!(given[..], stage.messages[HAS..HAS + given.len()]);
}

#[tokio::test]
async fn a_node_that_gets_them_itself_is_waited_for() {
    let mut stage = Stage::new(20);
    let (messages, began) = (stage.messages.clone(), Instant::now());
    let later = 2 * stage.times.patience;
    let repairs = Node::new(move |wanted, _| match began.elapsed() > later {
        true => Some(batches(&messages, wanted, 100)),
        false => Some(on(7)),
    });
    let found = stage.search(Town::new(&[&repairs])).await;
    assert!(stage.is_whole(&found), "{:?}", found.0);
    // One whose log begins with later ones says so, and gets them in time.
    let (messages, began) = (stage.messages.clone(), Instant::now());
    let later = stage.times.patience / 3;
    let repairs = Node::new(move |wanted, _| match began.elapsed() > later {
        true => Some(batches(&messages, wanted, 100)),
        false => Some(no(Refusal::NoMore)),
    });
    stage.times.patience = Duration::from_secs(30);
    let found = stage.search(Town::new(&[&repairs])).await;
    assert!(stage.is_whole(&found), "{:?}", found.0);
}

#[tokio::test]
async fn what_nobody_has_is_missing_after_all_have_said_so() {
    let stage = Stage::new(20);
    let began = Instant::now();
    let [one, two] = [(); 2].map(|()| Node::new(|_, _| Some(no(Refusal::NoMore))));
    let found = stage.search(Town::new(&[&one, &two])).await;
    assert_eq!(found, (Err(Unfound::Nobody), Vec::new()));
    assert!(
        began.elapsed() >= stage.times.patience,
        "they may get them yet"
    );
    assert!(began.elapsed() < stage.times.whole);
    // From four places on, and at the end of their logs again.
    assert!(one.asked() > EARLIER_NS.len() + 1 && two.asked() > EARLIER_NS.len() + 1);
    // Those that keep no log cannot.
    let began = Instant::now();
    let none = Node::new(|_, _| Some(no(Refusal::NotKept)));
    let found = stage.search(Town::new(&[&none])).await;
    assert_eq!(found, (Err(Unfound::Nobody), Vec::new()));
    assert_eq!(none.asked(), 1);
    // Where no node is known yet, one may be.
    let found = stage.search(Town::new(&[])).await;
    assert_eq!(found, (Err(Unfound::Nobody), Vec::new()));
    assert!(began.elapsed() >= stage.times.patience);
}

#[tokio::test]
async fn a_node_is_asked_from_ever_earlier_places_on() {
    let stage = Stage::new(20);
    let times = Arc::new(AtomicUsize::new(0));
    let (messages, asked) = (stage.messages.clone(), Arc::clone(&times));
    let old = Node::new(move |wanted, cursor| {
        let at = asked.fetch_add(1, Ordering::Relaxed);
        let expected = match EARLIER_NS.get(at) {
            Some(ns) => Cursor::Time(u64::MAX - ns),
            None => Cursor::Start,
        };
        Some(match cursor == Cursor::Start {
            true => batches(&messages, wanted, 100),
            false if cursor == expected => no(Refusal::NoMore),
            false => no(Refusal::NotKept),
        })
    });
    let found = stage.search(Town::new(&[&old])).await;
    assert!(stage.is_whole(&found), "{:?}", found.0);
    assert_eq!(times.load(Ordering::Relaxed), EARLIER_NS.len() + 1);
}

#[tokio::test]
async fn who_was_silent_is_hardly_waited_for_until_it_answers() {
    let mut stage = Stage::new(20);
    stage.times.silent = Duration::from_secs(3_600);
    stage.times.next = Duration::from_millis(300);
    let is_deaf = Arc::new(AtomicBool::new(true));
    let (messages, deaf) = (stage.messages.clone(), Arc::clone(&is_deaf));
    let keeper = Node::new(move |wanted, _| {
        let is_deaf = deaf.load(Ordering::Relaxed);
        (!is_deaf).then(|| batches(&messages, wanted, 100))
    });
    let late = (Err(Unfound::Late), Vec::new());
    let began = Instant::now();
    assert_eq!(stage.search(Town::new(&[&keeper])).await, late);
    let first = began.elapsed();
    assert!(first >= stage.times.patience);
    let (began, asked) = (Instant::now(), keeper.asked());
    assert_eq!(stage.search(Town::new(&[&keeper])).await, late);
    assert!(began.elapsed() < first, "it is waited for as long again");
    assert!(
        keeper.asked() > asked,
        "another feed's question may reach it"
    );
    // It holds up nobody who answers, and when it does itself, it is one of them.
    is_deaf.store(false, Ordering::Relaxed);
    let found = stage.search(Town::new(&[&keeper])).await;
    assert!(stage.is_whole(&found), "{:?}", found.0);
    let later = keeper.after(2 * stage.times.next);
    let found = stage.search(Town::new(&[&later])).await;
    assert!(stage.is_whole(&found), "{:?}", found.0);
}

#[tokio::test]
async fn an_answer_that_comes_late_is_taken() {
    let mut stage = Stage::new(20);
    stage.times.patience = Duration::from_secs(4);
    // Each takes longer than a question does.
    let thin = stage.keeper(6).after(2 * stage.times.answer);
    let found = stage.search(Town::new(&[&thin])).await;
    assert!(stage.is_whole(&found), "{:?}", found.0);
    assert_eq!(thin.asked(), 3, "each is asked for once");
    // Longer than anybody is waited for, but something of it comes all the while.
    stage.times.patience = Duration::from_millis(1_500);
    let way = 2 * stage.times.patience;
    let thin = stage.keeper(100).after(way).in_parts();
    let found = stage.search(Town::new(&[&thin])).await;
    assert!(stage.is_whole(&found), "{:?}", found.0);
    let still = stage.keeper(100).after(way);
    let found = stage.search(Town::new(&[&still])).await;
    assert_eq!(found, (Err(Unfound::Late), Vec::new()));
}

#[tokio::test]
async fn an_answer_is_taken_of_which_another_node_gave_a_part_meanwhile() {
    let stage = Stage::new(20);
    let thin = stage.keeper(100).after(stage.times.round);
    // It has only the first few.
    let messages = stage.messages[..HAS + 5].to_vec();
    let first = Node::new(move |wanted, _| Some(batches(&messages, wanted, 100)));
    let found = stage.search(Town::new(&[&thin, &first])).await;
    assert!(stage.is_whole(&found), "{:?}", found.0);
    assert_eq!(thin.asked(), 1);
    // What is not behind what was asked for is no part of that.
    let messages = stage.messages.clone();
    let stale = Node::new(move |wanted, _| {
        let first = Wanted { after: 0, ..wanted };
        Some(batches(&messages, first, HAS))
    });
    let found = stage.search(Town::new(&[&stale])).await;
    assert_eq!(found, (Err(Unfound::Wrong), Vec::new()));
}

#[tokio::test]
async fn who_would_not_be_through_in_time_leaves_others_theirs() {
    // One batch at a time, that is not through in twice the time that there is.
    let count = 2 * SHORT.whole.as_millis() / (SHORT.next / 2).as_millis();
    let mut stage = Stage::new(usize::try_from(count).unwrap());
    // Far above what the others take to be asked.
    stage.times.patience = Duration::from_secs(6);
    let slow = stage.keeper(1).after(stage.times.next / 2);
    let fast = stage.keeper(400).after(3 * stage.times.next);
    let found = stage.search(Town::new(&[&slow, &fast])).await;
    assert!(stage.is_whole(&found), "{:?}", found.0);
    // The one that is slow is asked on where the others have nothing: also once it was asked whether they do.
    let asked = Arc::new(AtomicUsize::new(0));
    let (messages, others) = (stage.messages.clone(), Arc::clone(&asked));
    let given = AtomicUsize::new(0);
    let slow = Node::new(move |wanted, _| {
        let is_again = others.load(Ordering::Relaxed) > 1;
        let given = given.fetch_add(is_again.into(), Ordering::Relaxed);
        let most = if given < 20 { 1 } else { 400 };
        Some(batches(&messages, wanted, most))
    });
    let slow = slow.after(stage.times.next / 2);
    let none = Node::new(move |_, _| {
        asked.fetch_add(1, Ordering::Relaxed);
        Some(no(Refusal::Full))
    });
    let found = stage.search(Town::new(&[&slow, &none])).await;
    assert!(stage.is_whole(&found), "{:?}", found.0);
}

#[tokio::test]
async fn who_has_no_right_yet_may_have_it_a_moment_later() {
    let stage = Stage::new(20);
    let (messages, began) = (stage.messages.clone(), Instant::now());
    let later = stage.times.patience / 3;
    let keeper = Node::new(move |wanted, _| match began.elapsed() > later {
        true => Some(batches(&messages, wanted, 100)),
        false => Some(no(Refusal::NoRight)),
    });
    let found = stage.search(Town::new(&[&keeper])).await;
    assert!(stage.is_whole(&found), "{:?}", found.0);
    let never = Node::new(|_, _| Some(no(Refusal::NoRight)));
    let found = stage.search(Town::new(&[&never])).await;
    assert_eq!(found, (Err(Unfound::Nobody), Vec::new()));
}

#[tokio::test]
async fn what_is_given_is_taken_if_it_is_what_is_missing() {
    let mut stage = Stage::new(20);
    let other: Vec<Bytes> = {
        let mut author = Author::new(2, "test/signed");
        (0..20_u8).map(|at| author.say(&[at])).collect()
    };
    let mut changed = stage.messages.clone();
    let mut bytes = changed[9].to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    changed[9] = bytes.into();
    let mut cut = stage.messages.clone();
    cut.remove(9);
    for wrong in [other, changed, cut] {
        let messages = wrong.clone();
        let liar = Node::new(move |wanted, _| Some(batches(&messages, wanted, 100)));
        let found = stage.search(Town::new(&[&liar])).await;
        assert_eq!(found, (Err(Unfound::Wrong), Vec::new()));
        let keeper = stage.keeper(100);
        let found = stage.search(Town::new(&[&liar, &keeper])).await;
        assert!(stage.is_whole(&found), "{:?}", found.0);
    }
    let formless = Node::new(|_, _| {
        Some(Given::Events {
            log: [1; 16],
            next: 9,
            frames: Bytes::from_static(b"no batches"),
        })
    });
    let found = stage.search(Town::new(&[&formless])).await;
    assert_eq!(found, (Err(Unfound::Wrong), Vec::new()));
    // Nor is more taken than may be, or of one who may say nothing.
    let keeper = stage.keeper(1);
    let mut town = Town::new(&[&keeper]);
    town.may_not_say = true;
    let found = stage.search(town).await;
    assert_eq!(found, (Err(Unfound::NoRight), Vec::new()));
    stage.bytes_left = 2 * stage.messages[HAS].len();
    for at_a_time in [1, 100] {
        let keeper = stage.keeper(at_a_time);
        let (found, given) = stage.search(Town::new(&[&keeper])).await;
        assert_eq!((found, given.len()), (Err(Unfound::Full), 2), "{at_a_time}");
    }
}

#[tokio::test]
async fn what_is_too_much_and_not_what_is_missing_ends_no_search() {
    let mut stage = Stage::new(20);
    stage.bytes_left = stage.messages[HAS..].iter().map(Bytes::len).sum();
    let large = vec![b'x'; stage.bytes_left + 1];
    let other = Author::new(2, "test/signed").say(&large);
    // What signs it is the entity's, what it signed is not that.
    let mut changed = stage.messages[HAS].to_vec();
    changed.extend(&large);
    for wrong in [other, changed.into()] {
        let liar = Node::new(move |wanted, _| {
            let first = Wanted { after: 0, ..wanted };
            Some(batches(std::slice::from_ref(&wrong), first, 1))
        });
        let keeper = stage.keeper(100).after(stage.times.next);
        let found = stage.search(Town::new(&[&liar, &keeper])).await;
        assert!(stage.is_whole(&found), "{:?}", found.0);
        assert_eq!(liar.asked(), 1, "it is asked no more");
    }
}

#[tokio::test]
async fn the_log_hears_of_a_search_that_failed() {
    let stage = Stage::new(3);
    let faulty = Node::new(|_, _| panic!("a fault of this program"));
    let found = stage.search(Town::new(&[&faulty])).await;
    assert_eq!(found, (Err(Unfound::Failed), Vec::new()));
}

#[test]
fn only_the_next_batch_of_that_entity_follows() {
    let (mut author, mut other) = (Author::new(1, "alarms"), Author::new(2, "alarms"));
    let first = author.say(b"one");
    let head = author.end.end().1;
    let mut twin = author.clone();
    let (second, third) = (author.say(b"two"), author.say(b"three"));
    let wanted = Wanted {
        feed: feed_of(&first),
        after: 1,
        to: 3,
    };
    let (at, channel) = ((wanted, head), ChannelName::parse("alarms").unwrap());
    let behind = follow(&channel, at, &second).unwrap();
    assert_eq!(behind.0.after, 2);
    assert_eq!(
        follow(&channel, behind, &third).unwrap(),
        (Wanted { after: 3, ..wanted }, author.end.end().1)
    );
    // Where it was asked for on another channel, the log that it would go to takes no other's.
    let elsewhere = ChannelName::parse("others").unwrap();
    assert_eq!(follow(&elsewhere, at, &second), None);
    // What is there, what is further on, and another's.
    for wrong in [&first, &third, &other.say(b"two")] {
        assert_eq!(follow(&channel, at, wrong), None);
    }
    // A second one that follows something else than what is there.
    let (twin_second, twin_third) = (twin.say(b"other"), twin.say(b"three"));
    assert!(follow(&channel, at, &twin_second).is_some());
    assert_eq!(follow(&channel, behind, &twin_third), None);
    // More than was asked for.
    let short = (Wanted { to: 1, ..wanted }, head);
    assert_eq!(follow(&channel, short, &second), None);
    for place in 0..second.len() {
        let mut changed = second.to_vec();
        changed[place] ^= 1;
        assert_eq!(follow(&channel, at, &changed), None, "byte {place}");
    }
}
