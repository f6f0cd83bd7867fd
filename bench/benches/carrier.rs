//! The fallback carriers: the hello before them, and frames over TCP and WebSocket.
//!
//! The limit: a hello is four keyed BLAKE2s of 100 to 200 bytes, two at each end (300 to 400 ns each, with the key's
//! block): 1.5 µs; a stranger costs a look-up. Taking a frame out of what was read is a length, a slice of a shared buffer (two
//! atomic operations, 5 ns each) and a header decoded (5 ns): 20 to 30 ns, whatever its size.
//!
//! Over loopback both ends share a core. The bytes are copied into the write buffer, the socket, and the read buffer: 3
//! times 1,472 at 8 GB/s are 0.5 µs; a pass through the kernel's TCP for each 64 KiB is 15 to 25 µs, 0.5 µs of
//! each such packet and 50 ns of one of 122 bytes. So 1.0 µs and 0.15 µs a packet. WebSocket adds a header
//! of up to 8 bytes, a message in a buffer of its own at both ends (two allocations, 50 ns each) and, from the end that
//! dials, a mask: a pass over all bytes at each end (0.1 µs), and four random bytes.

use std::{hint::black_box, time::Duration};

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
};
use tokio_tungstenite::{WebSocketStream, tungstenite::protocol::Role};
use tokio_util::either::Either;
use virga_carrier::{
    Keyring,
    hello::HelloError,
    wire::{self, Bottom, Frame, Reader, Wire, WireError, Writer},
};
use virga_ebpf::{
    header::{Header, NodeId},
    limits::HEADER_BYTES,
};
use x25519_dalek::{PublicKey, StaticSecret};

/// Frames of one turn.
const FRAMES: usize = 1_000;
/// Mesh packets: an empty sealed payload, and a full datagram.
const PACKET_BYTES: [usize; 2] = [80, 1_472];

fn packet(bytes: usize) -> Bytes {
    let payload = bytes - HEADER_BYTES;
    let header = Header {
        payload_len: u16::try_from(payload).expect("a packet's size"),
        ..Header::default()
    };
    let mut packet = header.encode().to_vec();
    packet.resize(bytes, 0x5a);
    packet.into()
}

fn keyrings() -> [Keyring; 2] {
    let (ids, secrets) = ([NodeId(1), NodeId(2)], [[11; 32], [12; 32]]);
    [0, 1].map(|at| {
        let other = PublicKey::from(&StaticSecret::from(secrets[1 - at])).to_bytes();
        let own = (ids[at], &secrets[at]);
        Keyring::new(own, ("bench", &[9; 32]), [(ids[1 - at], other)])
    })
}

fn hello(c: &mut Criterion) {
    let [dials, listens] = keyrings();
    let mut group = c.benchmark_group("carrier");
    let meet = || {
        let first = dials.begin(listens.own(), [5; 32]);
        let (peer, second) = listens.answer(&first, [6; 32])?;
        let third = dials.finish(listens.own(), &first, &second)?;
        listens.check(peer, &first, &second, &third)
    };
    group.bench_function("hello", |b| b.iter(|| assert_eq!(meet(), Ok(()))));
    let mut stranger = dials.begin(listens.own(), [5; 32]);
    stranger[15] ^= 4;
    group.bench_function("hello_of_a_stranger", |b| {
        b.iter(|| {
            let answer = listens.answer(black_box(&stranger), [6; 32]);
            assert_eq!(answer, Err(HelloError::Unknown));
        });
    });
    group.finish();
}

/// Frames as they stand in what was read over TCP.
fn take(c: &mut Criterion) {
    let mut group = c.benchmark_group("carrier");
    group.throughput(Throughput::Elements(FRAMES as u64));
    for bytes in PACKET_BYTES {
        let packet = packet(bytes);
        let length = u16::try_from(bytes).expect("a frame's size").to_be_bytes();
        let framed = [&length[..], &packet[..]].concat();
        let read = BytesMut::from(&framed.repeat(FRAMES)[..]);
        group.bench_function(BenchmarkId::new("take", bytes), |b| {
            b.iter_batched(
                || read.clone(),
                |mut read| {
                    let mut packets = 0;
                    while let Some(frame) = wire::take(&mut read).expect("a frame's length") {
                        let frame = wire::parse(frame).expect("a frame");
                        packets += usize::from(matches!(frame, Frame::Packet(_)));
                    }
                    assert_eq!(packets, FRAMES);
                },
                BatchSize::LargeInput,
            );
        });
    }
    group.finish();
}

/// A connection over loopback: the end that dials and the one that listens.
async fn connected() -> std::io::Result<[Bottom; 2]> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let (dials, accepted) = tokio::join!(
        TcpStream::connect(listener.local_addr()?),
        listener.accept()
    );
    let (dials, (listens, _)) = (dials?, accepted?);
    for end in [&dials, &listens] {
        end.set_nodelay(true)?;
    }
    Ok([Either::Left(dials), Either::Left(listens)])
}

async fn over_websocket([dials, listens]: [Bottom; 2]) -> [Wire; 2] {
    let end = async |bottom: Bottom, role| {
        let bounds = Some(wire::websocket_bounds());
        let socket = WebSocketStream::from_raw_socket(bottom, role, bounds).await;
        Wire::WebSocket(Box::new(socket))
    };
    [
        end(dials, Role::Client).await,
        end(listens, Role::Server).await,
    ]
}

/// Sends so many packets and awaits them; their bytes.
async fn carry(
    writer: &mut Writer,
    reader: &mut Reader,
    packet: &Bytes,
) -> Result<usize, WireError> {
    let send = async {
        for _ in 0..FRAMES {
            writer.put(packet.clone()).await?;
        }
        writer.flush().await
    };
    let receive = async {
        let mut bytes = 0;
        for _ in 0..FRAMES {
            if let Frame::Packet(packet) = reader.frame().await? {
                bytes += packet.len();
            }
        }
        Ok::<_, WireError>(bytes)
    };
    let ((), bytes) = tokio::try_join!(send, receive)?;
    Ok(bytes)
}

fn loopback(c: &mut Criterion) {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mut group = c.benchmark_group("carrier");
    group.throughput(Throughput::Elements(FRAMES as u64));
    for name in ["tcp", "websocket"] {
        let bottoms = runtime.block_on(connected()).expect("loopback");
        let [dials, listens] = match name {
            "tcp" => bottoms.map(|bottom| Wire::Tcp(Box::new(bottom))),
            _ => runtime.block_on(over_websocket(bottoms)),
        };
        let ((_, mut writer), (mut reader, _)) = (dials.split(), listens.split());
        for bytes in PACKET_BYTES {
            let packet = packet(bytes);
            group.bench_function(BenchmarkId::new(name, bytes), |b| {
                b.iter(|| {
                    let carried = runtime.block_on(carry(&mut writer, &mut reader, &packet));
                    assert_eq!(carried.expect("carried"), FRAMES * bytes);
                });
            });
        }
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(30)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = hello, take, loopback
}
criterion_main!(benches);
