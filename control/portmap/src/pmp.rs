//! PCP and NAT-PMP: one datagram each way.

use crate::{
    Ask, Failure, Made, Protocol, Route,
    limits::{DATAGRAM_FIRST, DATAGRAMS_MORE, LEASE},
};
use crab_nat::{InternetProtocol, PortMappingOptions, PortMappingType, TimeoutConfig, natpmp, pcp};
use std::{
    io,
    net::{IpAddr, SocketAddrV4},
    time::Duration,
};

/// An exchange ends at the first datagram that comes from the router's address and port, and `crab_nat` looks at an error
/// before it looks at whose answer it is: another host may have sent it in the router's name. What cannot be read, and a
/// no, is followed by another exchange, from another port; two that say the same no are believed.
const EXCHANGES_MAX: usize = 3;

const TIMING: TimeoutConfig = TimeoutConfig {
    initial_timeout: DATAGRAM_FIRST,
    max_retries: DATAGRAMS_MORE,
    max_retry_timeout: None,
};

/// Asks the router for a mapping, or for one that it has once more.
///
/// # Errors
/// [`Failure`].
pub async fn map(protocol: Protocol, route: &Route, ask: &Ask) -> Result<Made, Failure> {
    let mut failure = Failure::Silent;
    for _ in 0..EXCHANGES_MAX {
        let done = match protocol {
            Protocol::Pcp => map_by_pcp(route, ask).await,
            Protocol::NatPmp | Protocol::Upnp => map_by_pmp(route, ask).await,
        };
        match done {
            Err(error) if is_doubtful(&error, &failure) => failure = error,
            done => return done,
        }
    }
    Err(failure)
}

/// Takes a mapping back.
///
/// # Errors
/// [`Failure`].
pub async fn delete(protocol: Protocol, route: &Route, ask: &Ask) -> Result<(), Failure> {
    let (gateway, own) = (route.gateway.into(), IpAddr::V4(route.own));
    let (udp, port) = (InternetProtocol::Udp, ask.port);
    let mut failure = Failure::Silent;
    for _ in 0..EXCHANGES_MAX {
        let done = match protocol {
            Protocol::Pcp => {
                let range = pcp::DropMappingRange::Single {
                    protocol: udp,
                    internal_port: port,
                };
                let done =
                    pcp::try_drop_mapping(gateway, own, ask.nonce, range, Some(TIMING)).await;
                done.map_err(Failure::from)
            }
            Protocol::NatPmp | Protocol::Upnp => {
                let done = natpmp::try_drop_mapping(gateway, udp, Some(port), Some(TIMING)).await;
                done.map_err(Failure::from)
            }
        };
        match done {
            Err(error) if is_doubtful(&error, &failure) => failure = error,
            done => return done,
        }
    }
    Err(failure)
}

/// Whether a failure may be another host's word; `before` is what the exchange before ended with.
fn is_doubtful(failure: &Failure, before: &Failure) -> bool {
    match failure {
        Failure::Malformed(_) => true,
        Failure::Absent | Failure::Refused(_) => failure.to_string() != before.to_string(),
        Failure::Silent | Failure::System(_) | Failure::Panicked(_) => false,
    }
}

fn options(ask: &Ask) -> PortMappingOptions {
    PortMappingOptions {
        external_port: Some(ask.external),
        lifetime_seconds: u32::try_from(LEASE.as_secs()).ok(),
        timeout_config: Some(TIMING),
    }
}

async fn map_by_pcp(route: &Route, ask: &Ask) -> Result<Made, Failure> {
    let (gateway, own) = (route.gateway.into(), IpAddr::V4(route.own));
    let base = pcp::BaseMapRequest::new(gateway, own, InternetProtocol::Udp, ask.port);
    let made = pcp::port_mapping(base, Some(ask.nonce), None, options(ask)).await?;
    let PortMappingType::Pcp { external_ip, .. } = made.mapping_type() else {
        return Err(Failure::Malformed("it is no mapping by PCP".into()));
    };
    let IpAddr::V4(external) = external_ip else {
        return Err(Failure::Malformed(format!("{external_ip} is not of IPv4")));
    };
    Ok(Made {
        external: SocketAddrV4::new(external, made.external_port().get()),
        lease: Some(Duration::from_secs(made.lifetime().into())),
        epoch: Some(made.gateway_epoch()),
    })
}

async fn map_by_pmp(route: &Route, ask: &Ask) -> Result<Made, Failure> {
    let gateway = route.gateway.into();
    // First, for a mapping without an address would have to be taken back.
    let external = natpmp::external_address(gateway, Some(TIMING)).await?;
    if external.is_unspecified() {
        return Err(Failure::Refused("it has no outer address".into()));
    }
    let made = natpmp::port_mapping(gateway, InternetProtocol::Udp, ask.port, options(ask)).await?;
    Ok(Made {
        external: SocketAddrV4::new(external, made.external_port().get()),
        lease: Some(Duration::from_secs(made.lifetime().into())),
        epoch: Some(made.gateway_epoch()),
    })
}

fn socket(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Failure::Absent,
        _ => Failure::System(error),
    }
}

impl From<pcp::Failure> for Failure {
    fn from(failure: pcp::Failure) -> Self {
        match failure {
            pcp::Failure::Timeout => Self::Silent,
            pcp::Failure::Socket(error) => socket(error),
            pcp::Failure::InvalidResponse(_) | pcp::Failure::Nonce => {
                Self::Malformed(failure.to_string())
            }
            pcp::Failure::UnsupportedVersion(_) => Self::Absent,
            _ => Self::Refused(failure.to_string()),
        }
    }
}

impl From<natpmp::Failure> for Failure {
    fn from(failure: natpmp::Failure) -> Self {
        match failure {
            natpmp::Failure::Timeout => Self::Silent,
            natpmp::Failure::Socket(error) => socket(error),
            natpmp::Failure::InvalidResponse(_) => Self::Malformed(failure.to_string()),
            natpmp::Failure::UnsupportedVersion(_) => Self::Absent,
            _ => Self::Refused(failure.to_string()),
        }
    }
}
