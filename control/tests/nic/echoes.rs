//! The table's lines about echoes: what a neighbour sends to itself by way of this node, and what this node sent so
//! and comes back.

use virga_ebpf::{
    header::{Flags, NodeId},
    reason::Reason,
    tag::link_tag,
};

use super::{
    fixtures::{Fixture, Table, between, tagged},
    frames::Spec,
    paths::{Fate, Kernel, Memory},
    world::{
        self, CONTROL, ECHO_PLACE, ECHO_PLACE_IN_SUBNET, ECHO_PLACE_TAGGING, ECHO_SECRET, HERE,
        NEIGHBOUR_IN_SUBNET, OWN_V4, STRANGER, TAG_KEYS, TO_SAME_INTERFACE, UNKNOWN_V4,
    },
};

fn is_echo(s: &mut Spec) {
    let header = &mut s.header;
    header.flags = Flags::ECHO;
    header.channel_hash = CONTROL;
    header.session_id = ECHO_SECRET;
    header.stream_id.0 = ECHO_PLACE;
    (header.hop_limit, header.event_count) = (2, 0);
}

fn echo(t: &mut Table, destination: NodeId) -> Spec {
    t.v4(destination).with(is_echo)
}

pub fn add(t: &mut Table) {
    to_send_back(t);
    that_came_back(t);
}

/// Another's go where all its packets go: back to it, once.
fn to_send_back(t: &mut Table) {
    let spec = echo(t, TO_SAME_INTERFACE);
    let back = between(OWN_V4, "10.0.0.7");
    t.sent("a neighbour's echo", spec, Fate::Transmit, back);
    let spec = echo(t, TO_SAME_INTERFACE).with(|s| s.header.hop_limit = 1);
    t.drop("an echo that was sent on", spec, Reason::HopLimit);
    let spec = echo(t, TO_SAME_INTERFACE).with(between(UNKNOWN_V4, OWN_V4));
    t.drop("an echo of nobody's", spec, Reason::Neighbour);
    let spec = echo(t, TO_SAME_INTERFACE).with(|s| s.header.origin_hash = STRANGER);
    t.drop("an echo of a stranger", spec, Reason::Unauthorised);
    let bare = |s: &mut Spec| s.header.link_tag = 0;
    let spec = tagged(t, TO_SAME_INTERFACE, 0).with(is_echo).with(bare);
    t.drop("an echo without link tag", spec, Reason::LinkTag);
    let spec = echo(t, TO_SAME_INTERFACE);
    t.lines.push(Fixture {
        name: "an echo that was sent back",
        frames: vec![spec.clone(), spec],
        fate: Fate::Drop(Reason::Duplicate),
        out: None,
    });
}

fn that_came_back(t: &mut Table) {
    let back = |s: &mut Spec| (s.header.hop_limit, s.header.hop_count) = (1, 1);
    let spec = echo(t, HERE).with(back);
    t.line("an echo that came back", spec.clone(), Fate::Echo);
    t.drop("the same again", spec, Reason::Echo);
    let spec = echo(t, HERE).with(between(NEIGHBOUR_IN_SUBNET, OWN_V4));
    t.drop("an echo by another neighbour", spec, Reason::Echo);
    let spec = echo(t, HERE)
        .with(between(NEIGHBOUR_IN_SUBNET, OWN_V4))
        .with(|s| s.header.stream_id.0 = ECHO_PLACE_IN_SUBNET);
    let name = "an echo out of another subnet: it carries this node's own";
    t.line(name, spec, Fate::Echo);
    let spec = echo(t, HERE).with(|s| s.header.event_count = 1);
    t.line("an echo that user space forwarded", spec, Fate::Echo);
    let spec = echo(t, HERE).with(|s| s.header.session_id.0 ^= 1 << 40);
    t.drop("an echo with another secret", spec, Reason::Echo);
    for place in [0, u32::MAX] {
        let spec = echo(t, HERE).with(|s| {
            s.header.stream_id.0 = place;
            s.header.session_id.0 = 0;
        });
        t.drop("an echo of no link", spec, Reason::Echo);
    }
    let spec = echo(t, HERE).with(between(UNKNOWN_V4, OWN_V4));
    t.drop("an echo from nobody", spec, Reason::Neighbour);
    let spec = tagged(t, HERE, 0).with(is_echo);
    let name = "an echo under another packet's link tag";
    t.drop(name, spec, Reason::LinkTag);
    for parity in [0, 1] {
        let right = |s: &mut Spec| s.header.link_tag = link_tag(&TAG_KEYS, parity, &s.header);
        let spec = tagged(t, HERE, 0).with(is_echo);
        let others = spec.clone().with(right);
        t.drop("an echo under another link's tag", others, Reason::Echo);
        let own = |s: &mut Spec| s.header.stream_id.0 = ECHO_PLACE_TAGGING;
        let spec = spec.with(own).with(right);
        t.line("an echo with its link tag", spec, Fate::Echo);
    }
}

#[test]
fn an_echo_is_noted_by_who_forwarded_it_and_only_where_it_is_new() {
    let image = world::image();
    let memory = Memory::new(&image);
    let Some(mut kernel) = Kernel::new(&image) else {
        return;
    };
    kernel.watch();
    let mut t = Table::default();
    for (event_count, field) in [(0, 0), (1, 1), (9, 1)] {
        let before = kernel.echo();
        let spec = echo(&mut t, HERE).with(|s| s.header.event_count = event_count);
        assert_eq!(kernel.run(&spec.build()).0, Fate::Echo);
        let after = kernel.echo();
        assert!(after.heard_ns[field] > before.heard_ns[field]);
        assert_eq!(after.heard_ns[1 - field], before.heard_ns[1 - field]);
        assert_eq!(after.newest, spec.header.sequence);
        assert_eq!(kernel.run(&spec.build()).0, Fate::Drop(Reason::Echo));
        assert_eq!(kernel.echo(), after, "a copy changes nothing");
    }
    // Without anybody who watches, nothing is noted.
    assert_eq!(
        memory.run(&echo(&mut t, HERE).build()).0,
        Fate::Drop(Reason::Echo)
    );
    assert_eq!(memory.echo().newest, 0);
}
