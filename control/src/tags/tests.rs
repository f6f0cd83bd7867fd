//! Two nodes agree on keys, rotate them, restart, and change their minds.

use super::*;
use crate::keys::{Keys, Secret};
use std::path::Path;
use virga_ebpf::{
    header::Header,
    image::{Link as ImageLink, Place},
    tag::is_right,
};

const ADDRESSES: [&str; 2] = ["10.0.0.1", "10.0.0.2"];
const LIFE_NS: u64 = 10 * SECOND_NS;

fn keys(number: u8) -> Keys {
    Keys {
        node: Secret::new([number; 32]).into(),
        entity: Secret::new([number + 1; 32]).into(),
        psk: Secret::new([9; 32]),
    }
}

/// The configuration of one of two neighbours, 0 or 1.
fn config(number: usize, forwarding: &str) -> Config {
    let (own, other) = (keys(fill(number)), keys(fill(1 - number)));
    let text = format!(
        "[node]\nname = \"us\"\nnetwork = \"n\"\nnode_key_file = \"n\"\nentity_key_file = \"e\"\n\
         psk_file = \"p\"\nlisten = \"{}:4783\"\n[forwarding]\nlink_key_s = 10\n{forwarding}\n\
         [[peers]]\nname = \"them\"\nnode_key = \"{}\"\nentity_key = \"{}\"\naddress = \"{}:4783\"\n",
        ADDRESSES[number],
        hex::encode(&other.node.public),
        hex::encode(&other.entity.public),
        ADDRESSES[1 - number],
    );
    Config::from_toml(&text, Path::new("virga.toml"), own).unwrap()
}

fn fill(number: usize) -> u8 {
    [10, 20][number]
}

fn id(number: usize) -> NodeId {
    keys(fill(number)).node.id
}

/// Two neighbours and what is under way between them.
struct Pair {
    nodes: [Tags; 2],
    now_ns: u64,
}

impl Pair {
    fn new(forwarding: [&str; 2]) -> Self {
        let make =
            |number: usize| Tags::new(&config(number, forwarding[number]), [fill(number); 32]);
        Self {
            nodes: [make(0), make(1)],
            now_ns: 5,
        }
    }

    /// Both see a new session.
    fn connect(&mut self) {
        let began = News {
            session: Some(true),
            ..News::default()
        };
        for number in [0, 1] {
            self.nodes[number].hear(self.now_ns, id(1 - number), &began);
        }
        self.talk();
    }

    /// Delivers until nothing is left to say.
    fn talk(&mut self) {
        for _ in 0..10 {
            for number in [0, 1] {
                for (to, said) in self.nodes[number].take_said() {
                    assert_eq!(to, id(1 - number));
                    let (of_receiver, of_sender) = match said {
                        Said::Check { .. } | Said::Unchecked => (Some(said), None),
                        Said::Tagged { .. } | Said::Untagged => (None, Some(said)),
                    };
                    let news = News {
                        session: None,
                        of_receiver,
                        of_sender,
                    };
                    self.nodes[1 - number].hear(self.now_ns, id(number), &news);
                }
            }
            // What one sends with is right at the other at any time, whatever it checks.
            self.check();
        }
    }

    fn pass(&mut self, ns: u64) {
        self.now_ns += ns;
        for node in &mut self.nodes {
            node.handle_timeout(self.now_ns);
        }
        self.check();
        self.talk();
    }

    fn link(&self, number: usize) -> &Link {
        &self.nodes[number].links[&id(1 - number)]
    }

    /// A packet that one sends now is let in by the other.
    fn check(&self) {
        for number in [0, 1] {
            let (from, to) = (
                image(&self.nodes[number], number),
                image(&self.nodes[1 - number], 1 - number),
            );
            let next_hop = from.next_hops.values().next().unwrap();
            let header = Header::default();
            let sent = Header {
                link_tag: next_hop.link_tag(|| header),
                ..header
            };
            let enforced = to.neighbours.values().next().unwrap();
            assert!(!enforced.demands_tag || is_right(&enforced.tag_keys, &sent));
        }
    }

    fn checked(&self) -> [bool; 2] {
        [0, 1].map(|number| self.nodes[number].status(id(1 - number)).checked)
    }
}

/// What the tables of one shall say.
fn image(tags: &Tags, number: usize) -> Image {
    let mut image = Image::default();
    let other: SocketAddr = format!("{}:4783", ADDRESSES[1 - number]).parse().unwrap();
    let place = Place::new(0, other.ip().into());
    image.neighbours.insert(place, ImageLink::default());
    image.add_next_hop(NextHop {
        target: other.ip().into(),
        port: other.port(),
        ..NextHop::default()
    });
    tags.write(&mut image);
    image
}

