//! Forwarding in user space, datagram by datagram.

use virga_ebpf::{
    header::{ChannelHash, Flags, OriginHash, SessionId, StreamId},
    image::{Link, Place, Via},
    sample::{ANY_CHANNEL, Order},
    tables::Pair,
    tag::{TagKey, link_tag},
};

use super::*;
use crate::tap;

const HERE: NodeId = NodeId(1);
const THERE: NodeId = NodeId(2);
const ORIGIN: OriginHash = OriginHash(3);
const CHANNEL: ChannelHash = ChannelHash(4);
const NEIGHBOUR: NodeId = NodeId(5);

fn neighbour() -> SocketAddr {
    "127.0.0.2:5000".parse().unwrap()
}

fn image(primary: u32, backup: u32) -> Image {
    let mut image = Image {
        node_id: HERE,
        port: 4783,
        ..Image::default()
    };
    image
        .neighbours
        .insert(Place::new(0, neighbour().ip().into()), Link::default());
    image.pairs.insert(Pair::new(ORIGIN, CHANNEL));
    let mut hop = |ip: &str, flags| {
        let target = ip.parse::<IpAddr>().unwrap().into();
        image.add_next_hop(NextHop {
            target,
            port: 4783,
            mtu: 1500,
            flags,
            ..NextHop::default()
        })
    };
    let via = Via {
        primary: hop("127.0.0.3", primary),
        backup: Some(hop("::1", backup)),
    };
    image.routes.insert(THERE, via);
    image
}

fn forwarder(image: &Image) -> Forwarder {
    let mut forwarder = Forwarder::new();
    let mut n = 0;
    forwarder
        .apply(image, || {
            n += 1;
            n
        })
        .unwrap();
    forwarder
}

fn datagram(sequence: u64) -> Vec<u8> {
    let header = Header {
        destination: THERE,
        origin_hash: ORIGIN,
        channel_hash: CHANNEL,
        payload_len: 16,
        sequence,
        ..Header::default()
    };
    let mut bytes = header.encode().to_vec();
    bytes.extend([0; 16]);
    bytes
}

#[test]
fn forwards_to_the_primary_and_counts_the_hop() {
    let mut f = forwarder(&image(NextHop::ALIVE, NextHop::ALIVE));
    let mut d = datagram(0);
    let to = "127.0.0.3:4783".parse().unwrap();
    assert_eq!(
        f.handle(1, 0, neighbour(), &mut d),
        Forwarding::Forward { to }
    );
    assert_eq!((d[offset::HOP_LIMIT], d[offset::HOP_COUNT]), (31, 1));
    assert_eq!(
        f.counters()[Outcome::Redirect.counter() as usize].packets,
        1
    );
    let way = f.way(THERE).unwrap();
    assert_eq!((way.to, way.datagram_bytes_max), (to, 1_500 - 28));
}

#[test]
fn a_neighbour_that_moved_is_followed_until_the_next_image() {
    let mut image = image(NextHop::ALIVE, NextHop::ALIVE);
    let told: SocketAddr = "127.0.0.3:4783".parse().unwrap();
    // Another node than its next hop moves nobody's place.
    let mut f = forwarder(&image);
    f.follow(THERE, "127.0.0.66:666".parse().unwrap());
    assert_eq!(f.way(THERE).unwrap().to, told);
    image.adjacent.insert(THERE, told);
    let mut f = forwarder(&image);
    let to = "127.0.0.77:999".parse().unwrap();
    f.follow(THERE, to);
    assert_eq!(f.way(THERE).map(|way| way.to), Some(to));
    let verdict = f.handle(1, 0, neighbour(), &mut datagram(0));
    assert_eq!(verdict, Forwarding::Forward { to });
    f.apply(&image, || 1).unwrap();
    let told = "127.0.0.3:4783".parse().unwrap();
    assert_eq!(f.way(THERE).map(|way| way.to), Some(told));
}

