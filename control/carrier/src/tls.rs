//! TLS for `wss`: for boxes in between that let nothing else pass. Who the peer is, the mesh's own handshake says; so a
//! certificate is checked as the operator wants it, and one that nobody knows costs no secret.

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};
pub use tokio_rustls::TlsAcceptor;
use tokio_rustls::TlsConnector;

/// Whose certificates a dialling node takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Those that the system's roots vouch for.
    #[default]
    System,
    /// Those in this PEM file, and no others.
    Pinned(PathBuf),
    /// Any: the mesh's handshake alone says who the peer is.
    Any,
}

impl fmt::Display for Trust {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System => out.write_str("system"),
            Self::Pinned(file) => write!(out, "{}", file.display()),
            Self::Any => out.write_str("any"),
        }
    }
}

/// What is wrong with certificates or keys.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds no PEM of that kind.
    #[error("{}: {what}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The system has no roots.
    #[error("the system has no root certificates: install ca-certificates, or say another `trust`")]
    NoRoots,
    /// Certificate and key do not belong together, or are of a kind that is not known.
    #[error("{} and {}: {source}: name a certificate, with its chain, and the key that it was made for",
        certificate.display(), key.display())]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's.
        key: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
    /// What the library refuses.
    #[error("{0}")]
    Rustls(#[from] rustls::Error),
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fault = |what: String| TlsError::File {
        path: path.to_owned(),
        what,
    };
    let read = CertificateDer::pem_file_iter(path).map_err(|error| fault(error.to_string()))?;
    let all: Result<Vec<_>, _> = read.collect();
    let all = all.map_err(|error| fault(error.to_string()))?;
    match all.is_empty() {
        true => Err(fault("holds no certificate".to_owned())),
        false => Ok(all),
    }
}

/// Takes connections with this certificate.
///
/// # Errors
/// [`TlsError`].
pub fn acceptor(certificate: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let chain = certificates(certificate)?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| TlsError::File {
        path: key.to_owned(),
        what: error.to_string(),
    })?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(|source| TlsError::Pair {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            source,
        })?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Dials, and takes the certificates that `trust` says.
///
/// # Errors
/// [`TlsError`].
pub fn connector(trust: &Trust) -> Result<TlsConnector, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let config = match trust {
        Trust::System => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(TlsError::NoRoots);
            }
            config.with_root_certificates(roots).with_no_client_auth()
        }
        Trust::Pinned(file) => {
            let pinned = Some(certificates(file)?);
            let verifier = Arc::new(Verifier { pinned, provider });
            let config = config.dangerous();
            config
                .with_custom_certificate_verifier(verifier)
                .with_no_client_auth()
        }
        Trust::Any => {
            let pinned = None;
            let verifier = Arc::new(Verifier { pinned, provider });
            let config = config.dangerous();
            config
                .with_custom_certificate_verifier(verifier)
                .with_no_client_auth()
        }
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Takes certificates by their bytes, or any.
#[derive(Debug)]
struct Verifier {
    pinned: Option<Vec<CertificateDer<'static>>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let is_taken = match &self.pinned {
            Some(pinned) => pinned.iter().any(|one| one == end_entity),
            None => true,
        };
        match is_taken {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(rustls::Error::General(
                "its certificate is none of those that `trust` names".into(),
            )),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// RFC 4648, for PEM.
    pub(crate) fn base64(bytes: &[u8]) -> String {
        const DIGITS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::new();
        for group in bytes.chunks(3) {
            let bits = group
                .iter()
                .zip([16, 8, 0])
                .fold(0_u32, |all, (byte, shift)| all | u32::from(*byte) << shift);
            for place in 0..4 {
                let digit = DIGITS[usize::try_from(bits >> (18 - 6 * place) & 63).unwrap()];
                text.push(if place <= group.len() {
                    digit.into()
                } else {
                    '='
                });
            }
        }
        text
    }

    #[test]
    fn files_that_hold_no_certificate_are_named() {
        let nowhere = Path::new("/nonexistent/cert.pem");
        let error = acceptor(nowhere, nowhere).err().unwrap().to_string();
        assert!(error.starts_with("/nonexistent/cert.pem: "), "{error}");
        let pinned = Trust::Pinned(nowhere.to_owned());
        assert!(connector(&pinned).is_err());
        assert!(connector(&Trust::Any).is_ok());
    }
}