#[test]
fn both_directions_are_agreed_on_and_demanded_a_while_later() {
    let mut pair = Pair::new(["", ""]);
    pair.pass(LIFE_NS);
    assert_eq!(
        pair.checked(),
        [false, false],
        "without a session nothing is agreed"
    );
    pair.connect();
    assert_eq!(
        pair.checked(),
        [false, false],
        "untagged packets are still under way"
    );
    assert!(pair.nodes[0].status(id(1)).sent);
    pair.pass(SETTLE_NS - 1);
    assert_eq!(pair.checked(), [false, false]);
    pair.pass(1);
    assert_eq!(pair.checked(), [true, true]);
    let status = pair.nodes[0].status(id(1));
    assert_eq!((status.checked_why, status.sent_why), (None, None));
    assert_ne!(
        pair.link(0).keys,
        pair.link(1).keys,
        "each direction has its own"
    );
}

#[test]
fn a_neighbour_with_another_node_key_keeps_what_was_agreed_on() {
    let mut pair = Pair::new(["", ""]);
    pair.connect();
    pair.pass(SETTLE_NS);
    let (before, now) = (id(1), NodeId(7));
    let tables = image(&pair.nodes[0], 0);
    let agreed = pair.nodes[0].status(before);
    assert!(agreed.checked && agreed.sent);
    pair.nodes[0].renamed(&[(before, now), (NodeId(8), NodeId(9))]);
    assert_eq!(pair.nodes[0].status(now), agreed);
    assert_eq!(pair.nodes[0].status(before), TagsStatus::default());
    assert_eq!(image(&pair.nodes[0], 0), tables);
}

#[test]
fn keys_give_way_to_new_ones_and_the_one_before_counts_until_then() {
    let mut pair = Pair::new(["", ""]);
    pair.connect();
    pair.pass(SETTLE_NS);
    let mut seen = vec![pair.link(0).keys[0]];
    for _ in 0..5 {
        let before = image(&pair.nodes[1], 1)
            .next_hops
            .values()
            .next()
            .unwrap()
            .link_tag(Header::default);
        pair.pass(LIFE_NS);
        let link = pair.link(0);
        let now = link.keys[usize::from(link.latest)];
        assert!(!seen.contains(&now), "each key is new");
        seen.push(now);
        assert_eq!(pair.link(1).sends, Some(link.latest), "and is used");
        let late = Header {
            link_tag: before,
            ..Header::default()
        };
        assert!(is_right(&link.keys, &late), "a packet that was under way");
        assert_eq!(pair.checked(), [true, true]);
        pair.pass(SETTLE_NS);
    }
}

#[test]
fn without_an_answer_no_key_is_overwritten() {
    let mut pair = Pair::new(["", ""]);
    pair.connect();
    pair.pass(SETTLE_NS);
    let held = pair.link(0).keys;
    pair.now_ns += LIFE_NS;
    assert!(pair.nodes[0].handle_timeout(pair.now_ns));
    let once = pair.link(0).keys;
    assert_ne!(held, once);
    // What is said is lost with the session; nothing more happens, for however long.
    let ended = News {
        session: Some(false),
        ..News::default()
    };
    assert!(!pair.nodes[0].hear(pair.now_ns, id(1), &ended));
    assert!(!pair.nodes[0].handle_timeout(pair.now_ns + 100 * LIFE_NS));
    assert_eq!((pair.link(0).keys, pair.checked()[0]), (once, true));
    pair.check();
    // The next session brings the same offer.
    pair.connect();
    assert_eq!(pair.link(0).keys, once);
    assert_eq!(pair.link(1).sends, Some(pair.link(0).latest));
}

#[test]
fn a_neighbour_that_forgot_everything_is_told_again_and_opens_nothing_before() {
    let mut pair = Pair::new(["", ""]);
    pair.connect();
    pair.pass(SETTLE_NS);
    pair.nodes[1] = Tags::new(&config(1, ""), [77; 32]);
    assert_eq!(pair.checked(), [true, false]);
    let untagged = Header::default();
    let enforced = *image(&pair.nodes[0], 0).neighbours.values().next().unwrap();
    assert!(enforced.demands_tag && !is_right(&enforced.tag_keys, &untagged));
    pair.connect();
    assert!(pair.nodes[1].status(id(0)).sent);
    pair.pass(SETTLE_NS);
    assert_eq!(pair.checked(), [true, true]);
}