#[test]
fn a_dead_primary_gives_way_to_the_backup_and_two_dead_ones_to_a_reason() {
    let mut f = forwarder(&image(0, NextHop::ALIVE));
    let to = "[::1]:4783".parse().unwrap();
    assert_eq!(
        f.handle(1, 0, neighbour(), &mut datagram(0)),
        Forwarding::Forward { to }
    );
    assert_eq!(f.way(THERE).map(|way| way.to), Some(to));
    let mut f = forwarder(&image(0, 0));
    let verdict = f.handle(1, 0, neighbour(), &mut datagram(0));
    assert_eq!(verdict, Forwarding::Drop(Reason::NextHopDown));
    assert_eq!(f.way(THERE), None);
}

#[test]
fn a_short_datagram_is_truncated_and_a_stranger_is_no_neighbour() {
    let mut f = forwarder(&image(NextHop::ALIVE, 0));
    let short = f.handle(1, 0, neighbour(), &mut [0; 63]);
    assert_eq!(short, Forwarding::Drop(Reason::Truncated));
    let stranger = "127.0.0.9:4783".parse().unwrap();
    let verdict = f.handle(1, 0, stranger, &mut datagram(0));
    assert_eq!(verdict, Forwarding::Drop(Reason::Neighbour));
}

#[test]
fn another_program_at_the_address_of_a_neighbours_carrier_is_no_neighbour() {
    for (at, beside) in [
        ("127.86.0.1:5000", "127.86.0.1:5001"),
        ("[::1]:5000", "[::1]:5001"),
    ] {
        let [at, beside]: [SocketAddr; 2] = [at, beside].map(|text| text.parse().unwrap());
        let mut image = image(NextHop::ALIVE, 0);
        let place = Place::new(0, at.ip().into());
        image.neighbours.insert(place, Link::default());
        image.adjacent.insert(NEIGHBOUR, at);
        let mut f = forwarder(&image);
        let mut sequence = 0;
        let mut sent = |f: &mut Forwarder, from| {
            sequence += 1;
            f.handle(1, 0, from, &mut datagram(sequence))
        };
        let dropped = Forwarding::Drop(Reason::Neighbour);
        assert!(matches!(sent(&mut f, at), Forwarding::Forward { .. }));
        assert_eq!(sent(&mut f, beside), dropped);
        assert!(f.is_carried(at) && !f.is_carried(beside));
        // There it is, once it has moved.
        f.follow(NEIGHBOUR, beside);
        assert!(matches!(sent(&mut f, beside), Forwarding::Forward { .. }));
        assert!(f.is_carried(beside));
        f.apply(&image, || 7).unwrap();
        assert_eq!(sent(&mut f, beside), dropped);
        let counted = f.counters()[Reason::Neighbour.counter() as usize];
        assert_eq!(counted.packets, 2);
        // What is for this node itself, a session judges.
        let header = Header::decode(datagram(9).first_chunk().unwrap());
        let own = Header {
            destination: HERE,
            ..header
        };
        let mut own = [&own.encode()[..], &[0; 16]].concat();
        assert_eq!(f.handle(1, 0, beside, &mut own), Forwarding::Local);
    }
    // Elsewhere a neighbour may send from another port than it listens at.
    let mut image = image(NextHop::ALIVE, 0);
    let at: SocketAddr = "127.0.0.4:5000".parse().unwrap();
    let place = Place::new(0, at.ip().into());
    image.neighbours.insert(place, Link::default());
    image.adjacent.insert(NEIGHBOUR, at);
    let beside = SocketAddr::new(at.ip(), 5001);
    let forwarding = forwarder(&image).handle(1, 0, beside, &mut datagram(1));
    assert!(matches!(forwarding, Forwarding::Forward { .. }));
}

