//! Who may read the log of a channel at another node, and until when.

use super::*;
use crate::{
    channel::{message::Message, replicas::WAITING_MAX},
    reading::{
        Heard, Outcome, Question, Said, Sent,
        wire::{Ask, Given, Refusal, Want},
    },
    replicas::wire::{Kind, Part, split},
};
use virga_state::Cursor;

/// 1 keeps what 0 publishes, 2 may read it; 0 may not.
fn net() -> Net {
    let mut net = Net::new(3, &[channel("log", &[0], &[1, 2])]);
    for from in [0, 2] {
        let Side { node, service } = &mut net.sides[from];
        service.reach(1, node, id(1));
    }
    net.settle();
    net
}

/// Says something about reading, and carries it.
fn say(net: &mut Net, from: usize, to: u8, parts: Vec<Part>) -> Sent {
    let sent: Arc<Mutex<Option<Sent>>> = Arc::default();
    let told = Arc::clone(&sent);
    let said = Said {
        peer: id(to),
        parts,
        done: Box::new(move |sent| *told.lock().unwrap() = Some(sent)),
    };
    net.command(from, Command::Read(said));
    net.settle();
    sent.lock().unwrap().take().expect("it is told")
}

fn opening() -> Ask {
    Ask {
        want: Want::Open,
        reader: 1,
        log: None,
        cursor: Cursor::Start,
    }
}

fn ask(net: &mut Net, from: usize, to: u8) -> Question {
    let reading = net.sides[from].service.reading.clone();
    let question = reading.ask(id(to), &name("log"), &Arc::default());
    let bytes = opening().encode();
    let parts = split(Kind::Read, &name("log"), question.number, &bytes);
    assert!(matches!(say(net, from, to, parts), Sent::Taken));
    question
}

fn refusal(question: &mut Question) -> Refusal {
    match question.outcome.try_recv() {
        Ok(Outcome::Given(Given::Refused(refusal, _))) => refusal,
        other => panic!("{other:?}"),
    }
}

fn heard(net: &Net) -> Vec<Heard> {
    net.sides[1].service.reading.take().into()
}

/// Gives 2 events, of more than one part.
fn give(net: &mut Net, number: u64) -> Sent {
    let given = Given::Events {
        log: [1; 16],
        next: 5,
        frames: vec![7; 40_000].into(),
    };
    let parts = split(Kind::Given, &name("log"), number, &given.encode());
    say(net, 1, 2, parts)
}

#[test]
fn a_log_is_read_by_whoever_may_subscribe_and_only_as_long() {
    let mut net = net();
    assert_eq!(
        net.sides[2].service.keepers(1, &name("log")),
        Ok(vec![id(1)])
    );
    let mut stranger = ask(&mut net, 0, 1);
    assert_eq!(refusal(&mut stranger), Refusal::NoRight);
    assert_eq!(net.count(1, Reason::ReadRefused), 1);
    assert!(heard(&net).is_empty());
    let mut asked = ask(&mut net, 2, 1);
    assert!(matches!(&heard(&net)[..], [Heard::Ask { peer, .. }] if *peer == id(2)));
    let number = asked.number;
    assert!(matches!(give(&mut net, number), Sent::Taken));
    assert!(matches!(
        asked.outcome.try_recv(),
        Ok(Outcome::Given(Given::Events { next: 5, .. }))
    ));
    // The right ends while the reader waits.
    let mut asked = ask(&mut net, 2, 1);
    assert_eq!(heard(&net).len(), 1);
    let mut without = channel("log", &[0], &[1]);
    without.salt = net.sides[1].service.entries[0].spec.salt;
    net.sides[1].service.entries[0].set_members(&without);
    let number = asked.number;
    let sent = give(&mut net, number);
    assert!(
        matches!(sent, Sent::Refused(Refusal::NoRight, _)),
        "{sent:?}"
    );
    assert!(asked.outcome.try_recv().is_err());
    assert_eq!(net.count(1, Reason::ReadRefused), 2);
    let mut asked = ask(&mut net, 2, 1);
    assert_eq!(refusal(&mut asked), Refusal::NoRight);
}

