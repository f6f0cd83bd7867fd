//! Mutated fixtures through the library and through the loaded program: both must agree on the fate of
//! every frame and on every byte of those that go on. Prints how often each fate was reached.

use std::{collections::BTreeMap, time::Instant};

use virga_ebpf::{
    header::{ChannelHash, Flags, OriginHash, SessionId, Subnet},
    tables::{Echo, mix},
    tag::link_tag,
};

use super::{
    fixtures::{false_positive, table},
    frames::{Checksum, Spec},
    paths::{Fate, Kernel, Memory, NEVER_NS, neighbour_index},
    world::{self, DESTINATIONS, MEMBER, STRANGER, WITHDRAWN},
};

/// Frames of a run where VIRGA_FRAMES does not say.
const FRAMES: u64 = 40_000;

/// A seeded source of choices (SplitMix64).
struct Choice(u64);

impl Choice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(mix(self.0, 1), 2)
    }
    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(n).unwrap()).unwrap()
    }
    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[7]
    }
    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }
}

/// A number from the environment.
fn given(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} is a number")),
    )
}

/// One to three changes of one fixture's frame, in the fields or in the bytes.
fn mutated(choice: &mut Choice, bases: &[Spec], falsely_positive: OriginHash) -> (Spec, Vec<u8>) {
    let mut spec = choice.of(bases);
    // A new packet: whether one that was there counts as one depends on when each of the two looks.
    spec.header.sequence = choice.next() >> 8;
    for _ in 0..choice.below(4) {
        match choice.below(5) {
            0 | 1 => change_header(choice, &mut spec, falsely_positive),
            2 => change_addresses(choice, &mut spec),
            _ => change_outer(choice, &mut spec),
        }
    }
    // What was changed is mostly given its right link tag.
    if spec.header.link_tag != 0 && choice.below(3) != 0 {
        let parity = choice.next();
        spec.header.link_tag = link_tag(&world::TAG_KEYS, parity, &spec.header);
    }
    let mut frame = spec.build();
    match choice.below(12) {
        0 => {
            let at = choice.below(frame.len());
            frame[at] ^= 1 << choice.below(8);
        }
        1 => {
            let at = choice.below(frame.len().min(120));
            frame[at] = choice.byte();
        }
        2 => frame.truncate(14 + choice.below(frame.len() - 13)),
        _ => {}
    }
    (spec, frame)
}

fn change_header(choice: &mut Choice, spec: &mut Spec, falsely_positive: OriginHash) {
    let header = &mut spec.header;
    match choice.below(14) {
        0 => header.magic = header.magic.wrapping_add(1),
        1 => header.version = choice.byte(),
        2 => header.priority = choice.byte() & 15,
        3 => header.flags = Flags(choice.byte() & 31),
        4 => header.hop_limit = choice.of(&[0, 1, 2, 31, 32, 33, 34, 255]),
        5 => header.hop_count = choice.byte(),
        6 | 7 => header.destination = choice.of(&DESTINATIONS),
        8 => {
            header.origin_hash = choice.of(&[MEMBER, MEMBER, STRANGER, WITHDRAWN, falsely_positive])
        }
        9 => {
            let stranger = [ChannelHash(9)];
            header.channel_hash = choice.of(&[&world::CHANNELS[..], &stranger].concat())
        }
        10 => {
            header.subnet =
                Subnet(choice.of(&[0, 0x0102_0000, 0x0102_ffff, 0x0103_0000, 0x0207_0000]))
        }
        11 => {
            let other = SessionId(choice.next());
            header.session_id = choice.of(&[other, world::ECHO_SECRET]);
        }
        12 => {
            header.payload_len = header
                .payload_len
                .wrapping_add_signed(choice.of(&[-1, 1, 100]))
        }
        _ => (header.link_tag, header.key_phase) = (choice.next(), choice.byte()),
    }
}

fn change_addresses(choice: &mut Choice, spec: &mut Spec) {
    let (sources, targets) = if spec.source.is_ipv4() {
        let sources = [
            world::NEIGHBOUR_V4,
            world::NEIGHBOUR_IN_SUBNET,
            world::NEIGHBOUR_SHAKING,
            world::NEIGHBOUR_UNVOUCHED,
            world::NEIGHBOUR_TAGGING,
            world::UNKNOWN_V4,
            world::OWN_V4,
        ];
        (sources, [world::OWN_V4, world::OWN_V4, "10.0.0.77"])
    } else {
        let (a, b) = (world::NEIGHBOUR_V6, world::UNKNOWN_V6);
        (
            [a, a, a, a, a, b, world::OWN_V6],
            [world::OWN_V6, world::OWN_V6, "fd00::77"],
        )
    };
    spec.source = choice.of(&sources).parse().unwrap();
    spec.target = choice.of(&targets).parse().unwrap();
}

