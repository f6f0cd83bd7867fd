//! `virga-peers-path`: what a QUIC stream carries over a simulated path, for each seed on the command line. QUIC is
//! quinn-proto, which has no input and output either, as it ships: CUBIC; windows larger than the path's product of
//! bandwidth and delay.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::BytesMut;
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig,
    Event, ServerConfig, StreamEvent, StreamId, Transmit, TransportConfig, VarInt,
};

use virga_transport::sim::{MS, Network, SECOND, Weather};

type Problem = Box<dyn std::error::Error>;

/// As `virga_bench::lossy` has them, which brings too much with it to be used here.
const MEASURED_NS: u64 = 20 * SECOND;
const WARM_UP_NS: u64 = 3 * SECOND;
const LOSSY: Weather = Weather {
    latency_ns: 10 * MS,
    loss: 1,
    datagram_bytes: 1_472,
    rate: 12_500_000,
    queue_bytes: 250_000,
    ..Weather::CALM
};
const WINDOW_BYTES: u32 = 16 << 20;
const MESSAGE: [u8; 1_024] = [0x5a; 1_024];

/// One end.
struct End {
    endpoint: Endpoint,
    connections: HashMap<ConnectionHandle, Connection>,
    stream: Option<StreamId>,
    taken_bytes: u64,
}

struct Pair {
    start: Instant,
    now_ns: u64,
    ends: [End; 2],
    network: Network,
}

fn address(end: usize) -> SocketAddr {
    let last = if end == 0 { 1 } else { 2 };
    SocketAddr::from((Ipv4Addr::new(192, 0, 2, last), 4_783))
}