#[test]
fn a_daemon_goes_on_with_what_the_one_before_saved() {
    let mut pair = Pair::new(["", ""]);
    pair.connect();
    pair.pass(SETTLE_NS + LIFE_NS);
    let (tables, saved) = (image(&pair.nodes[0], 0), pair.nodes[0].saved());
    let mut again = Tags::new(&config(0, ""), [78; 32]);
    for broken in [
        "",
        "\n \n1 2 3",
        &saved[1..],
        &saved[..90],
        &saved.replace(" 1 ", " 2 "),
    ] {
        again.restore(broken);
        assert_ne!(image(&again, 0), tables, "{broken}");
    }
    again.restore(&saved);
    assert_eq!(image(&again, 0), tables, "nothing changes for packets");
    assert_eq!(again.saved(), saved);
    pair.nodes[0] = again;
    pair.check();
    pair.connect();
    pair.pass(SETTLE_NS);
    assert_eq!(pair.checked(), [true, true]);
    // A configuration that has changed its mind counts.
    let mut off = Tags::new(&config(0, "link_tags = \"off\""), [79; 32]);
    off.restore(&saved);
    let status = off.status(id(1));
    assert!(!status.checked && !status.sent, "{status:?}");
}

#[test]
fn one_that_has_them_off_ends_what_was_agreed_and_both_say_why() {
    let mut pair = Pair::new(["", ""]);
    pair.connect();
    pair.pass(SETTLE_NS);
    pair.nodes[1] = Tags::new(&config(1, "link_tags = \"off\""), [77; 32]);
    pair.connect();
    let here = pair.nodes[0].status(id(1));
    assert_eq!((here.checked, here.sent), (false, false));
    assert_eq!(
        here.checked_why.as_deref(),
        Some("the neighbour sends none")
    );
    assert_eq!(here.sent_why.as_deref(), Some("the neighbour checks none"));
    let there = pair.nodes[1].status(id(0));
    assert_eq!(
        there.checked_why.as_deref(),
        Some("the configuration says so")
    );
    pair.pass(LIFE_NS);
    assert_eq!(pair.checked(), [false, false]);
}

#[test]
fn what_is_required_is_demanded_from_the_start_and_whatever_the_neighbour_says() {
    let mut pair = Pair {
        nodes: [
            Tags::new(&config(0, "link_tags = \"require\""), [1; 32]),
            Tags::new(&config(1, "link_tags = \"off\""), [2; 32]),
        ],
        now_ns: 5,
    };
    let demands = |pair: &Pair| {
        image(&pair.nodes[0], 0)
            .neighbours
            .values()
            .next()
            .unwrap()
            .demands_tag
    };
    assert!(demands(&pair));
    let began = News {
        session: Some(true),
        ..News::default()
    };
    pair.nodes[0].hear(5, id(1), &began);
    let declined = News {
        of_sender: Some(Said::Untagged),
        ..News::default()
    };
    assert!(!pair.nodes[0].hear(5, id(1), &declined));
    assert!(demands(&pair));
    let status = pair.nodes[0].status(id(1));
    assert_eq!(
        status.checked_why.as_deref(),
        Some("the neighbour sends none")
    );
    pair.nodes[1] = Tags::new(&config(1, ""), [3; 32]);
    pair.connect();
    assert!(demands(&pair));
    pair.pass(SETTLE_NS);
    assert_eq!(pair.checked(), [true, true]);
}

#[test]
fn news_are_bounded_and_the_latest_of_each_kind_counts() {
    let heard = Heard::default();
    let peer = NodeId(7);
    for parity in [0, 1] {
        heard.said(peer, Said::Tagged { parity });
    }
    heard.said(peer, Said::Unchecked);
    let news = heard.take().remove(&peer).unwrap();
    assert_eq!(news.of_sender, Some(Said::Tagged { parity: 1 }));
    assert_eq!(
        (news.of_receiver, news.session),
        (Some(Said::Unchecked), None)
    );
    heard.said(peer, Said::Untagged);
    heard.session_began(peer);
    let news = heard.take().remove(&peer).unwrap();
    assert_eq!(
        (news.session, news.of_sender),
        (Some(true), None),
        "of the session before"
    );
    assert!(heard.take().is_empty());
}

#[test]
fn a_neighbour_that_answers_no_more_is_asked_again_and_demanded_of_no_longer() {
    let mut pair = Pair::new(["", ""]);
    pair.connect();
    pair.pass(SETTLE_NS);
    assert_eq!(pair.checked(), [true, true]);
    // 1 comes back as a program that knows of no tags: it has a session, and answers nothing.
    let began = News {
        session: Some(true),
        ..News::default()
    };
    let us = &mut pair.nodes[0];
    us.hear(pair.now_ns, id(1), &began);
    let first = us.take_said();
    let mut asked = 0;
    let begun_ns = pair.now_ns;
    while us.status(id(1)).checked {
        let due_ns = us.poll_timeout().unwrap();
        let is_changed = us.handle_timeout(due_ns);
        assert_eq!(us.take_said(), first, "the same again");
        assert_eq!(is_changed, !us.status(id(1)).checked);
        let why = us.status(id(1)).checked_why.unwrap();
        assert!(why.starts_with("the neighbour does not answer"), "{why}");
        pair.now_ns = due_ns;
        asked += 1;
    }
    assert_eq!(pair.now_ns - begun_ns, UNANSWERED_NS);
    assert!(asked > 1);
    // Once it answers again, all is as it was.
    pair.connect();
    pair.pass(SETTLE_NS);
    assert_eq!(pair.checked(), [true, true]);
}