fn change_outer(choice: &mut Choice, spec: &mut Spec) {
    let extension = |kind: u8, length: u8| {
        let mut bytes = vec![0; usize::from(length) * 8 + 7];
        bytes[0] = length;
        (kind, bytes)
    };
    match choice.below(14) {
        0 => spec.tags = vec![(0x8100, choice.of(&[1, 5, 0x2005]))],
        1 => spec.tags = vec![(0x88a8, choice.of(&[5, 7])), (0x8100, choice.of(&[6, 8]))],
        2 => spec.tags = vec![(0x8100, 1); 3],
        3 => spec.ethertype = Some(choice.of(&[0x0800, 0x86dd, 0x0806, 0x8100])),
        4 => spec.options = vec![1; choice.of(&[4, 8, 40])],
        5 => spec.fragment = choice.of(&[0, 0x2000, 0x4000, 0x2001, 1, 0x8000]),
        6 => {
            let kind = choice.of(&[0, 43, 60, 135, 44, 51, 50, 59]);
            spec.extensions = (0..=choice.below(5))
                .map(|_| extension(kind, choice.of(&[0, 0, 1, 3])))
                .collect();
        }
        7 => spec.protocol = choice.of(&[17, 6, 1, 0, 44]),
        8 => spec.target_port = choice.of(&[4783, 4784, 53]),
        9 => spec.checksum = choice.of(&[Checksum::Zero, Checksum::Wrong]),
        10 => spec.ip_length_delta = choice.of(&[-20, -1, 1, 8, 200]),
        11 => spec.udp_length_delta = choice.of(&[-9, -1, 1, 64]),
        12 => (spec.traffic_class, spec.source_port) = (choice.byte(), u16::from(choice.byte())),
        _ => (spec.trailing, spec.cut) = (choice.below(30), choice.below(30)),
    }
}

#[test]
fn library_and_loaded_program_agree_on_mutated_fixtures() {
    let image = world::image();
    let memory = Memory::new(&image);
    let Some(mut kernel) = Kernel::new(&image) else {
        return;
    };
    let falsely_positive = false_positive(&memory);
    let bases: Vec<Spec> = table(&memory)
        .into_iter()
        .filter_map(|f| f.frames.last().cloned())
        .collect();
    let seed = given("VIRGA_SEED").unwrap_or_else(|| getrandom::u64().unwrap());
    let frames = given("VIRGA_FRAMES").unwrap_or(FRAMES);
    println!("seed {seed}; VIRGA_SEED={seed} runs it again");
    let mut choice = Choice(seed);
    let mut reached: BTreeMap<Fate, u32> = BTreeMap::new();
    let start = Instant::now();
    let mut last = None;
    for n in 0..frames {
        // At times the last frame again: on a slow machine others are duplicates of what is forgotten.
        let again = last.take().filter(|_| choice.below(20) == 0);
        let (spec, frame) = again.unwrap_or_else(|| mutated(&mut choice, &bases, falsely_positive));
        // Both buckets are set, so that no clock decides between the two paths.
        let empty_at = choice.of(&[0, 0, NEVER_NS]);
        for vlan in [0].into_iter().chain(world::VLANS) {
            if let Some(neighbour) = neighbour_index(&memory, vlan, spec.source.into()) {
                memory.set_handshake_bucket(neighbour, empty_at);
                kernel.set_handshake_bucket(neighbour, empty_at);
            }
        }
        memory.watch();
        kernel.watch();
        let expected = memory.run(&frame);
        let actual = kernel.run(&frame);
        assert_eq!(
            (actual.0, super::hex(&actual.1)),
            (expected.0, super::hex(&expected.1)),
            "seed {seed}, frame {n}: {}\n{spec:?}",
            super::hex(&frame)
        );
        let (ours, theirs) = (memory.echo(), kernel.echo());
        let is_noted = |echo: Echo| (echo.newest, echo.heard_ns.map(|ns| ns != 0));
        assert_eq!(is_noted(theirs), is_noted(ours), "seed {seed}, frame {n}");
        *reached.entry(actual.0).or_default() += 1;
        last = Some((spec, frame));
    }
    println!("{frames} frames in {:.1} s", start.elapsed().as_secs_f64());
    for fate in Fate::all() {
        let count = reached.get(&fate).copied().unwrap_or(0);
        println!("{:>16} {count:>7}", fate.name());
        assert!(
            count > 0,
            "seed {seed}: no mutation ended as {}",
            fate.name()
        );
    }
}