fn main() -> ExitCode {
    for seed in std::env::args().skip(1) {
        let goodput = seed.parse().map_err(Problem::from).and_then(goodput);
        match goodput {
            Ok(rate) => println!("{rate}"),
            Err(error) => {
                eprintln!("virga-peers-path: seed {seed}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

fn transport() -> Arc<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(WINDOW_BYTES))
        .receive_window(VarInt::from_u32(WINDOW_BYTES))
        .send_window(WINDOW_BYTES.into());
    Arc::new(transport)
}

fn goodput(seed: u64) -> Result<f64, Problem> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
    let mut server = ServerConfig::with_single_cert(vec![made.cert.der().clone()], key)?;
    server.transport_config(transport());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone())?;
    let mut client = ClientConfig::with_root_certificates(Arc::new(roots))?;
    client.transport_config(transport());
    let end = |server| End {
        endpoint: Endpoint::new(Arc::new(EndpointConfig::default()), server, true, None),
        connections: HashMap::new(),
        stream: None,
        taken_bytes: 0,
    };
    let mut pair = Pair {
        start: Instant::now(),
        now_ns: 0,
        ends: [end(None), end(Some(Arc::new(server)))],
        network: Network::new(seed, LOSSY),
    };
    let (handle, connection) =
        pair.ends[0]
            .endpoint
            .connect(pair.start, client, address(1), "localhost")?;
    pair.ends[0].connections.insert(handle, connection);
    pair.run_until(WARM_UP_NS)?;
    let before = pair.ends[1].taken_bytes;
    pair.run_until(WARM_UP_NS + MEASURED_NS)?;
    let bytes = pair.ends[1].taken_bytes - before;
    let seconds = Duration::from_nanos(MEASURED_NS).as_secs_f64();
    Ok(f64::from(u32::try_from(bytes)?) / seconds)
}

impl Pair {
    fn now(&self) -> Instant {
        self.start + Duration::from_nanos(self.now_ns)
    }

    fn run_until(&mut self, end_ns: u64) -> Result<(), Problem> {
        loop {
            self.work()?;
            let start = self.start;
            let since = |at: Instant| u64::try_from(at.duration_since(start).as_nanos());
            let connections = self
                .ends
                .iter_mut()
                .flat_map(|end| end.connections.values_mut());
            let due = connections.filter_map(Connection::poll_timeout).min();
            let due = due.map(since).transpose()?;
            let next_ns = due
                .into_iter()
                .chain(self.network.next_ns())
                .min()
                .unwrap_or(u64::MAX);
            if next_ns > end_ns {
                self.now_ns = end_ns;
                return Ok(());
            }
            self.now_ns = self.now_ns.max(next_ns);
            let now = self.now();
            while let Some(arrival) = self.network.receive(self.now_ns) {
                self.take(arrival.to, &arrival.bytes)?;
            }
            for connection in self
                .ends
                .iter_mut()
                .flat_map(|end| end.connections.values_mut())
            {
                if connection.poll_timeout().is_some_and(|due| due <= now) {
                    connection.handle_timeout(now);
                }
            }
        }
    }

    /// Hands a datagram to an end.
    fn take(&mut self, at: usize, datagram: &[u8]) -> Result<(), Problem> {
        let (now, mut answer) = (self.now(), Vec::new());
        let end = &mut self.ends[at];
        let data = BytesMut::from(datagram);
        match end
            .endpoint
            .handle(now, address(1 - at), None, None, data, &mut answer)
        {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(connection) = end.connections.get_mut(&handle) {
                    connection.handle_event(event);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                let accepted = end.endpoint.accept(incoming, now, &mut answer, None);
                let (handle, connection) = accepted.map_err(|error| error.cause)?;
                end.connections.insert(handle, connection);
            }
            Some(DatagramEvent::Response(transmit)) => {
                let bytes = answer[..transmit.size].to_vec();
                self.network.send(self.now_ns, at, 1 - at, bytes);
            }
            None => {}
        }
        Ok(())
    }

    /// Reads, writes, passes events on and sends until nothing is left to do.
    fn work(&mut self) -> Result<(), Problem> {
        let now = self.now();
        for (at, end) in self.ends.iter_mut().enumerate() {
            let handles: Vec<ConnectionHandle> = end.connections.keys().copied().collect();
            for handle in handles {
                let Some(connection) = end.connections.get_mut(&handle) else {
                    continue;
                };
                while let Some(event) = connection.poll() {
                    match event {
                        Event::Connected if at == 0 => {
                            end.stream = connection.streams().open(Dir::Uni)
                        }
                        Event::Stream(StreamEvent::Opened { dir: Dir::Uni }) => {
                            end.stream = connection.streams().accept(Dir::Uni);
                        }
                        Event::ConnectionLost { reason } => return Err(reason.into()),
                        _ => {}
                    }
                }
                if let Some(stream) = end.stream {
                    if at == 0 {
                        while connection.send_stream(stream).write(&MESSAGE).is_ok() {}
                    } else {
                        end.taken_bytes += read(connection, stream)?;
                    }
                }
                while let Some(event) = connection.poll_endpoint_events() {
                    if let Some(answer) = end.endpoint.handle_event(handle, event) {
                        connection.handle_event(answer);
                    }
                }
                let mut buffer = Vec::new();
                while let Some(transmit) = connection.poll_transmit(now, 10, &mut buffer) {
                    let Transmit {
                        size, segment_size, ..
                    } = transmit;
                    for datagram in buffer[..size].chunks(segment_size.unwrap_or(size)) {
                        self.network
                            .send(self.now_ns, at, 1 - at, datagram.to_vec());
                    }
                    buffer.clear();
                }
            }
        }
        Ok(())
    }
}

/// Bytes that can be read in order.
fn read(connection: &mut Connection, stream: StreamId) -> Result<u64, Problem> {
    let mut bytes = 0;
    let mut stream = connection.recv_stream(stream);
    let mut chunks = stream.read(true)?;
    // `Blocked` ends it: there is no more yet.
    while let Ok(Some(chunk)) = chunks.next(usize::MAX) {
        bytes += chunk.bytes.len() as u64;
    }
    let _credit_goes_with_the_next_transmit = chunks.finalize();
    Ok(bytes)
}
