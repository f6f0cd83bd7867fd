//! The packet generator where it is not the kernel that runs it (AF_XDP, captures), and what the sink does with a packet.
//!
//! The limit, at 3 GHz: which packet comes next is some 20 instructions over two cache lines, with one wrongly guessed branch
//! in as many packets as there are flows: 3 ns. Its mesh header is 18 stores with 12 byte swaps (5 ns, see `header`), the outer
//! ones 42 bytes in 15 stores (5 ns), and the checksum 30 additions in three chains, folded twice (6 ns): 15 to 20 ns a frame,
//! whatever its size, as payloads stay zeros: 50 million a second and core, of which a veth takes 2 and a card all of 25
//! Gbit/s. A capture's frame is allocated and cleared (20 ns, and 0.02 ns a byte) and copied into the file's buffer: 50 ns.
//!
//! The sink finds the header behind 42 bytes (three checked loads, six comparisons), decodes it (5 ns) and reads and writes
//! its flow's next sequence (a line, 1 to 5 ns): 10 to 15 ns. In the kernel the same code stands between the driver and the drop.
//!
//! A capture that is read is checked and allocated frame by frame: 50 ns, and 0.1 ns a byte.

use std::{hint::black_box, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use virga::generate::{
    pcap,
    plan::{Path, Plan, Sizes, Spread},
};
use virga_ebpf::{
    header::{ChannelHash, NodeId, OriginHash},
    sink::{Counts, Kind, kind, read},
    workload::{FRAME_BYTES_MAX, write},
};

const FLOWS: u32 = 1_000;
const PORT: u16 = 4783;
const RUN: u32 = 7;

fn plan(sizes: Sizes) -> Plan {
    let path = Path {
        source_mac: [2, 0, 0, 0, 0, 1],
        target_mac: [2, 0, 0, 0, 0, 2],
        vlan: 0,
        source: [10, 0, 0, 2].into(),
        target: [10, 0, 0, 1].into(),
        port: PORT,
    };
    Plan {
        flows: FLOWS,
        spread: Spread::Destinations,
        hostile_permille: 100,
        sizes,
        ..Plan::new(path, NodeId(1), OriginHash(2), ChannelHash(3))
    }
}

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("generator");
    group.throughput(Throughput::Elements(1));
    for (name, sizes) in [
        ("frame_122", Sizes::Fixed(122)),
        ("frame_imix", Sizes::Imix),
    ] {
        let plan = plan(sizes);
        let workload = plan.workload(RUN, 1).expect("it can be sent");
        let mut lane = plan.lanes(1).expect("one lane")[0];
        let mut frame = vec![0; usize::from(FRAME_BYTES_MAX)];
        group.bench_function(name, |b| {
            b.iter(|| {
                let step = lane.step(black_box(&workload));
                let frame = frame.get_mut(..usize::from(step.frame_bytes))?;
                write(frame, &workload, &step, 0)
            });
        });
        // The last one is a frame of the plan.
        let step = lane.step(&workload);
        let frame = &mut frame[..usize::from(step.frame_bytes)];
        assert_eq!(write(frame, &workload, &step, 0), Some(()));
        assert_eq!(
            read(&*frame, PORT).map(|(header, _)| header),
            Some(step.header)
        );
    }
    let all: Vec<Vec<u8>> = plan(Sizes::Imix)
        .frames(RUN)
        .expect("it can be sent")
        .take(1_200)
        .collect();
    let (mut next, mut counts) = (all.iter().cycle(), Counts::default());
    let mut expected = vec![0; FLOWS as usize];
    group.bench_function("sink", |b| {
        b.iter(|| {
            let (header, _) = read(black_box(next.next()?.as_slice()), PORT)?;
            match kind(&header) {
                Kind::Authorised(flow) => {
                    counts.packets += 1;
                    counts.follow(expected.get_mut(flow as usize)?, header.sequence);
                }
                Kind::Stranger => counts.strangers += 1,
                Kind::Other => counts.others += 1,
            }
            Some(())
        });
    });
    assert!(counts.others == 0 && counts.packets >= 8 * counts.strangers);
    group.finish();
}

fn captures(c: &mut Criterion) {
    const FRAMES: usize = 1_000;
    let write = |file: &mut Vec<u8>| {
        file.clear();
        let frames = plan(Sizes::Fixed(122)).frames(RUN).expect("it can be sent");
        pcap::write(file, frames.take(FRAMES), 1_000)
    };
    let mut file = Vec::new();
    write(&mut file).expect("memory takes all");
    assert_eq!(file.len(), 24 + FRAMES * (16 + 122));
    assert_eq!(
        pcap::read(file.as_slice()).map_or(0, |all| all.len()),
        FRAMES
    );
    let mut group = c.benchmark_group("generator");
    group.throughput(Throughput::Elements(FRAMES as u64));
    group.bench_function("pcap_read_1000", |b| {
        b.iter(|| pcap::read(black_box(file.as_slice())));
    });
    group.bench_function("pcap_write_1000", |b| b.iter(|| write(&mut file)));
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = frames, captures
}
criterion_main!(benches);
