//! The table's lines about boundaries of subnets: visibility, other subnets' filters, and neighbours whose
//! subnet nobody vouches for.

use virga_ebpf::{
    header::{ChannelHash, NodeId},
    reason::Reason,
};

use super::{
    fixtures::{Table, between, shake},
    frames::Spec,
    paths::Fate,
    world::{
        CHANNEL, CONTROL, EXPORTED, HERE, LOCAL, NEIGHBOUR_IN_SUBNET, NEIGHBOUR_UNVOUCHED, OWN_V4,
        STRANGER, TO_EXPIRED, TO_SUBNET, TO_UNKNOWN, TO_V4, UPWARDS, WITHDRAWN,
    },
};

/// Within subnet 1.2.0.0/16.
const INSIDE: u32 = 0x0102_0304;

pub fn add(t: &mut Table) {
    by_visibility(t);
    by_filter(t);
    unvouched(t);
}

fn on(t: &mut Table, destination: NodeId, channel: ChannelHash) -> Spec {
    t.v4(destination).with(|s| s.header.channel_hash = channel)
}

/// From subnet 1.2.3.4.
fn from_inside(t: &mut Table, destination: NodeId, channel: ChannelHash) -> Spec {
    on(t, destination, channel).with(|s| {
        between(NEIGHBOUR_IN_SUBNET, OWN_V4)(s);
        s.header.subnet.0 = INSIDE;
    })
}

fn sent(t: &mut Table, name: &'static str, spec: Spec) {
    t.sent(name, spec, Fate::Redirect, between("10.1.0.1", "10.1.0.2"));
}

fn by_visibility(t: &mut Table) {
    let spec = on(t, TO_V4, LOCAL);
    sent(t, "a subnet-local channel within its subnet", spec);
    let spec = from_inside(t, TO_V4, LOCAL);
    t.drop(
        "a subnet-local channel to the parent",
        spec,
        Reason::Visibility,
    );
    let spec = on(t, TO_SUBNET, LOCAL);
    t.drop(
        "a subnet-local channel to a child",
        spec,
        Reason::Visibility,
    );
    let spec = from_inside(t, HERE, LOCAL);
    let name = "a subnet-local channel of another subnet, for this node";
    t.drop(name, spec, Reason::Visibility);
    let spec = from_inside(t, TO_V4, UPWARDS);
    sent(t, "a parent-visible channel to the root", spec);
    let spec = from_inside(t, HERE, UPWARDS);
    let name = "a parent-visible channel of a child, for this node";
    t.line(name, spec, Fate::Local);
    let spec = from_inside(t, TO_SUBNET, UPWARDS);
    let name = "a parent-visible channel to a sibling";
    t.drop(name, spec, Reason::Visibility);
    let spec = on(t, TO_SUBNET, UPWARDS);
    let name = "a parent-visible channel to a child";
    t.drop(name, spec, Reason::Visibility);
    let spec = from_inside(t, TO_SUBNET, EXPORTED);
    sent(t, "an exported channel to where it is exported", spec);
    let spec = from_inside(t, TO_V4, EXPORTED);
    let name = "an exported channel to where it is not";
    t.drop(name, spec, Reason::Visibility);
    let spec = from_inside(t, TO_SUBNET, CHANNEL);
    sent(t, "a global channel to a sibling", spec);
    let spec = from_inside(t, TO_SUBNET, CONTROL);
    sent(t, "control traffic to a sibling", spec);
    let spec = from_inside(t, TO_SUBNET, CONTROL).with(|s| shake(&mut s.header));
    sent(t, "a handshake to a sibling", spec);
}

fn by_filter(t: &mut Table) {
    let spec = on(t, TO_SUBNET, CHANNEL);
    sent(t, "by another subnet's filter", spec);
    let spec = on(t, TO_SUBNET, CHANNEL);
    sent(t, "by the filter again, now cached", spec);
    let stranger = |s: &mut Spec| s.header.origin_hash = STRANGER;
    let spec = on(t, TO_SUBNET, CHANNEL).with(stranger);
    let name = "not in the other subnet's filter";
    t.drop(name, spec, Reason::Unauthorised);
    let withdrawn = |s: &mut Spec| s.header.origin_hash = WITHDRAWN;
    let spec = on(t, TO_SUBNET, CHANNEL).with(withdrawn);
    let name = "withdrawn from the other subnet's filter";
    t.drop(name, spec, Reason::Unauthorised);
    let spec = on(t, TO_EXPIRED, CHANNEL);
    let name = "to a subnet whose filter has ended";
    t.drop(name, spec, Reason::SubnetUnknown);
    let spec = on(t, TO_UNKNOWN, CONTROL);
    let name = "to a subnet that no filter is known of";
    t.drop(name, spec, Reason::SubnetUnknown);
}

fn unvouched(t: &mut Table) {
    let from = || between(NEIGHBOUR_UNVOUCHED, OWN_V4);
    let spec = on(t, TO_V4, CHANNEL).with(from());
    let name = "data of a neighbour whose subnet nobody vouches for";
    t.drop(name, spec, Reason::Subnet);
    let spec = on(t, HERE, CHANNEL).with(from());
    let name = "its data for this node";
    t.drop(name, spec, Reason::Subnet);
    let spec = on(t, TO_V4, CONTROL).with(from());
    sent(t, "its control traffic", spec);
    let spec = on(t, TO_V4, CONTROL)
        .with(from())
        .with(|s| shake(&mut s.header));
    sent(t, "its handshakes", spec);
}