#[test]
fn who_asks_more_than_there_is_room_for_is_told_so_and_who_is_gone_is_forgotten() {
    let mut net = net();
    while net.sides[1]
        .service
        .reading
        .hear(id(2), name("log"), (1, opening()))
    {}
    let mut asked = ask(&mut net, 2, 1);
    assert_eq!(refusal(&mut asked), Refusal::Full);
    assert_eq!(net.count(1, Reason::ReadFull), 1);
    // Those that wait end with the session.
    let mut asked = net.sides[2]
        .service
        .reading
        .ask(id(1), &name("log"), &Arc::default());
    let Side { node, service } = &mut net.sides[1];
    service.on_closed(net.now_ns, node, id(2));
    assert!(matches!(&heard(&net)[..], [Heard::Closed(peer)] if *peer == id(2)));
    assert!(matches!(give(&mut net, 1), Sent::NoSession));
    let Side { node, service } = &mut net.sides[2];
    service.on_closed(net.now_ns, node, id(1));
    assert!(matches!(asked.outcome.try_recv(), Ok(Outcome::Lost)));
}

#[test]
fn what_is_no_question_is_counted() {
    let mut net = net();
    for (kind, bytes) in [(Kind::Read, &b"x"[..]), (Kind::Read, &[1; 35][..])] {
        let before = net.count(1, Reason::ControlMalformed);
        say(&mut net, 2, 1, split(kind, &name("log"), 1, bytes));
        assert_eq!(net.count(1, Reason::ControlMalformed), before + 1);
    }
    let asked = ask(&mut net, 2, 1);
    let wrong = split(Kind::Given, &name("log"), asked.number, &[9]);
    say(&mut net, 1, 2, wrong);
    assert_eq!(net.count(2, Reason::ControlMalformed), 1);
}

#[test]
fn there_is_a_session_while_somebody_reads() {
    let mut net = net();
    let Side { node, service } = &mut net.sides[2];
    service.reach(net.now_ns, node, id(1));
    assert!(service.needs(id(1)));
    service.let_go(node, id(1));
    assert!(service.needs(id(1)));
    service.let_go(node, id(1));
    service.let_go(node, id(1));
    assert!(!service.needs(id(1)));
}

#[test]
fn events_wait_for_room_on_the_way_and_refusals_and_ends_do_not() {
    let mut net = net();
    let end = Ask {
        want: Want::End,
        ..opening()
    };
    let ends = || split(Kind::Read, &name("log"), 1, &end.encode());
    let fill = |net: &mut Net| {
        let messages = ends().into_iter().map(Message::Replica);
        let bytes: Vec<_> = messages.map(|message| message.encode()).collect();
        let session = net.sides[1].service.sessions.get_mut(&id(2)).unwrap();
        let many = std::iter::repeat_n(bytes, WAITING_MAX).flatten();
        session.outbox.extend(many);
    };
    let mut asked = net.sides[2]
        .service
        .reading
        .ask(id(1), &name("log"), &Arc::default());
    let number = asked.number;
    fill(&mut net);
    assert!(matches!(give(&mut net, number), Sent::NoRoom(_)));
    fill(&mut net);
    let opens = split(Kind::Read, &name("log"), 2, &opening().encode());
    assert!(matches!(say(&mut net, 1, 2, opens), Sent::NoRoom(_)));
    fill(&mut net);
    assert!(matches!(say(&mut net, 1, 2, ends()), Sent::Taken));
    fill(&mut net);
    let given = Given::Refused(Refusal::NotKept, "it is not there".into());
    let parts = split(Kind::Given, &name("log"), number, &given.encode());
    assert!(matches!(say(&mut net, 1, 2, parts), Sent::Taken));
    assert_eq!(refusal(&mut asked), Refusal::NotKept);
}
