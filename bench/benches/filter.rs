//! What a subnet's gateway signs, as it arrives at another node: read, and verified.
//!
//! The limit: a filter of one bank is 4 KiB, of eight 32. Reading it turns each big-endian word into one of the guard's
//! lines and keeps the bytes: two passes over them, 1 to 2 GB/s with their allocations, so 3 to 5 µs and 25 to 35.
//! ed25519 hashes all that was signed with SHA-512 (400 to 600 MB/s in software): 8 µs and 65, beside the 45 µs of a double
//! scalar multiplication. A list of 1,024 withdrawn pairs is 10 KiB and an ordered set of as many (100 ns each): 100 µs.
//! One of each comes from a gateway when it has something to say; nothing here is on the packet path.

use std::{collections::BTreeSet, hint::black_box, time::Duration};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use virga::{
    filters::{
        Said, Statement,
        statement::{Head, WITHDRAWN_MAX},
    },
    keys::{EntityKey, Secret},
};
use virga_bench::world;
use virga_ebpf::{guard::Guard, header::Subnet, subnet::SubnetPrefix, tables::Pair};

fn pairs(count: u64) -> BTreeSet<Pair> {
    (0..count).map(world::pair).collect()
}

fn filter(count: u64) -> Said {
    let guard = Guard::build([1, 2], pairs(count).iter());
    Said::Filter {
        salt: guard.info.salt,
        lines: guard.lines,
    }
}

fn statements(c: &mut Criterion) {
    let key: EntityKey = Secret::new([7; 32]).into();
    let head = Head {
        signer: key.public,
        prefix: SubnetPrefix {
            subnet: Subnet(0x0102_0000),
            mask: 0xffff_0000,
        },
        version: 2,
        expires_s: 1_800_000_000,
    };
    let withdrawn = Said::Withdrawn {
        base: 1,
        pairs: pairs(WITHDRAWN_MAX as u64),
    };
    let mut group = c.benchmark_group("filter");
    for (name, said) in [
        ("one_bank", filter(world::PAIRS)),
        ("eight_banks", filter(8 * world::PAIRS)),
        ("withdrawn", withdrawn),
    ] {
        let signed = Statement::sign(head, said, &key);
        let bytes = signed.as_bytes();
        group.throughput(Throughput::Bytes(bytes.len() as u64));
        group.bench_function(format!("parse/{name}"), |b| {
            b.iter(|| Statement::parse(black_box(bytes)).expect("its form is right"));
        });
        let read = Statement::parse(bytes).expect("its form is right");
        group.bench_function(format!("verify/{name}"), |b| {
            b.iter(|| read.clone().verify().expect("signed"));
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = statements
}
criterion_main!(benches);
