//! The router's own time, which begins anew when it has forgotten its mappings (RFC 6886, 3.6; RFC 6887, 8.5).

use crate::{
    Failure, Protocol, Route,
    limits::{DATAGRAM_BYTES_MAX, DATAGRAM_FIRST, DATAGRAMS_MORE, MALFORMED_MAX},
};
use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};
use tokio::{net::UdpSocket, time::timeout_at};

const ANSWER: u8 = 0x80;
const PCP_HEADER_BYTES: usize = 24;
const PCP_BYTES_MAX: usize = 1_100;
const PMP_BYTES: usize = 12;

/// What a router says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Seconds since it has forgotten its mappings last.
    pub epoch: u32,
    /// Its outer address, where the protocol says it and the router has one.
    pub external: Option<Ipv4Addr>,
}

/// Asks for it: PCP's ANNOUNCE, which changes nothing; NAT-PMP's outer address.
#[must_use]
pub fn request(protocol: Protocol, own: Ipv4Addr) -> Vec<u8> {
    match protocol {
        Protocol::Pcp => {
            let mut out = vec![2, 0, 0, 0, 0, 0, 0, 0];
            out.extend(own.to_ipv6_mapped().octets());
            out
        }
        Protocol::NatPmp | Protocol::Upnp => vec![0, 0],
    }
}

/// Reads an answer, whatever its result: each has the time. None where it is no answer to this.
#[must_use]
pub fn parse(protocol: Protocol, bytes: &[u8]) -> Option<Told> {
    let number = |at: usize| Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
    match protocol {
        Protocol::Pcp => {
            let is_whole = (PCP_HEADER_BYTES..=PCP_BYTES_MAX).contains(&bytes.len());
            let is_one =
                is_whole && bytes.len().is_multiple_of(4) && bytes.starts_with(&[2, ANSWER]);
            let epoch = number(8).filter(|_| is_one)?;
            Some(Told {
                epoch,
                external: None,
            })
        }
        Protocol::NatPmp | Protocol::Upnp => {
            let is_one = bytes.len() == PMP_BYTES && bytes.starts_with(&[0, ANSWER]);
            let is_well = bytes.get(2..4)? == [0, 0];
            let external = Ipv4Addr::from(number(8)?);
            Some(Told {
                epoch: number(4).filter(|_| is_one)?,
                external: Some(external).filter(|ip| is_well && !ip.is_unspecified()),
            })
        }
    }
}

/// Asks the router. What comes from elsewhere the kernel drops; what cannot be read is passed over.
///
/// # Errors
/// Nothing answers.
pub async fn ask(protocol: Protocol, route: &Route) -> Result<Told, Failure> {
    let socket = UdpSocket::bind((route.own, 0)).await?;
    socket
        .connect((route.gateway, crab_nat::GATEWAY_PORT))
        .await?;
    let request = request(protocol, route.own);
    let (mut wait, mut passed_over) = (DATAGRAM_FIRST, 0);
    let mut bytes = [0; DATAGRAM_BYTES_MAX];
    for _ in 0..=DATAGRAMS_MORE {
        socket.send(&request).await?;
        let until = tokio::time::Instant::now() + wait;
        wait *= 2;
        while let Ok(received) = timeout_at(until, socket.recv(&mut bytes)).await {
            let count = received?;
            if let Some(told) = bytes.get(..count).and_then(|bytes| parse(protocol, bytes)) {
                return Ok(told);
            }
            passed_over += 1;
            if passed_over >= MALFORMED_MAX {
                return Err(Failure::Malformed("none of many".into()));
            }
        }
    }
    Err(Failure::Silent)
}

/// The router's time when it was told last.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    epoch: u32,
    at: Instant,
}

impl Clock {
    /// It is this now.
    #[must_use]
    pub const fn new(epoch: u32, at: Instant) -> Self {
        Self { epoch, at }
    }

    /// Whether what it says now goes on from there: it may run an eighth too slow or fast, with two seconds of grace.
    #[must_use]
    pub fn goes_on(&self, epoch: u32, now: Instant) -> bool {
        const GRACE: Duration = Duration::from_secs(2);
        if epoch.saturating_add(1) < self.epoch {
            return false;
        }
        let own = now.saturating_duration_since(self.at);
        let theirs = Duration::from_secs(epoch.saturating_sub(self.epoch).into());
        own + GRACE >= theirs - theirs / 8 && theirs + GRACE >= own - own / 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn answers_are_read_and_parts_and_others_are_not() {
        let mut pmp = vec![0, 128, 0, 0, 0, 0, 1, 2, 8, 9, 10, 11];
        let told = parse(Protocol::NatPmp, &pmp).unwrap();
        assert_eq!(
            (told.epoch, told.external),
            (258, Some(Ipv4Addr::new(8, 9, 10, 11)))
        );
        let mut pcp = vec![2, 128, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
        pcp.extend([0; 12]);
        assert_eq!(parse(Protocol::Pcp, &pcp).unwrap().epoch, 7);
        // An error has the time as well.
        pcp[3] = 4;
        assert_eq!(parse(Protocol::Pcp, &pcp).unwrap().epoch, 7);
        pmp[3] = 3;
        assert_eq!(parse(Protocol::NatPmp, &pmp).unwrap().external, None);
        for (protocol, whole) in [(Protocol::Pcp, &pcp), (Protocol::NatPmp, &pmp)] {
            for cut in 0..whole.len() {
                assert_eq!(parse(protocol, &whole[..cut]), None);
            }
            for (at, wrong) in [(0, 1), (1, 0), (1, 129)] {
                let mut other = whole.clone();
                other[at] = wrong;
                assert_eq!(parse(protocol, &other), None);
            }
        }
        assert_eq!(
            parse(Protocol::Pcp, &[&pcp[..], &[0; 1_100]].concat()),
            None
        );
    }

    #[test]
    fn a_time_that_begins_anew_or_jumps_does_not_go_on() {
        let start = Instant::now();
        let clock = Clock::new(1_000, start);
        let at = |seconds| start + Duration::from_secs(seconds);
        for (epoch, seconds, is) in [
            (1_000, 0, true),
            (1_015, 15, true),
            (1_014, 15, true),
            (999, 1, true),
            (3, 15, false),
            (998, 1, false),
            (1_001, 15, false),
            (1_060, 15, false),
            (u32::MAX, 15, false),
            (4_600, 3_600, true),
            (4_300, 3_600, true),
        ] {
            assert_eq!(
                clock.goes_on(epoch, at(seconds)),
                is,
                "{epoch} after {seconds} s"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            for protocol in Protocol::ALL {
                let _read = parse(protocol, &bytes);
            }
        }
    }
}
