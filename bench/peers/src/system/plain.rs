//! Bare sockets, nothing encrypted: UDP for what may be lost (a datagram an event, or the whole batch in one), TCP for
//! what may not.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
};

use crate::end::{Args, Problem, Role, Tally, Workload, ready_with};

pub(crate) async fn run(args: &Args, tally: Arc<Tally>) -> Result<(), Problem> {
    let event_bytes = args.workload.event_bytes();
    match (args.role, args.workload) {
        (Role::Send, Workload::Reliable) => {
            let mut stream = TcpStream::connect(args.next).await?;
            ready_with("", &tally);
            let events = vec![0x5a; 64 * event_bytes];
            loop {
                stream.write_all(&events).await?;
                tally.send(64);
            }
        }
        (_, Workload::Reliable) => {
            let listener = TcpListener::bind(args.listen).await?;
            ready_with("", &tally);
            let (mut stream, _) = listener.accept().await?;
            let (mut buffer, mut bytes) = (vec![0; 1 << 18], 0);
            loop {
                let before = bytes / event_bytes;
                let more = stream.read(&mut buffer).await?;
                if more == 0 {
                    return Err("the sender has gone".into());
                }
                bytes += more;
                tally.take((bytes / event_bytes - before) as u64, more);
            }
        }
        (Role::Send, workload) => {
            let socket = UdpSocket::bind(args.listen).await?;
            socket.connect(args.next).await?;
            ready_with("", &tally);
            send(workload, &socket, &tally).await
        }
        (_, workload) => {
            let socket = UdpSocket::bind(args.listen).await?;
            ready_with("", &tally);
            let mut buffer = vec![0; 65_536];
            loop {
                let (bytes, from) = socket.recv_from(&mut buffer).await?;
                tally.take((bytes / event_bytes) as u64, bytes);
                if workload == Workload::RoundTrip {
                    socket.send_to(&buffer[..bytes], from).await?;
                }
            }
        }
    }
}

async fn send(workload: Workload, socket: &UdpSocket, tally: &Tally) -> Result<(), Problem> {
    let events = workload.events();
    let datagram = vec![0x5a; workload.message_bytes()];
    let mut answer = [0; 2_048];
    loop {
        let asked = Instant::now();
        socket.send(&datagram).await?;
        tally.send(events as u64);
        if workload == Workload::RoundTrip {
            let answered = socket.recv(&mut answer);
            if tokio::time::timeout(Duration::from_millis(200), answered)
                .await
                .is_ok()
            {
                tally.round_trip(asked);
            }
        }
    }
}
