//! A member that shows tokens which no honest node would show, to a real daemon: each is counted for its own reason,
//! said in words, and opens nothing; the right one does.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use virga::{
    channel::message::{Message, Pattern},
    keys::{self, EntityKey, KeyKind, Secret},
    rights::{Grant, Link, List, Operation, Operations, Reach, Scope, revocation::Entry},
};
use virga_transport::ChannelName;

use crate::{
    hostile::without_tags,
    liar::{Liar, TAKEN},
    stage::{Stage, eventually},
};

const LISTS: &str = "publish = [\"router\"]\nsubscribe = [\"b\"]\n";
const REQUIRED: &str = "require_token = true\nissuers = [\"a\"]\n";
const HOUR_S: u64 = 3_600;

/// Links as they are, whatever they say.
fn chain(issuer: &EntityKey, links: &[&Link]) -> Vec<u8> {
    let mut bytes = [&[1], &issuer.public[..]].concat();
    bytes.push(u8::try_from(links.len()).unwrap());
    for link in links.iter().map(|link| link.as_bytes()) {
        bytes.extend(u16::try_from(link.len()).unwrap().to_be_bytes());
        bytes.extend(link);
    }
    bytes
}

fn scope(name: &str, reach: Reach) -> Scope {
    Scope::new(&ChannelName::parse(name).unwrap(), reach)
}

/// Of those whose tokens these are.
struct Keys {
    /// Whose tokens count.
    issuer: EntityKey,
    /// Who passes its right on.
    middle: EntityKey,
    /// Who shows them.
    holder: EntityKey,
    now_s: u64,
}

impl Keys {
    fn new(stage: &Stage) -> Self {
        let read = |file: &Path| EntityKey::from(keys::read(KeyKind::Entity, file).unwrap());
        let key = |node: &str| read(&stage.node(node).file("entity.key"));
        Self {
            issuer: key("a"),
            middle: EntityKey::from(Secret::generate().unwrap()),
            holder: key("b"),
            now_s: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_secs(),
        }
    }

    /// To subscribe, for an hour, and no more.
    fn right(&self) -> Grant {
        Grant {
            subject: self.holder.public,
            scope: scope(TAKEN.name, Reach::Channel),
            operations: Operations::new(&[Operation::Subscribe]).unwrap(),
            delegations: 0,
            not_before_s: self.now_s,
            not_after_s: self.now_s + HOUR_S,
            generation: 0,
            nonce: [0; 8],
        }
    }

    /// The same, to pass on.
    fn to_pass_on(&self) -> Grant {
        let operations = [Operation::Subscribe, Operation::Delegate];
        Grant {
            subject: self.middle.public,
            operations: Operations::new(&operations).unwrap(),
            delegations: 2,
            ..self.right()
        }
    }

    /// One link, by the issuer.
    fn one(&self, grant: Grant) -> Vec<u8> {
        chain(&self.issuer, &[&Link::sign(grant, &self.issuer)])
    }

    /// Two: what the issuer gave, and what became of it.
    fn two(&self, first: Grant, second: Grant) -> Vec<u8> {
        let links = [
            Link::sign(first, &self.issuer),
            Link::sign(second, &self.middle),
        ];
        chain(&self.issuer, &[&links[0], &links[1]])
    }

    /// What is wrong, the token, and what the router counts. Those that it holds on to come last, so that each is
    /// nearer to a right than those before it.
    fn wrong(&self) -> Vec<(&'static str, Vec<u8>, &'static str)> {
        let (right, more) = (|| self.right(), || self.to_pass_on());
        let mut flipped = self.one(right());
        let length = flipped.len();
        flipped[length / 2] ^= 1;
        let mut forged = self.one(right());
        forged[length - 1] ^= 1;
        let (first, second) = (
            Link::sign(more(), &self.issuer),
            Link::sign(right(), &self.middle),
        );
        let both = Operations::new(&[Operation::Publish, Operation::Subscribe]).unwrap();
        let elsewhere = |name, reach| Grant {
            scope: scope(name, reach),
            ..right()
        };
        vec![
            ("a byte", vec![1], "token_malformed"),
            (
                "cut short",
                flipped[..length / 2].to_vec(),
                "token_malformed",
            ),
            (
                "over-long",
                chain(&self.issuer, &[&first; 9]),
                "token_malformed",
            ),
            ("bit-flipped", flipped, "token_signature"),
            ("its signature bit-flipped", forged, "token_signature"),
            (
                "re-ordered",
                chain(&self.issuer, &[&second, &first]),
                "token_signature",
            ),
            (
                "without its beginning",
                chain(&self.issuer, &[&second]),
                "token_signature",
            ),
            (
                "not to be passed on",
                self.two(
                    Grant {
                        subject: self.middle.public,
                        delegations: 1,
                        ..right()
                    },
                    right(),
                ),
                "token_not_delegable",
            ),
            (
                "over-deep",
                self.two(
                    Grant {
                        delegations: 0,
                        ..more()
                    },
                    right(),
                ),
                "token_too_deep",
            ),
            (
                "widened in depth",
                self.two(
                    more(),
                    Grant {
                        delegations: 2,
                        ..right()
                    },
                ),
                "token_widened",
            ),
            (
                "widened in operations",
                self.two(
                    more(),
                    Grant {
                        operations: both,
                        ..right()
                    },
                ),
                "token_widened",
            ),
            (
                "widened at its end",
                self.two(
                    more(),
                    Grant {
                        not_after_s: self.now_s + HOUR_S + 1,
                        ..right()
                    },
                ),
                "token_widened",
            ),
            (
                "widened at its beginning",
                self.two(
                    more(),
                    Grant {
                        not_before_s: self.now_s - 1,
                        ..right()
                    },
                ),
                "token_widened",
            ),
            (
                "of a later generation",
                self.two(
                    more(),
                    Grant {
                        generation: 1,
                        ..right()
                    },
                ),
                "token_widened",
            ),
            (
                "for another subject",
                self.one(Grant {
                    subject: self.middle.public,
                    ..right()
                }),
                "token_holder",
            ),
            (
                "by another issuer",
                chain(&self.middle, &[&second]),
                "token_issuer",
            ),
            (
                "for another channel",
                self.one(elsewhere("test/other", Reach::Channel)),
                "token_scope",
            ),
            (
                "for the channels below",
                self.one(elsewhere("test/taken/below", Reach::Subtree)),
                "token_scope",
            ),
            (
                "widened in scope",
                self.two(more(), elsewhere("test", Reach::Subtree)),
                "token_widened",
            ),
            (
                "not yet valid",
                self.one(Grant {
                    not_before_s: self.now_s + HOUR_S / 2,
                    ..right()
                }),
                "token_not_yet_valid",
            ),
            (
                "expired",
                self.one(Grant {
                    not_before_s: self.now_s - HOUR_S,
                    not_after_s: self.now_s - 1,
                    ..right()
                }),
                "token_expired",
            ),
            (
                "for another operation",
                self.one(Grant {
                    operations: Operations::new(&[Operation::Publish]).unwrap(),
                    ..right()
                }),
                "token_operation",
            ),
        ]
    }
}