#[test]
fn a_tap_has_each_datagram_as_it_came_and_goes_when_nobody_takes() {
    let order = Order {
        until_ns: u64::MAX,
        counters: u64::MAX,
        channel: ANY_CHANNEL,
        bytes: 70,
        ..Order::default()
    };
    let mut f = forwarder(&image(NextHop::ALIVE, 0));
    let (mut taps, taken) = tap::taps(&order, 1, 7);
    f.set_tap(taps.pop().map(Box::new));
    let came = datagram(5);
    let mut sent = came.clone();
    let forwarded = f.handle(9, 3, neighbour(), &mut sent);
    assert!(matches!(forwarded, Forwarding::Forward { .. }));
    assert_ne!(sent, came);
    let seen = taken.next().unwrap();
    assert_eq!(seen.sample.bytes[..seen.kept], came[..70]);
    let head = seen.sample.head;
    assert_eq!((head.at_ns, head.ifindex, head.frame_bytes), (9, 3, 80));
    assert_eq!(head.counter, Outcome::Redirect.counter());
    assert_eq!(seen.source, neighbour());
    // What has no header has no origin: it is told where any is asked for.
    let dropped = f.handle(10, 3, neighbour(), &mut [1; 3]);
    assert_eq!(dropped, Forwarding::Drop(Reason::Truncated));
    assert_eq!(taken.next().unwrap().kept, 3);
    let one = Order {
        origin: OriginHash(99),
        ..order
    };
    f.tap_mut().unwrap().set_order(&one);
    assert!(matches!(
        f.handle(11, 3, neighbour(), &mut datagram(6)),
        Forwarding::Forward { .. }
    ));
    assert!(taken.next().is_none());
    assert_eq!((taken.tally().matched, taken.tally().taken), (2, 2));
    f.tap_mut().unwrap().set_order(&order);
    drop(taken);
    for sequence in 7..9 {
        let _forwarded = f.handle(12, 3, neighbour(), &mut datagram(sequence));
    }
    assert!(f.tap_mut().is_none());
}

const IN: [TagKey; 2] = [TagKey([1, 2]), TagKey([3, 4])];
const OUT: [TagKey; 2] = [TagKey([5, 6]), TagKey([7, 8])];

/// A forwarder whose neighbour's packets must carry link tags, and whose next hop wants some.
fn tagging() -> Forwarder {
    let mut image = image(NextHop::ALIVE | NextHop::TAGGED | NextHop::ODD, 0);
    for link in image.neighbours.values_mut() {
        (link.demands_tag, link.tag_keys) = (true, IN);
    }
    for next_hop in image.next_hops.values_mut() {
        next_hop.tag_keys = OUT;
    }
    forwarder(&image)
}

#[test]
fn a_link_tag_is_checked_and_another_written() {
    let mut f = tagging();
    let mut d = datagram(0);
    let verdict = f.handle(1, 0, neighbour(), &mut d);
    assert_eq!(verdict, Forwarding::Drop(Reason::LinkTag));
    let header = Header::decode(d.first_chunk().unwrap());
    let tag = link_tag(&IN, 1, &header).to_be_bytes();
    d[offset::LINK_TAG..HEADER_BYTES].copy_from_slice(&tag);
    let verdict = f.handle(1, 0, neighbour(), &mut d);
    assert!(matches!(verdict, Forwarding::Forward { .. }), "{verdict:?}");
    let sent = Header::decode(d.first_chunk().unwrap());
    assert_eq!(sent.hop_count, 1);
    assert_eq!(sent.link_tag, link_tag(&OUT, 1, &sent));
    let dropped = f.counters()[Reason::LinkTag.counter() as usize];
    assert_eq!(dropped.packets, 1);
}

#[test]
fn each_of_this_nodes_own_datagrams_gets_the_tag_that_its_next_hop_wants() {
    let way = tagging().way(THERE).unwrap();
    let mut run = [datagram(0), datagram(1), datagram(2)].concat();
    // The last one of a run may be shorter.
    run.truncate(run.len() - 5);
    way.tag(&mut run, datagram(0).len());
    for (sequence, one) in (0..).zip(run.chunks(datagram(0).len())) {
        let header = Header::decode(one.first_chunk().unwrap());
        assert_eq!(header.sequence, sequence);
        assert_eq!(header.link_tag, link_tag(&OUT, 1, &header));
    }
    let way = forwarder(&image(NextHop::ALIVE, 0)).way(THERE).unwrap();
    let mut plain = datagram(0);
    way.tag(&mut plain, HEADER_BYTES);
    assert_eq!(plain, datagram(0), "none where none is wanted");
}