#[test]
fn what_is_required_stays_demanded_of_one_that_does_not_answer() {
    let mut us = Tags::new(&config(0, "link_tags = \"require\""), [1; 32]);
    let began = News {
        session: Some(true),
        ..News::default()
    };
    us.hear(5, id(1), &began);
    let mut now_ns = 5;
    while now_ns < 5 + 3 * UNANSWERED_NS {
        now_ns = us.poll_timeout().unwrap();
        assert!(!us.handle_timeout(now_ns));
    }
    assert!(us.status(id(1)).checked);
}

/// Another neighbour beside the one.
const OTHER: NodeId = NodeId(77);

/// Two neighbours at addresses of their own.
fn between_two() -> Tags {
    let mut us = Tags::new(&config(0, ""), [1; 32]);
    let link = Link {
        name: "other".into(),
        address: "10.0.0.9:4783".parse().unwrap(),
        policy: LinkTags::Auto,
        shares_with: None,
        has_session: false,
        stage: Stage::Unasked,
        demands: false,
        keys: [TagKey::default(); 2],
        latest: 0,
        latest_since_ns: 0,
        onward: [TagKey::default(); 2],
        sends: None,
        is_unchecked_there: false,
        to_say: Vec::new(),
    };
    us.links.insert(OTHER, link);
    us
}

#[test]
fn a_neighbour_does_not_take_over_the_place_of_one_that_is_checked() {
    let mut us = between_two();
    let there: SocketAddr = format!("{}:9", ADDRESSES[1]).parse().unwrap();
    let other = OTHER;
    assert!(us.may_move(other, there));
    us.links.get_mut(&id(1)).unwrap().demands = true;
    assert!(!us.may_move(other, there));
    assert!(us.may_move(id(1), there), "another port of its own");
    us.links.get_mut(&id(1)).unwrap().demands = false;
    us.moved(other, there);
    let shared = |us: &Tags, peer| us.status(peer).checked_why.unwrap();
    assert_eq!(shared(&us, id(1)), "other is at the same IP address");
    assert_eq!(shared(&us, other), "them is at the same IP address");
    us.moved(other, "10.0.0.8:1".parse().unwrap());
    assert_eq!(shared(&us, id(1)), "there was no session with it yet");
}

#[test]
fn neighbours_that_are_carried_share_the_loopback_address_of_ipv6_unless_tags_are_required() {
    let mut us = between_two();
    let peers = [id(1), OTHER];
    let relays: [SocketAddr; 2] = ["[::1]:1001".parse().unwrap(), "[::1]:1002".parse().unwrap()];
    let udp: [SocketAddr; 2] = peers.map(|peer| us.links[&peer].address);
    for peer in peers {
        us.links.get_mut(&peer).unwrap().demands = true;
    }
    for (peer, relay) in peers.into_iter().zip(relays) {
        assert!(us.may_move(peer, relay));
        us.moved(peer, relay);
    }
    for peer in peers {
        let status = us.status(peer);
        assert!(!status.checked, "{status:?}");
        let why = status.checked_why.unwrap();
        assert!(why.contains("at the same IP address"), "{why}");
    }
    // A session that begins now agrees on nothing; what was agreed on with the other counts when both are back.
    let began = News {
        session: Some(true),
        ..News::default()
    };
    us.hear(5, OTHER, &began);
    assert_eq!(us.take_said(), [(OTHER, Said::Unchecked)]);
    for (peer, at) in peers.into_iter().zip(udp) {
        assert!(us.may_move(peer, at));
        us.moved(peer, at);
    }
    assert!(us.status(id(1)).checked && !us.status(OTHER).checked);
    us.handle_timeout(ASK_AGAIN_NS);
    let said = us.take_said();
    assert!(
        matches!(said[..], [(OTHER, Said::Check { .. })]),
        "it is asked now: {said:?}"
    );
    // Of those of which tags are required, one alone is there.
    for required in peers {
        let mut us = between_two();
        us.links.get_mut(&required).unwrap().policy = LinkTags::Require;
        us.moved(peers[0], relays[0]);
        assert!(!us.may_move(peers[1], relays[1]));
    }
}
