//! Where connections of neighbours are taken, and what a node needs for that before it starts.

use crate::config::Config;
use std::{io, net::SocketAddr};
use virga_carrier::{
    Kind,
    listen::Listener,
    tls::{self, TlsAcceptor, TlsError},
};

/// Why a node with `[fallback]` does not start.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Nothing can listen there.
    #[error("cannot listen for {kind} at {address}: {source}; give it another address or port", kind = .kind.name())]
    Address {
        /// How.
        kind: Kind,
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The certificate or its key.
    #[error("the certificate in [fallback]: {0}")]
    Tls(#[from] TlsError),
    /// Whose certificates are taken cannot be told, and a peer's `fallback` has a wss address.
    #[error("trust in [fallback]: {0}")]
    Trust(TlsError),
}

/// Reads the files that `[fallback]` names: the certificate and its key, and whose certificates are taken where a peer
/// is dialled by `wss`.
///
/// # Errors
/// [`ListenError::Tls`] and [`ListenError::Trust`].
pub fn files(config: &Config) -> Result<Option<TlsAcceptor>, ListenError> {
    let mut targets = config.peers.iter().flat_map(|peer| &peer.fallback);
    let config = &config.fallback;
    if targets.any(|target| target.kind == Kind::Wss) {
        tls::connector(&config.trust).map_err(ListenError::Trust)?;
    }
    let named = config.certificate.as_ref();
    let acceptor = named.map(|(certificate, key)| tls::acceptor(certificate, key));
    Ok(acceptor.transpose()?)
}

/// Listens where the configuration says. What would be missing once UDP fails is found now.
///
/// # Errors
/// [`ListenError`].
pub async fn listen(config: &Config) -> Result<Vec<Listener>, ListenError> {
    let acceptor = tokio::task::block_in_place(|| files(config))?;
    let config = &config.fallback;
    let mut listeners = Vec::new();
    let kind_ws = match &acceptor {
        Some(_) => Kind::Wss,
        None => Kind::Ws,
    };
    for (address, kind, acceptor) in [
        (config.listen_tcp, Kind::Tcp, None),
        (config.listen_ws, kind_ws, acceptor),
    ] {
        let Some(address) = address else { continue };
        let bound = Listener::bind(address, kind, acceptor).await;
        let listener = bound.map_err(|source| ListenError::Address {
            kind,
            address,
            source,
        })?;
        tracing::info!(%address, kind = kind.name(), "fallback transport listens");
        listeners.push(listener);
    }
    Ok(listeners)
}
