//! What is said and what is kept, byte by byte.

use crate::{
    log::Boundary,
    replica::{
        Group, NoGroup, Role,
        message::{Batches, Body, Fetch, Message},
        promise::{PROMISE_NAME, Promise, PromiseFile},
    },
    tests::forgetful::Forgetful,
};
use virga_ebpf::header::NodeId;

const AT: Boundary = Boundary {
    offset: 3,
    chain: [3; 32],
};

fn bodies() -> Vec<Body> {
    vec![
        Body::Ask { settled: 1, end: 2 },
        Body::Vote {
            granted: true,
            is_whole: false,
        },
        Body::Leads { committed: 3 },
        Body::Fetch(Fetch {
            at: AT,
            settled: 4,
            round: 5,
            is_whole: true,
            is_probe: false,
        }),
        Body::Batches(Batches {
            at: AT,
            begin: 6,
            committed: 7,
            round: 8,
            is_whole: true,
            bytes: vec![9; 300],
        }),
        Body::Matches(AT),
        Body::Diverges(AT),
        Body::Gone(AT),
        Body::Newer,
        Body::Try { settled: 1, end: 2 },
        Body::Would {
            granted: true,
            is_whole: false,
        },
        Body::Who(14),
        Body::Here(15),
    ]
}

#[test]
fn a_message_is_read_as_it_is_written() {
    for body in bodies() {
        let is_open = matches!(body, Body::Batches(_));
        let message = Message {
            group: 11,
            life: 12,
            to: 13,
            epoch: 14,
            body,
        };
        let mut bytes = message.encode();
        assert_eq!(Message::parse(&bytes).as_ref(), Ok(&message));
        for end in 0..bytes.len() {
            let cut = Message::parse(&bytes[..end]);
            assert!(cut.is_err() || is_open, "{message:?} cut at {end}");
        }
        bytes.push(0);
        assert!(Message::parse(&bytes).is_err() || is_open);
        bytes[0] = 2;
        assert!(Message::parse(&bytes).is_err());
    }
}

#[test]
fn a_promise_that_was_damaged_is_not_taken_for_whole() {
    let disk = Forgetful::default();
    let (mut file, fresh) = PromiseFile::open(&disk, [1; 16]).unwrap();
    assert_eq!(fresh, Promise::default());
    let promise = Promise {
        is_whole: true,
        epoch: 5,
        voted: Some(NodeId(9)),
        settled: 4,
        committed: 100,
    };
    file.keep(&Promise {
        epoch: 4,
        ..promise
    })
    .unwrap();
    file.keep(&promise).unwrap();
    disk.crash(|| false);
    let read = |id| PromiseFile::open(&disk, id).map(|(_, promise)| promise);
    assert_eq!(read([1; 16]).unwrap(), promise);
    assert!(read([2; 16]).is_err(), "another log's");
    for at in (0..76).chain(4096..4096 + 76) {
        disk.flip(PROMISE_NAME, at, 1);
        if let Ok(found) = read([1; 16]) {
            assert!(!found.is_whole && found.settled == 0, "{at}: {found:?}");
        }
        disk.flip(PROMISE_NAME, at, 1);
    }
    assert_eq!(read([1; 16]).unwrap(), promise);
}

#[test]
fn a_group_has_every_node_once() {
    let nodes = [1, 2, 3].map(NodeId);
    let group = Group::new(NodeId(2), &nodes).unwrap();
    assert_eq!((group.count(), group.quorum()), (3, 2));
    let other = Group::new(NodeId(3), &[3, 1, 2].map(NodeId)).unwrap();
    assert_eq!(group.hash, other.hash);
    assert_eq!(Group::new(NodeId(4), &nodes), Err(NoGroup::Stranger));
    assert_eq!(Group::new(NodeId(1), &[]), Err(NoGroup::Count(0)));
    let twice = Group::new(NodeId(1), &[1, 1].map(NodeId));
    assert_eq!(twice, Err(NoGroup::Twice(NodeId(1))));
}

/// Whatever comes, from whomever, nothing is believed of it that was not asked for.
#[test]
fn what_nobody_asked_for_changes_nothing() {
    let mut cluster = super::cluster::Cluster::new(
        3,
        crate::replica::Acks::Quorum,
        super::cluster::World::Sound,
        5,
    );
    cluster.run(6_000);
    let leader = cluster.leader().unwrap();
    for _ in 0..5 {
        cluster.publish(leader);
        cluster.run(200);
    }
    for node in 0..3 {
        for from in 0..3 {
            for body in bodies() {
                cluster.say(from, node, body);
                cluster.run(20);
            }
        }
    }
    assert_eq!(cluster.broken, None);
    cluster.heal().unwrap();
    assert!((0..3).all(|node| cluster.up(node).replica.role() != Role::Ended));
}
