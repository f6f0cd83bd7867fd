//! What workers let through to the logs that are on several nodes.

use super::*;
use crate::{
    config::ReplicaNode,
    replicas::{
        Group, Outcome, Question, Replicas,
        wire::{Answer, Kind, Part, split},
    },
};
use virga_state::replica::Acks;

/// The log is on nodes 0 and 1; 2 may not publish.
fn net() -> Net {
    let mut net = Net::new(3, &[channel("log", &[0, 1], &[0, 1, 2])]);
    for own in 0..3 {
        let nodes = [0, 1].map(|n| ReplicaNode {
            node: id(n),
            name: n.to_string(),
        });
        let group = Group {
            nodes: nodes.to_vec(),
            hash: 1,
            acks: Acks::Quorum,
            is_member: own < 2,
        };
        let groups = [(name("log"), group)].into();
        let Side { node, service } = &mut net.sides[usize::from(own)];
        service.replicas = Replicas::with(id(own), groups);
        if own != 1 {
            node.connect(1, id(1)).unwrap();
        }
    }
    net.settle();
    net
}

fn say(net: &mut Net, from: usize, to: u8, parts: Vec<Part>) {
    let Side { node, service } = &mut net.sides[from];
    service.say_replica(net.now_ns, node, id(to), parts);
    net.settle();
}

fn replicas(net: &Net, at: usize) -> &Replicas {
    &net.sides[at].service.replicas
}

/// Submits something, and gives what comes at once.
fn submit(net: &mut Net, from: usize, to: u8) -> Option<Outcome> {
    let mut asked: Question = replicas(net, from).ask(&name("log"), id(to));
    let parts = split(Kind::Submission, &name("log"), asked.number, b"events");
    say(net, from, to, parts);
    asked.outcome.try_recv().ok()
}

#[test]
fn replicas_hear_each_other_and_whoever_may_publish() {
    let mut net = net();
    let between = || split(Kind::Between, &name("log"), 1, b"leads");
    say(&mut net, 0, 1, between());
    let heard = replicas(&net, 1).take();
    assert_eq!((heard.len(), heard[0].peer), (1, id(0)));
    assert_eq!(heard[0].entity, entity(0));
    say(&mut net, 2, 1, between());
    assert_eq!(net.count(1, Reason::ReplicaStranger), 1);
    assert!(submit(&mut net, 0, 1).is_none());
    assert_eq!(replicas(&net, 1).take().len(), 1);
    let refused = submit(&mut net, 2, 1);
    assert!(
        matches!(refused, Some(Outcome::Answered(Answer::Refused(_)))),
        "{refused:?}"
    );
    assert_eq!(net.count(1, Reason::StreamPublisher), 1);
    assert!(replicas(&net, 1).take().is_empty());
    let unsent = submit(&mut net, 2, 0);
    assert!(matches!(unsent, Some(Outcome::Unsent)), "{unsent:?}");
}

#[test]
fn who_says_more_than_there_is_room_for_is_told_so() {
    let mut net = net();
    let part = Part {
        kind: Kind::Between,
        channel: name("log"),
        number: 1,
        total: 10_000,
        at: 0,
        bytes: vec![0; 10_000],
    };
    while replicas(&net, 1).hear(id(0), entity(0), part.clone()) {}
    let full = loop {
        if let Some(outcome) = submit(&mut net, 0, 1) {
            break outcome;
        }
    };
    assert!(matches!(full, Outcome::Answered(Answer::Full)), "{full:?}");
    assert_eq!(net.count(1, Reason::ReplicaFull), 1);
}
