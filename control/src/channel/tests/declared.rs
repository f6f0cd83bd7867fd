//! Channels that come and go while nodes run: what was asked and said before them is not forgotten.

use super::{rights::UNIX_S, *};
use crate::{
    channel::{follow, rights::Taken},
    keys::{EntityKey, Secret},
    notices,
    rights::{List, identity::Retired, revocation::Entry},
};

const ISSUER: u8 = 9;

impl Net {
    /// Gives a node these channels, as the control plane does.
    fn declare(&mut self, at: usize, channels: &[ChannelConfig]) {
        let Side { node, service } = &mut self.sides[at];
        let retired = Retired::default();
        if service.set_channels(self.now_ns, node, (channels, &retired)) {
            service.take_early(self.now_ns, node);
            service.admit_peers(self.now_ns, node);
        }
        self.settle();
    }
}

#[test]
fn a_subscription_waits_for_its_channel_whichever_others_come_first() {
    let one = |text: &str| channel(text, &[0], &[1]);
    let mut net = Net::with(&[vec![one("a")], vec![one("a"), one("late")]]);
    let inbox = Inbox::with_room(10);
    net.subscribe(1, only("late"), &inbox);
    assert_eq!(net.status(1).subscriptions[0].state, "unknown_channel");
    net.declare(0, &[one("a"), one("b")]);
    net.declare(0, &[one("a"), one("b"), one("c")]);
    net.declare(0, &[one("a"), one("b"), one("c"), one("late")]);
    assert_eq!(net.roster(0, "late"), 1);
    net.say(0, "late", &["here"]);
    assert_eq!(inbox.texts(), ["here"]);
}

#[test]
fn a_revocation_list_waits_for_the_channel_that_makes_its_issuer_count() {
    let mut net = Net::new(2, &[channel("a", &[0], &[1])]);
    let issuer = EntityKey::from(Secret::new(keys(ISSUER).entity_key));
    let list = List::new(entity(ISSUER));
    let list = list
        .revoke(Entry::Subject(entity(1)), u64::MAX, UNIX_S)
        .unwrap();
    let signed = list.sign(&issuer);
    let hear = |net: &mut Net| {
        let Side { node, service } = &mut net.sides[0];
        service.on_revocations(net.now_ns, node, &signed)
    };
    assert_eq!(hear(&mut net), Taken::No);
    assert_eq!(net.count(0, Reason::RevocationsIssuer), 1);
    let strict = ChannelConfig {
        issuers: vec![Entity::from_key(entity(ISSUER))],
        ..channel("b", &[0], &[1])
    };
    net.declare(0, &[channel("a", &[0], &[1])]);
    assert_eq!(hear(&mut net), Taken::No, "nobody names the issuer yet");
    net.declare(0, &[channel("a", &[0], &[1]), strict]);
    assert_eq!(hear(&mut net), Taken::Known);
}

#[test]
fn who_had_no_room_is_shown_everything_again_and_not_too_often() {
    let mut net = Net::new(2, &[channel("a", &[0], &[1])]);
    net.subscribe(1, only("a"), &Inbox::with_room(1));
    let mut directory = follow::Directory::default();
    directory.declarations.insert(b"declared".to_vec());
    net.sides[0].service.directory = Arc::new(directory);
    let shown = |net: &mut Net| {
        let Side { node, service } = &mut net.sides[1];
        service.ask_to_show(net.now_ns, node, &[id(0)]);
        net.settle();
        net.sides[1].service.notices.take_shown(10)
    };
    net.pass(1_000);
    let declared = [(id(0), notices::Shown::Channel(b"declared".to_vec()))];
    assert_eq!(shown(&mut net), declared);
    assert_eq!(shown(&mut net), []);
    net.pass(1_000);
    assert_eq!(shown(&mut net), declared);
}