#[test]
fn a_dead_link_is_avoided_where_there_is_a_backup_and_only_there() {
    let mut told = image(NextHop::ALIVE | NextHop::AVOIDABLE, NextHop::ALIVE);
    let neighbour = NodeId(5);
    let at: SocketAddr = "127.0.0.3:4783".parse().unwrap();
    let only = told.add_next_hop(NextHop {
        target: at.ip().into(),
        port: at.port(),
        mtu: 1500,
        flags: NextHop::ALIVE,
        ..NextHop::default()
    });
    told.adjacent.insert(neighbour, at);
    let via = Via {
        primary: only,
        backup: None,
    };
    told.routes.insert(neighbour, via);
    let mut f = forwarder(&told);
    assert_eq!(f.way(THERE).unwrap().to, at);
    f.avoid(neighbour);
    assert_ne!(f.way(THERE).unwrap().to, at, "over the backup");
    assert_eq!(f.way(neighbour).unwrap().to, at, "there is no other way");
    assert_eq!(f.link(neighbour).unwrap().to, at);
    let again = |n: u64| move || n;
    told.avoid(at.ip().into(), at.port());
    f.apply(&told, again(7)).unwrap();
    assert_ne!(f.way(THERE).unwrap().to, at, "the image says so too");
    let lives = image(NextHop::ALIVE | NextHop::AVOIDABLE, NextHop::ALIVE);
    f.apply(&lives, again(8)).unwrap();
    assert_eq!(f.way(THERE).unwrap().to, at);
    // Who keeps to what the kernel says sends nothing over a link without a carrier.
    let mut down = image(NextHop::AVOIDABLE, NextHop::ALIVE);
    down.adjacent.insert(neighbour, at);
    f.apply(&down, again(9)).unwrap();
    assert!(f.link(neighbour).is_none());
}

#[test]
fn an_echo_is_sent_back_as_user_spaces_and_this_nodes_own_is_noted_once() {
    let mut told = image(NextHop::ALIVE, 0);
    told.adjacent.insert(NEIGHBOUR, neighbour());
    let mut f = forwarder(&told);
    let header = Header {
        flags: Flags::ECHO,
        hop_limit: 2,
        destination: THERE,
        origin_hash: ORIGIN,
        channel_hash: CHANNEL,
        session_id: SessionId(77),
        stream_id: StreamId(5),
        sequence: 9,
        ..Header::default()
    };
    let mut theirs = header.encode();
    let to = "127.0.0.3:4783".parse().unwrap();
    let sent = f.handle(1, 0, neighbour(), &mut theirs);
    assert_eq!(sent, Forwarding::Forward { to });
    let sent = Header::decode(&theirs);
    assert_eq!(
        (sent.event_count, sent.hop_limit, sent.hop_count),
        (1, 1, 1)
    );

    let own = Header {
        destination: HERE,
        ..header
    };
    let came = |f: &mut Forwarder, now_ns| f.handle(now_ns, 0, neighbour(), &mut own.encode());
    let dropped = Forwarding::Drop(Reason::Echo);
    assert_eq!(came(&mut f, 2), dropped, "nobody watches");
    let watch = |place, secret, sent| Watch {
        peer: NEIGHBOUR,
        place,
        secret,
        sent,
    };
    let from = f.neighbours_address(NEIGHBOUR).unwrap();
    assert_eq!(f.heard(&watch(5, 77, 9), from), Heard::default());
    assert_eq!(came(&mut f, 3), Forwarding::Echo);
    assert_eq!(came(&mut f, 4), dropped, "a copy");
    let heard = Heard {
        nic_ns: 0,
        worker_ns: 3,
    };
    assert_eq!(f.heard(&watch(5, 77, 9), from), heard);
    // A number that was never sent is nobody's echo, and those to come are still noted.
    assert_eq!(f.heard(&watch(5, 77, 8), from), Heard::default());
    assert_eq!(came(&mut f, 5), Forwarding::Echo);
    // Another neighbour's, or another link's that gets the place, begins anew.
    let elsewhere = "127.0.0.9".parse::<IpAddr>().unwrap().into();
    assert_eq!(f.heard(&watch(5, 77, 9), elsewhere), Heard::default());
    assert_eq!(came(&mut f, 6), dropped);
    assert_eq!(f.heard(&watch(5, 78, 9), from), Heard::default());
    assert_eq!(came(&mut f, 7), dropped);
    assert_eq!(f.heard(&watch(u32::MAX, 78, 9), from), Heard::default());
}
