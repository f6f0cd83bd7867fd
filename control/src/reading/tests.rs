use super::{
    serve::{IDLE_MAX, next_within},
    *,
};
use crate::replicas::wire::{PART_BYTES_MAX, split};
use std::time::Duration;
use virga_state::Cursor;
use wire::Want;

fn name(text: &str) -> ChannelName {
    ChannelName::parse(text).unwrap()
}

fn ask() -> Ask {
    Ask {
        want: Want::Events,
        reader: 1,
        log: None,
        cursor: Cursor::Start,
    }
}

#[test]
fn questions_wait_up_to_a_number_and_end_with_their_session() {
    let reading = Reading::default();
    let hear = |peer| reading.hear(NodeId(peer), name("alarms"), (1, ask()));
    assert!(hear(2));
    let taken = (0..2 * HEARD_MAX).take_while(|_| hear(1)).count();
    assert_eq!(taken + 1, HEARD_MAX);
    reading.closed(NodeId(1));
    reading.closed(NodeId(1));
    reading.closed(NodeId(3));
    assert!(hear(2));
    let heard = reading.take();
    let closed = heard
        .iter()
        .filter(|heard| matches!(heard, Heard::Closed(_)));
    assert_eq!((heard.len(), closed.count()), (3, 1));
}

#[test]
fn an_answer_comes_from_the_one_that_was_asked_whole_and_once() {
    let reading = Reading::default();
    let (alarms, others) = (name("alarms"), name("others"));
    let [one, two] = [1, 2].map(NodeId);
    let given = Given::Events {
        log: [1; 16],
        next: 7,
        frames: vec![9; 2 * PART_BYTES_MAX].into(),
    };
    let parts = |channel, number| split(Kind::Given, channel, number, &given.encode());
    let mut asked = reading.ask(one, &alarms, &Arc::default());
    let number = asked.number;
    for part in parts(&alarms, number) {
        assert!(!reading.given(two, part));
    }
    for part in parts(&others, number) {
        assert!(!reading.given(one, part));
    }
    assert!(asked.outcome.try_recv().is_err());
    for part in parts(&alarms, number) {
        assert!(reading.given(one, part));
    }
    match asked.outcome.try_recv() {
        Ok(Outcome::Given(whole)) => assert_eq!(whole, given),
        other => panic!("{other:?}"),
    }
    // Nobody waits for it a second time.
    for part in parts(&alarms, number) {
        assert!(reading.given(one, part));
    }
    // One with a part missing is no answer.
    let mut asked = reading.ask(one, &alarms, &Arc::default());
    let parts = parts(&alarms, asked.number);
    assert!(reading.given(one, parts[0].clone()));
    assert!(!reading.given(one, parts[2].clone()));
    let failed = |outcome| {
        matches!(
            outcome,
            Ok(Outcome::Given(Given::Refused(Refusal::Failed, _)))
        )
    };
    assert!(failed(asked.outcome.try_recv()));
    // None comes of a session that has ended.
    let mut asked = [
        reading.ask(one, &alarms, &Arc::default()),
        reading.ask(two, &alarms, &Arc::default()),
    ];
    reading.closed(one);
    let lost = asked.each_mut().map(|a| a.outcome.try_recv().is_ok());
    assert_eq!(lost, [true, false]);
    drop(asked);
    assert!(lock(&reading.0.asked).is_empty());
}

#[test]
fn so_many_read_elsewhere_and_no_more() {
    let reading = Reading::default();
    let places: Vec<_> = (0..READERS_MAX).map_while(|_| reading.place()).collect();
    assert_eq!(places.len(), READERS_MAX);
    assert!(reading.place().is_none());
    drop(places);
    assert!(reading.place().is_some());
}

#[tokio::test]
async fn a_reader_that_asks_nothing_for_long_gives_up_its_place() {
    let (to, mut asks) = tokio::sync::mpsc::channel(4);
    to.try_send((1, ask())).unwrap();
    let asked = next_within(&mut asks, IDLE_MAX).await;
    assert!(matches!(asked, Ok(Some((1, _)))), "{asked:?}");
    assert!(!to.is_closed());
    let idle = next_within(&mut asks, Duration::from_millis(20)).await;
    assert!(matches!(&idle, Err(late) if late.is_empty()), "{idle:?}");
    // Its next question opens another place.
    assert!(to.is_closed());

    let (to, mut asks) = tokio::sync::mpsc::channel(4);
    drop::<tokio::sync::mpsc::Sender<serve::Numbered>>(to);
    let ended = next_within(&mut asks, IDLE_MAX).await;
    assert!(matches!(ended, Ok(None)), "{ended:?}");
}
