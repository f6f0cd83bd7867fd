//! Dials a neighbour: TCP, TLS and WebSocket where its address says so, and the hello.

use crate::{
    Keyring, Kind, Target,
    hello::{FIRST_BYTES, HelloError, SECOND_BYTES},
    limits::{CONNECT_TIME, HELLO_TIME},
    tls::{self, TlsError, Trust},
    wire::{Bottom, Wire, WireError, websocket_bounds},
};
use bytes::Bytes;
use rustls::pki_types::ServerName;
use std::io;
use tokio::{net::TcpStream, task::spawn_blocking, time::timeout};
use tokio_tungstenite::client_async_with_config;
use tokio_util::either::Either;
use virga_ebpf::header::NodeId;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// It took too long.
    #[error("no answer in time")]
    Slow,
    /// The system says no.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Certificates cannot be checked.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// WebSocket's handshake, or a frame.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Somebody else answers, or the keys differ.
    #[error("{0}")]
    Hello(#[from] HelloError),
    /// It knows this node not, or reaches it by another connection.
    #[error(
        "the other end hung up instead of an answer: is this node among its peers, with an address and the same PSK?"
    )]
    Refused,
}

/// A connection to `peer`, which has proven to be it.
///
/// # Errors
/// [`DialError`].
pub async fn dial(
    target: &Target,
    trust: &Trust,
    (keyring, peer): (&Keyring, NodeId),
) -> Result<Wire, DialError> {
    let connecting = TcpStream::connect((target.host.as_str(), target.port));
    let tcp = timeout(CONNECT_TIME, connecting)
        .await
        .map_err(|_| DialError::Slow)??;
    tcp.set_nodelay(true)?;
    let rest = async {
        let wire = dress(tcp, target, trust).await?;
        greet(wire, keyring, peer).await
    };
    timeout(HELLO_TIME, rest)
        .await
        .map_err(|_| DialError::Slow)?
}

/// TLS and WebSocket, where they belong.
async fn dress(tcp: TcpStream, target: &Target, trust: &Trust) -> Result<Wire, DialError> {
    let bottom: Bottom = match target.kind {
        Kind::Tcp => return Ok(Wire::Tcp(Box::new(Either::Left(tcp)))),
        Kind::Ws => Either::Left(tcp),
        Kind::Wss => {
            let name = ServerName::try_from(target.host.clone()).map_err(io::Error::other)?;
            // Roots are files.
            let trust = trust.clone();
            let connector = spawn_blocking(move || tls::connector(&trust)).await;
            let connector = connector.map_err(io::Error::other)??;
            let stream = connector.connect(name, tcp).await?;
            Either::Right(stream.into())
        }
    };
    let connecting = client_async_with_config(target.to_string(), bottom, Some(websocket_bounds()));
    let (socket, _response) = connecting.await.map_err(WireError::from)?;
    Ok(Wire::WebSocket(Box::new(socket)))
}

async fn greet(mut wire: Wire, keyring: &Keyring, peer: NodeId) -> Result<Wire, DialError> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    let first: [u8; FIRST_BYTES] = keyring.begin(peer, random);
    wire.say(Bytes::copy_from_slice(&first)).await?;
    let second = wire.hear(SECOND_BYTES).await.map_err(|error| match error {
        WireError::Closed => DialError::Refused,
        other => other.into(),
    })?;
    let second = second.first_chunk().ok_or(HelloError::Garbage)?;
    let third = keyring.finish(peer, &first, second)?;
    wire.say(Bytes::copy_from_slice(&third)).await?;
    Ok(wire)
}
