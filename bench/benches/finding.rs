//! How nodes find each other: what is said in sessions, in the LAN, and by the router in front of a node, written and read.
//!
//! The limit: a record of 300 bytes is signed once by its node (ed25519: 20 µs, and as much for the public key) and verified once by
//! each that hears of it (a double scalar multiplication: 45 µs); its form is read in ten fields (5 ns each), with allocations for the name, the
//! addresses and its bytes, and a BLAKE2s for the node's id (150 ns): 300 to 400 ns. A message of 16 records is 16 of that. A
//! question names 400 nodes, 16 bytes each: 2 to 4 ns a node to write or read. A member's message of 16 updates is as many
//! times 25 bytes: 100 ns.
//!
//! An announcement in the LAN is the record in base64 (1 ns a byte), some dozen names (50 to 100 ns each, with
//! allocations and compression) and a map: 5 to 10 µs; reading it is about the same, with the record's form.
//!
//! What NATs are told by is at most 36 bytes, one allocation to write: 30 ns; what 16 neighbours see is put into two
//! ordered sets: 2 µs, once a message, of which a neighbour may send four a second. A router's answer
//! is text: 1 to 3 ns a byte for the lines of SSDP and 3 to 6 for XML, 4 KiB of which are 15 to 25 µs; PCP's are fields at known places.
//! None of it is on the packet path.

use std::{
    collections::{BTreeMap, BTreeSet},
    hint::black_box,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ed25519_dalek::{Signer as _, SigningKey};
use virga_discovery::{
    Claim, MemberState, Record,
    limits::{ASKED_MAX, LIFETIME_S, RECORDS_MAX, UPDATES_MAX},
    record,
    swim::{Kind, Said, Update},
    wire::{Ask, Message},
};
use virga_ebpf::header::{NodeId, Subnet};
use virga_lan::message::{self, Said as Heard};
use virga_nat::{Class, Nat, Relation, Setup, Sight, limits::OBSERVERS_MAX, wire};
use virga_portmap::{Protocol, Route, epoch, igd, ssdp, url::Url};

/// When records are made, and looked at.
const NOW_S: u64 = 1_800_000_000;
const SECOND_NS: u64 = 1_000_000_000;

fn own_record(number: u8) -> Record {
    let key = SigningKey::from_bytes(&[number; 32]);
    let claim = Claim {
        node_key: [number; 32],
        entity_key: key.verifying_key().to_bytes(),
        network: record::network("bench"),
        subnet: Subnet(0),
        instance: 1,
        sequence: 1,
        issued_s: NOW_S,
        lifetime_s: LIFETIME_S,
        name: format!("edge-{number}"),
        addresses: vec![
            SocketAddr::from(([10, 0, 0, number], 4_783)),
            SocketAddr::from(([0xfd78, 0, 0, 0, 0, 0, 0, number.into()], 4_783)),
        ],
    };
    let signed = Record::issue(&claim, |bytes| key.sign(bytes).to_bytes());
    signed.expect("its form is right")
}

fn records(c: &mut Criterion) {
    let (one, network) = (own_record(1), record::network("bench"));
    let mut group = c.benchmark_group("finding");
    group.bench_function("record/issue", |b| b.iter(|| own_record(black_box(1))));
    group.bench_function("record/parse", |b| {
        b.iter(|| Record::parse(black_box(one.bytes())).expect("its form is right"));
    });
    group.bench_function("record/check", |b| {
        b.iter(|| assert_eq!(one.check(black_box(&network), NOW_S), Ok(())));
    });
    group.finish();
}

fn messages(c: &mut Criterion) {
    let numbers = 1..=u8::try_from(RECORDS_MAX).expect("a few");
    let known = (0..ASKED_MAX as u64).map(|node| (NodeId(node), 1));
    let update = |node: usize| Update {
        node: NodeId(node as u64),
        state: MemberState::Suspect,
        incarnation: 1,
        by: NodeId(0),
    };
    let all = [
        (
            "records",
            Message::Records(numbers.map(own_record).collect()),
        ),
        (
            "ask",
            Message::Ask(Ask {
                from: 0,
                to: u64::MAX,
                known: known.collect(),
            }),
        ),
        (
            "swim",
            Message::Swim(Said {
                incarnation: 1,
                kind: Kind::Ping,
                number: 1,
                updates: (0..UPDATES_MAX).map(update).collect(),
            }),
        ),
    ];
    let mut group = c.benchmark_group("finding");
    for (name, message) in all {
        let bytes = message.encode();
        assert_eq!(Message::parse(&bytes).as_ref(), Some(&message));
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(format!("{name}/encode"), |b| {
            b.iter(|| black_box(&message).encode());
        });
        group.bench_function(format!("{name}/parse"), |b| {
            b.iter(|| Message::parse(black_box(&bytes)).expect("its form is right"));
        });
    }
    group.finish();
}

fn lan(c: &mut Criterion) {
    let own = own_record(1);
    let said = message::announcement(&own).expect("it fits");
    let hears = NodeId(9);
    let Ok(Heard::Services(services)) = message::read(hears, &said) else {
        panic!("an announcement is of services");
    };
    assert!(matches!(&services[..], [Ok((heard, _))] if *heard == own));
    let mut group = c.benchmark_group("finding");
    group.throughput(Throughput::Bytes(said.len() as u64));
    group.bench_function("lan/announce", |b| {
        b.iter(|| message::announcement(black_box(&own)).expect("it fits"));
    });
    group.bench_function("lan/read", |b| {
        b.iter(|| message::read(hears, black_box(&said)).expect("a message"));
    });
    let question = message::question().expect("it fits");
    group.throughput(Throughput::Bytes(question.len() as u64));
    group.bench_function("lan/read_question", |b| {
        b.iter(|| {
            assert_eq!(
                message::read(hears, black_box(&question)),
                Ok(Heard::Question)
            )
        });
    });
    group.finish();
}

/// Where a neighbour is.
fn neighbour(number: u8) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, number], 4_783))
}

