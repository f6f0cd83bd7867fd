//! A member that shows tokens and statements which no honest node would show, to a real daemon: each is counted for its
//! own reason, said in words, and opens nothing; the right one does.

use std::{
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use virga::{
    capability::{Capabilities, Capability, Statement, statement::Claim},
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
const TOKENS: &str = "require_token = true\nissuers = [\"a\"]\n";
const CAPABILITIES: &str = "publish = [\"router\"]\nsubscribe_caps = \"hardware.gpu >= 2\"\n\
                            capability_issuers = [\"a\"]\n";
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

/// A stage whose router a member lies to.
struct Lied {
    stage: Stage,
    liar: Liar,
    /// The check that refuses it, until nothing is wrong any more.
    check: &'static str,
    requests: u32,
}

impl Lied {
    /// The router asks for that.
    async fn new(asked: &str, check: &'static str) -> Self {
        let mut stage = Stage::new(&[TAKEN]);
        without_tags(&mut stage);
        stage.edit("router", LISTS, asked);
        stage.start("router").await;
        let mut liar = Liar::new(&stage);
        liar.connect();
        Self {
            stage,
            liar,
            check,
            requests: 0,
        }
    }

    fn why(&self) -> (Option<i32>, String) {
        let router = self.stage.node("router");
        let said = router.run(&["why", TAKEN.name, "b", "--to", "subscribe"]);
        (said.status.code(), String::from_utf8(said.stdout).unwrap())
    }

    async fn count(&self, reason: &str) -> u64 {
        let status = self.stage.status("router").await;
        assert_eq!(roster(&status), 0, "{reason}");
        status.channel_reasons[reason]
    }

    /// Says something, and asks for the channel: that is counted for a reason, and refused; in which words.
    async fn refused(&mut self, what: &str, said: &Message, reason: &str) -> String {
        let before = self.count(reason).await;
        let asked = self.count("subscribe_refused").await;
        self.liar.tell(said);
        self.requests += 1;
        self.liar.ask(self.requests);
        eventually(&format!("{what}: {reason}"), async || {
            self.liar.turn();
            let is_answered = self.count("subscribe_refused").await > asked;
            (is_answered && self.count(reason).await > before).then_some(())
        })
        .await;
        let (code, words) = self.why();
        let failed = format!("✗ {}", self.check);
        let said = words.split(&failed).nth(1);
        let said = said.unwrap_or_else(|| panic!("{what}: {words}"));
        assert_eq!(code, Some(1), "{what}");
        println!("{what}: {reason}:{}", said.lines().next().unwrap());
        words
    }

    /// Says something, and is let in.
    async fn let_in(&mut self, said: &Message) {
        self.liar.tell(said);
        self.requests += 1;
        self.liar.ask(self.requests);
        eventually("it is let in", async || {
            self.liar.turn();
            (roster(&self.stage.status("router").await) == 1).then_some(())
        })
        .await;
        assert_eq!(self.why().0, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_token_that_is_wrong_is_counted_for_its_own_reason_and_opens_nothing() {
    let mut lied = Lied::new(TOKENS, "token").await;
    let keys = Keys::new(&lied.stage);
    for (what, token, reason) in keys.wrong() {
        lied.refused(what, &Message::Token(token), reason).await;
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
        let said = Message::Revocations(list.sign(&keys.issuer));
        lied.liar.tell(&said);
    }
    let token = Message::Token(chain(&keys.issuer, &[&taken_back]));
    let words = lied.refused("revoked", &token, "token_revoked").await;
    let why = "link 1 was revoked: the issuer's list has link ";
    assert!(words.contains(why), "{words}");
    assert_eq!(lied.count("revocations_old").await, 1);

    let right = keys.two(keys.to_pass_on(), keys.right());
    lied.let_in(&Message::Token(right)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_statement_that_is_wrong_is_counted_for_its_own_reason_and_opens_nothing() {
    let mut lied = Lied::new(CAPABILITIES, "capabilities").await;
    let keys = Keys::new(&lied.stage);
    let now_s = keys.now_s;
    let claim = |text: &str, version: u64| Claim {
        subject: keys.holder.public,
        version,
        not_before_s: now_s,
        not_after_s: now_s + HOUR_S,
        capabilities: Capabilities::new(vec![Capability::parse(text).unwrap()]).unwrap(),
    };
    let gpu = || claim("hardware.gpu=2", 5);
    let issued = |claim: Claim| Statement::issue(claim, 0, &keys.issuer).as_bytes().to_vec();
    let mut forged = issued(gpu());
    *forged.last_mut().unwrap() ^= 1;
    let others = Claim {
        subject: keys.middle.public,
        ..gpu()
    };
    let over = Claim {
        not_before_s: now_s - HOUR_S,
        not_after_s: now_s - 1,
        ..gpu()
    };
    let early = Claim {
        not_before_s: now_s + HOUR_S / 2,
        version: 1,
        ..gpu()
    };
    let by_another = Statement::issue(gpu(), 0, &keys.middle);
    let by_itself = Statement::announce(gpu(), &keys.holder);
    for (what, statement, reason) in [
        ("a byte", vec![1], "capability_malformed"),
        ("its signature bit-flipped", forged, "capability_signature"),
        (
            "about another subject",
            issued(others),
            "capability_subject",
        ),
        (
            "by another issuer",
            by_another.as_bytes().to_vec(),
            "capability_issuer",
        ),
        ("expired", issued(over), "capability_expired"),
        ("of itself", by_itself.as_bytes().to_vec(), "capability"),
        ("not yet valid", issued(early), "capability"),
        (
            "too little",
            issued(claim("hardware.gpu=1", 7)),
            "capability",
        ),
        // More, and said before the one that says less.
        (
            "an earlier one",
            issued(claim("hardware.gpu=2", 6)),
            "capability",
        ),
    ] {
        lied.refused(what, &Message::Statement(statement), reason)
            .await;
    }
    let right = issued(claim("hardware.gpu=2", 8));
    lied.let_in(&Message::Statement(right)).await;
}
