//! quinn: datagrams for what may be lost, one stream for what may not.
//!
//! Settings, by quinn 0.11's own documentation (docs.rs/quinn, `TransportConfig`, `MtuDiscoveryConfig`): windows above
//! the product of bandwidth and delay, datagram buffers of some MiB, and the path MTU searched up to the largest UDP
//! payload ("the highest acceptable value"), as a loopback carries it. GSO and GRO are on by themselves.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use quinn::{
    ClientConfig, Connection, Endpoint, MtuDiscoveryConfig, SendDatagramError, ServerConfig,
    TransportConfig, VarInt,
};

use crate::{
    end::{Args, BATCH, Problem, Role, Tally, Workload, ready_with},
    stage,
};

const WINDOW_BYTES: u32 = 16 << 20;
const DATAGRAM_BUFFER_BYTES: usize = 4 << 20;
const UDP_PAYLOAD_BYTES_MAX: u16 = 65_527;

fn transport() -> Arc<TransportConfig> {
    let mut mtu = MtuDiscoveryConfig::default();
    mtu.upper_bound(UDP_PAYLOAD_BYTES_MAX);
    let mut transport = TransportConfig::default();
    transport
        .mtu_discovery_config(Some(mtu))
        .stream_receive_window(VarInt::from_u32(WINDOW_BYTES))
        .receive_window(VarInt::from_u32(WINDOW_BYTES))
        .send_window(WINDOW_BYTES.into())
        .datagram_receive_buffer_size(Some(DATAGRAM_BUFFER_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BUFFER_BYTES)
        .keep_alive_interval(Some(Duration::from_secs(2)));
    Arc::new(transport)
}

pub(crate) async fn run(args: &Args, tally: Arc<Tally>) -> Result<(), Problem> {
    let (cert, key) = stage::certificate(&args.folder)?;
    match args.role {
        Role::Receive | Role::Relay => {
            let mut config = ServerConfig::with_single_cert(vec![cert], key)?;
            config.transport_config(transport());
            let mut endpoint_config = quinn::EndpointConfig::default();
            endpoint_config.max_udp_payload_size(UDP_PAYLOAD_BYTES_MAX)?;
            let socket = std::net::UdpSocket::bind(args.listen)?;
            let runtime = Arc::new(quinn::TokioRuntime);
            let endpoint = Endpoint::new(endpoint_config, Some(config), socket, runtime)?;
            ready_with("", &tally);
            let incoming = endpoint.accept().await.ok_or("the endpoint has closed")?;
            receive(args.workload, &incoming.await?, &tally).await
        }
        Role::Send => {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(cert)?;
            let mut config = ClientConfig::with_root_certificates(Arc::new(roots))?;
            config.transport_config(transport());
            let mut endpoint = client(args.listen)?;
            endpoint.set_default_client_config(config);
            let connection = endpoint.connect(args.next, "localhost")?.await?;
            ready_with("", &tally);
            send(args.workload, &connection, &tally).await
        }
    }
}

fn client(listen: SocketAddr) -> Result<Endpoint, Problem> {
    let mut config = quinn::EndpointConfig::default();
    config.max_udp_payload_size(UDP_PAYLOAD_BYTES_MAX)?;
    let socket = std::net::UdpSocket::bind(listen)?;
    Ok(Endpoint::new(
        config,
        None,
        socket,
        Arc::new(quinn::TokioRuntime),
    )?)
}

async fn receive(
    workload: Workload,
    connection: &Connection,
    tally: &Tally,
) -> Result<(), Problem> {
    let event_bytes = workload.event_bytes();
    if workload == Workload::Reliable {
        let mut stream = connection.accept_uni().await?;
        let mut bytes = 0;
        while let Some(chunk) = stream.read_chunk(usize::MAX, true).await? {
            let before = bytes / event_bytes;
            bytes += chunk.bytes.len();
            tally.take((bytes / event_bytes - before) as u64, chunk.bytes.len());
        }
        return Ok(());
    }
    loop {
        let datagram = connection.read_datagram().await?;
        tally.take((datagram.len() / event_bytes) as u64, datagram.len());
        if workload == Workload::RoundTrip {
            connection.send_datagram(datagram)?;
        }
    }
}

async fn send(workload: Workload, connection: &Connection, tally: &Tally) -> Result<(), Problem> {
    let event = Bytes::from(vec![0x5a; workload.event_bytes()]);
    match workload {
        Workload::Single => loop {
            connection.send_datagram_wait(event.clone()).await?;
            tally.send(1);
        },
        Workload::Batch | Workload::Packed => loop {
            // As many of the batch as a datagram of this path takes.
            let most = connection.max_datagram_size().ok_or("no datagrams")?;
            let fit = (most / event.len()).clamp(1, BATCH);
            let mut left = BATCH;
            while left > 0 {
                let now = left.min(fit);
                let mut datagram = BytesMut::with_capacity(now * event.len());
                for _ in 0..now {
                    datagram.extend_from_slice(&event);
                }
                match connection.send_datagram_wait(datagram.freeze()).await {
                    Ok(()) => tally.send(now as u64),
                    // The path's MTU has shrunk meanwhile.
                    Err(SendDatagramError::TooLarge) => break,
                    Err(error) => return Err(error.into()),
                }
                left -= now;
            }
        },
        Workload::Reliable => {
            let mut stream = connection.open_uni().await?;
            loop {
                stream.write_all(&event).await?;
                tally.send(1);
            }
        }
        Workload::RoundTrip => loop {
            let asked = Instant::now();
            connection.send_datagram(event.clone())?;
            tally.send(1);
            let answer = connection.read_datagram();
            if tokio::time::timeout(Duration::from_millis(200), answer)
                .await
                .is_ok()
            {
                tally.round_trip(asked);
            }
        },
    }
}
