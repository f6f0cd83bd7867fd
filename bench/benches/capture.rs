//! A capture's way from the daemon to a file: cut to its headers, told as a line, read again, and written or summed up.
//!
//! The limit: a sample passes 122 bytes and some 15 fields. How much of it are headers is told by a dozen loads and branches:
//! 10 ns. As a line of JSON it is some 500 bytes, of which 244 are hex: serde writes 1 GB/s of such, 0.5 µs; reading it back takes 2
//! to 4 ns a byte and an allocation of 20 ns for each of nine texts: 1.5 to 2 µs. A pcapng block is three
//! allocations and the bytes themselves (20 ns each), and the name of its interface in a map: 150 to 200 ns. Summing up by
//! origin copies five texts (20 ns each) and finds them in a map of 1,000 (ten comparisons of texts, 100 ns): 250 ns.
//!
//! A capture tells at most 1,000 packets a second unless asked for more: 4 µs each are 0.4 % of a core, and none of it is
//! the packet's own: what that pays is `scripts/bench xdp`'s (`xdp.forward_captured_ns`).

use std::{hint::black_box, io, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use virga::{
    capture::{
        headers,
        line::{Fields, Line, Packet, Place},
        origins::Origins,
        pcapng::Writer,
    },
    hex,
};
use virga_bench::world;
use virga_ebpf::limits::UDP_PORT;

fn packet(frame: &[u8], origin: u64) -> Packet {
    let header = world::header();
    Packet {
        unix_ns: 1_700_000_000_000_000_000,
        place: Place::Nic,
        interface: "eth0".to_owned(),
        ifindex: 2,
        verdict: "drop".to_owned(),
        reason: "unauthorised".to_owned(),
        bytes: u32::try_from(frame.len()).unwrap_or(0),
        one_in: 1,
        cpu: 0,
        source: None,
        header: Some(Fields {
            origin: format!("{origin:016x}"),
            origin_name: None,
            channel: header.channel_hash.to_string(),
            channel_name: Some("metrics/edge-a".to_owned()),
            destination: header.destination.to_string(),
            session: format!("{:016x}", header.session_id.0),
            stream: header.stream_id.0,
            sequence: header.sequence,
        }),
        data: hex::encode_bytes(frame),
    }
}

fn capture(c: &mut Criterion) {
    let frame = world::frame(&world::header(), UDP_PORT);
    let packet_bytes = headers::bytes(&frame, UDP_PORT);
    assert_eq!(packet_bytes, 14 + 20 + 8 + 64);
    let told = packet(&frame, 0xaaaa);
    let line = Line::Packet(Box::new(told.clone()));
    let text = serde_json::to_string(&line).expect("a line");
    assert_eq!(serde_json::from_str::<Line>(&text).ok(), Some(line.clone()));

    let mut group = c.benchmark_group("capture");
    group.bench_function("headers", |b| {
        b.iter(|| headers::bytes(black_box(&frame), UDP_PORT));
    });
    group.bench_function("line_write", |b| {
        b.iter(|| serde_json::to_string(black_box(&line)));
    });
    group.bench_function("line_read", |b| {
        b.iter(|| serde_json::from_str::<Line>(black_box(&text)));
    });
    let mut writer = Writer::new(io::sink(), UDP_PORT, None).expect("a sink takes all");
    group.bench_function("pcapng", |b| {
        b.iter(|| writer.packet(black_box(&told), &frame));
    });
    let all: Vec<Packet> = (0..1_000).map(|n| packet(&frame, n)).collect();
    let (mut next, mut origins) = (all.iter().cycle(), Origins::default());
    group.bench_function("origins_1000", |b| {
        b.iter(|| {
            if let Some(packet) = next.next() {
                origins.note(black_box(packet));
            }
        });
    });
    assert_eq!(origins.without_place, 0);
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = capture
}
criterion_main!(benches);