fn nat(c: &mut Criterion) {
    let (own, outer) = (
        SocketAddr::from(([10, 0, 0, 2], 4_783)),
        SocketAddr::from(([203, 0, 113, 7], 30_000)),
    );
    let meet = wire::Message::Meet {
        number: 1,
        node: NodeId(2),
        address: outer,
    };
    let bytes = meet.encode();
    assert_eq!(wire::Message::parse(&bytes), Some(meet));
    let mut group = c.benchmark_group("finding");
    group.bench_function("nat/encode", |b| b.iter(|| black_box(&meet).encode()));
    group.bench_function("nat/parse", |b| {
        b.iter(|| wire::Message::parse(black_box(&bytes)).expect("its form is right"));
    });

    let mut nat = Nat::new(Setup {
        own: NodeId(1_000),
        listen: own,
        seed: 1,
        neighbours_max: OBSERVERS_MAX,
        silent_ns: SECOND_NS,
    });
    let numbers = 1..=u8::try_from(OBSERVERS_MAX).expect("a few");
    let sight = |number| Sight {
        session: 1,
        relation: Relation::Neighbour,
        seen: Some(neighbour(number)),
        local: Some(own),
    };
    let node = |number: u8| NodeId(number.into());
    let sights: BTreeMap<_, _> = numbers.clone().map(|n| (node(n), sight(n))).collect();
    nat.look(SECOND_NS, &sights, &BTreeSet::new());
    let seen = wire::Message::Seen(outer).encode();
    let mut now_ns = SECOND_NS;
    let mut hear = |nat: &mut Nat, number: u8| {
        // So that nobody speaks more often than it may.
        now_ns += SECOND_NS;
        nat.handle(now_ns, node(number), &seen);
        while nat.poll_transmit().is_some() {}
    };
    numbers.clone().for_each(|number| hear(&mut nat, number));
    assert_eq!(nat.evidence().class(), Class::Cone);
    let mut numbers = numbers.cycle();
    group.bench_function("nat/seen", |b| {
        b.iter(|| hear(&mut nat, numbers.next().expect("without end")));
    });
    group.bench_function("nat/classify", |b| {
        b.iter(|| assert_eq!(black_box(&nat).evidence().class(), Class::Cone));
    });
    group.finish();
}

/// A router's description of itself, as long as those of routers are.
fn description() -> String {
    let service = |kind: &str| {
        format!(
            "<service><serviceType>urn:schemas-upnp-org:service:{kind}:1</serviceType>\
             <serviceId>urn:upnp-org:serviceId:{kind}1</serviceId><SCPDURL>/{kind}.xml</SCPDURL>\
             <controlURL>/ctl/{kind}</controlURL><eventSubURL>/evt/{kind}</eventSubURL></service>\n"
        )
    };
    let others: String = (0..12).map(|n| service(&format!("Other{n}"))).collect();
    format!(
        "<?xml version=\"1.0\"?>\n<root xmlns=\"urn:schemas-upnp-org:device-1-0\"><device><serviceList>\n{others}{}\
         </serviceList></device></root>\n",
        service("WANIPConnection")
    )
}

fn router(c: &mut Criterion) {
    let route = Route {
        gateway: Ipv4Addr::new(10, 0, 0, 1),
        own: Ipv4Addr::new(10, 0, 0, 2),
    };
    let answer = "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\n\
                  ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\
                  USN: uuid:00000000-0000-0000-0000-000000000000\r\nEXT:\r\n\
                  LOCATION: http://10.0.0.1:5000/root.xml\r\n\r\n";
    let url = Url::parse("http://10.0.0.1:5000/root.xml").expect("an address");
    let description = description();
    let mut group = c.benchmark_group("finding");
    group.throughput(Throughput::Bytes(answer.len() as u64));
    group.bench_function("router/ssdp", |b| {
        b.iter(|| {
            let location = ssdp::location(black_box(answer.as_bytes()), route.gateway, &route);
            assert_eq!(location.as_ref(), Some(&url));
        });
    });
    group.throughput(Throughput::Bytes(description.len() as u64));
    group.bench_function("router/igd", |b| {
        b.iter(|| {
            let services = igd::services(&url, black_box(&description)).expect("a description");
            assert_eq!(services.len(), 1);
        });
    });
    let mut announced = [0; 24];
    announced[..2].copy_from_slice(&[2, 0x80]);
    announced[8..12].copy_from_slice(&1_234_u32.to_be_bytes());
    group.throughput(Throughput::Bytes(announced.len() as u64));
    group.bench_function("router/pcp", |b| {
        b.iter(|| {
            let told = epoch::parse(Protocol::Pcp, black_box(&announced));
            assert_eq!(told.map(|told| told.epoch), Some(1_234));
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = records, messages, lan, nat, router
}
criterion_main!(benches);