impl Liar {
    fn tell(&mut self, message: &Message) {
        let (now_ns, bytes) = (self.now_ns(), message.encode());
        self.node.send_control(now_ns, self.router, &bytes).unwrap();
    }

    fn ask(&mut self, request: u32) {
        let pattern = Pattern::Channel(ChannelName::parse(TAKEN.name).unwrap());
        self.tell(&Message::Subscribe { request, pattern });
    }
}

fn roster(status: &virga::api::status::Status) -> usize {
    let mut channels = status.channels.iter();
    let channel = channels.find(|channel| channel.name == TAKEN.name);
    channel.unwrap().remote_subscribers
}

#[tokio::test(flavor = "multi_thread")]
async fn each_token_that_is_wrong_is_counted_for_its_own_reason_and_opens_nothing() {
    let mut stage = Stage::new(&[TAKEN]);
    without_tags(&mut stage);
    stage.edit("router", LISTS, REQUIRED);
    stage.start("router").await;
    let keys = Keys::new(&stage);
    let mut liar = Liar::new(&stage);
    liar.connect();
    let why = || {
        let said = stage
            .node("router")
            .run(&["why", TAKEN.name, "b", "--to", "subscribe"]);
        (said.status.code(), String::from_utf8(said.stdout).unwrap())
    };
    let counted = async |reason: &str| {
        let status = stage.status("router").await;
        assert_eq!(roster(&status), 0, "{reason}");
        status.channel_reasons[reason]
    };
    let mut request = 0;
    let mut refused = async |liar: &mut Liar, what: &str, token: Vec<u8>, reason: &str| {
        let before = counted(reason).await;
        let asked = counted("subscribe_refused").await;
        liar.tell(&Message::Token(token));
        request += 1;
        liar.ask(request);
        eventually(&format!("{what}: {reason}"), async || {
            liar.turn();
            let is_answered = counted("subscribe_refused").await > asked;
            let is_counted = counted(reason).await > before;
            (is_answered && is_counted).then_some(())
        })
        .await;
        let (code, words) = why();
        assert!(
            code == Some(1) && words.contains("✗ token"),
            "{what}: {words}"
        );
        words
    };
    for (what, token, reason) in keys.wrong() {
        let words = refused(&mut liar, what, token, reason).await;
        println!(
            "{what}: {reason}:{}",
            words
                .split("✗ token")
                .nth(1)
                .unwrap()
                .lines()
                .next()
                .unwrap()
        );
    }

    // A right that is taken back before it is shown, by a list that an older one does not undo.
    let taken_back = Link::sign(
        Grant {
            nonce: [1; 8],
            ..keys.right()
        },
        &keys.issuer,
    );
    let (subject, link) = (Entry::Subject([9; 32]), Entry::Link(taken_back.id()));
    let until_s = keys.now_s + HOUR_S;
    let old = List::new(keys.issuer.public)
        .revoke(subject, until_s, keys.now_s)
        .unwrap();
    let new = old.revoke(link, until_s, keys.now_s).unwrap();
    for list in [&new, &old] {
        liar.tell(&Message::Revocations(list.sign(&keys.issuer)));
    }
    let token = chain(&keys.issuer, &[&taken_back]);
    let words = refused(&mut liar, "revoked", token, "token_revoked").await;
    assert!(
        words.contains("link 1 was revoked: the issuer's list has link "),
        "{words}"
    );
    assert_eq!(counted("revocations_old").await, 1);

    liar.tell(&Message::Token(keys.two(keys.to_pass_on(), keys.right())));
    liar.ask(1_000);
    eventually("the right one is let in", async || {
        liar.turn();
        (roster(&stage.status("router").await) == 1).then_some(())
    })
    .await;
    assert_eq!(why().0, Some(0));
}
