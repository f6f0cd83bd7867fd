//! Load on handshakes: cookies that cost no state, and a fair share of handshakes, cookies and resets
//! for each ingress source.

use crate::{
    keys::{first_16, same},
    limits::{
        ADMISSION_SLOTS, COOKIE_SECRET_NS, COOKIES_PER_SECOND, COOKIES_PER_SECOND_PER_SOURCE,
        RESETS_PER_SECOND, RESETS_PER_SECOND_PER_SOURCE,
    },
    random::Generator,
};
use std::net::{IpAddr, SocketAddr};
use virga_ebpf::{
    hash::keyed,
    header::{NodeId, SessionId},
};
use zeroize::Zeroizing;

const SECOND_NS: u64 = 1_000_000_000;

/// Lets `per_second` through, and as many at once after a pause of a second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    per_second: u64,
    /// What is left, in billionths.
    level: u64,
    at_ns: u64,
}

impl Bucket {
    pub(crate) const fn full(per_second: u64, now_ns: u64) -> Self {
        Self {
            per_second,
            level: per_second.saturating_mul(SECOND_NS),
            at_ns: now_ns,
        }
    }

    /// Takes one if there is one.
    pub(crate) fn take(&mut self, now_ns: u64) -> bool {
        let passed_ns = now_ns.saturating_sub(self.at_ns).min(SECOND_NS);
        let full = self.per_second.saturating_mul(SECOND_NS);
        self.level = self
            .level
            .saturating_add(passed_ns.saturating_mul(self.per_second))
            .min(full);
        self.at_ns = self.at_ns.max(now_ns);
        if self.level < SECOND_NS {
            return false;
        }
        self.level -= SECOND_NS;
        true
    }
}

/// What to do with an initiation whose tag is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Spend a DH on it.
    Admit,
    /// Under load, and it has no valid cookie: send this one.
    Cookie([u8; 16]),
    /// Under load, and its source (or all together) had its share of handshakes or cookies.
    Refuse,
}

/// Whether an initiation could be new, by its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    New,
    Stale,
}

/// Decides who gets a DH. Its size is fixed: two sources that share a slot share its rate.
pub(crate) struct Gate {
    all: Bucket,
    sources: Vec<Bucket>,
    cookies: Bucket,
    cookies_by_source: Vec<Bucket>,
    resets: Bucket,
    resets_by_source: Vec<Bucket>,
    slot_key: [u8; 32],
    secret: Zeroizing<[u8; 32]>,
    secret_before: Zeroizing<[u8; 32]>,
    secret_since_ns: u64,
    generator: Generator,
}

impl Gate {
    pub(crate) fn new(
        per_second: u64,
        per_second_per_source: u64,
        seed: &[u8; 32],
        now_ns: u64,
    ) -> Self {
        let mut generator = Generator::new(seed, b"cookie");
        let by_source = |per_second| vec![Bucket::full(per_second, now_ns); ADMISSION_SLOTS];
        Self {
            all: Bucket::full(per_second, now_ns),
            sources: by_source(per_second_per_source),
            cookies: Bucket::full(COOKIES_PER_SECOND, now_ns),
            cookies_by_source: by_source(COOKIES_PER_SECOND_PER_SOURCE),
            resets: Bucket::full(RESETS_PER_SECOND, now_ns),
            resets_by_source: by_source(RESETS_PER_SECOND_PER_SOURCE),
            slot_key: generator.bytes_32(),
            secret: Zeroizing::new(generator.bytes_32()),
            secret_before: Zeroizing::new(generator.bytes_32()),
            secret_since_ns: now_ns,
            generator,
        }
    }

    /// Admits what may be new while the node is at ease; otherwise who returns a cookie and is in its
    /// share.
    pub(crate) fn admit(
        &mut self,
        now_ns: u64,
        (sender, session): (NodeId, SessionId),
        source: SocketAddr,
        cookie: &[u8; 16],
        age: Age,
    ) -> Admission {
        self.rotate(now_ns);
        let returned = *cookie != [0; 16] && self.is_valid(sender, session, source, cookie);
        let slot = self.slot(source.ip());
        if !returned {
            if age == Age::New && self.all.take(now_ns) {
                return Admission::Admit;
            }
            return if self.cookies_by_source[slot].take(now_ns) && self.cookies.take(now_ns) {
                Admission::Cookie(mac(&self.secret, sender, session, source))
            } else {
                Admission::Refuse
            };
        }
        if self.sources[slot].take(now_ns) {
            Admission::Admit
        } else {
            Admission::Refuse
        }
    }

    /// Whether one more reset may go to a source.
    pub(crate) fn admit_reset(&mut self, now_ns: u64, source: IpAddr) -> bool {
        let slot = self.slot(source);
        self.resets_by_source[slot].take(now_ns) && self.resets.take(now_ns)
    }

    fn is_valid(
        &self,
        sender: NodeId,
        session: SessionId,
        source: SocketAddr,
        cookie: &[u8; 16],
    ) -> bool {
        let secrets = [&self.secret, &self.secret_before];
        secrets
            .into_iter()
            .any(|s| same(&mac(s, sender, session, source), cookie))
    }

    fn rotate(&mut self, now_ns: u64) {
        let age_ns = now_ns.saturating_sub(self.secret_since_ns);
        if age_ns < COOKIE_SECRET_NS {
            return;
        }
        let mut new = || Zeroizing::new(self.generator.bytes_32());
        let old = std::mem::replace(&mut self.secret, new());
        let recent = age_ns < 2 * COOKIE_SECRET_NS;
        self.secret_before = if recent { old } else { new() };
        self.secret_since_ns = now_ns;
    }

    fn slot(&self, ip: IpAddr) -> usize {
        let hash = keyed(&self.slot_key, &[&address_bytes(ip)]);
        usize::from(u16::from_be_bytes([hash[0], hash[1]])) & (ADMISSION_SLOTS - 1)
    }
}

fn mac(secret: &[u8; 32], sender: NodeId, session: SessionId, source: SocketAddr) -> [u8; 16] {
    let parts: [&[u8]; 5] = [
        b"virga cookie v1",
        &sender.0.to_be_bytes(),
        &session.0.to_be_bytes(),
        &address_bytes(source.ip()),
        &source.port().to_be_bytes(),
    ];
    first_16(&keyed(secret, &parts))
}

/// IPv4 addresses as IPv6 maps them, so that both kinds of socket agree.
fn address_bytes(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHO: (NodeId, SessionId) = (NodeId(1), SessionId(0x100));

    fn at(last: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, last], 4783))
    }

    fn cookie(gate: &mut Gate, now_ns: u64, source: SocketAddr) -> [u8; 16] {
        match gate.admit(now_ns, WHO, source, &[0; 16], Age::New) {
            Admission::Cookie(cookie) => cookie,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn at_ease_no_cookie_is_asked_and_under_load_it_is() {
        let mut gate = Gate::new(3, 2, &[1; 32], 0);
        for _ in 0..3 {
            assert_eq!(
                gate.admit(0, WHO, at(1), &[0; 16], Age::New),
                Admission::Admit
            );
        }
        let given = cookie(&mut gate, 0, at(1));
        assert_eq!(
            gate.admit(0, WHO, at(1), &given, Age::New),
            Admission::Admit
        );
        let elsewhere = gate.admit(0, WHO, at(2), &given, Age::New);
        assert!(
            matches!(elsewhere, Admission::Cookie(_)),
            "it is bound to the source"
        );
        let other = gate.admit(0, (WHO.0, SessionId(0x200)), at(1), &given, Age::New);
        assert!(
            matches!(other, Admission::Cookie(_)),
            "it is bound to the session"
        );
        assert_eq!(
            gate.admit(SECOND_NS, WHO, at(1), &[0; 16], Age::New),
            Admission::Admit
        );
    }

    #[test]
    fn each_source_has_its_share() {
        let mut gate = Gate::new(0, 2, &[1; 32], 0);
        let (loud, calm) = (cookie(&mut gate, 0, at(1)), cookie(&mut gate, 0, at(2)));
        for expected in [Admission::Admit, Admission::Admit, Admission::Refuse] {
            assert_eq!(gate.admit(0, WHO, at(1), &loud, Age::New), expected);
        }
        assert_eq!(gate.admit(0, WHO, at(2), &calm, Age::New), Admission::Admit);
        assert_eq!(
            gate.admit(SECOND_NS / 2, WHO, at(1), &loud, Age::New),
            Admission::Admit
        );
    }

    #[test]
    fn a_cookie_outlives_one_rotation_and_not_two() {
        let mut gate = Gate::new(0, 9, &[1; 32], 0);
        let given = cookie(&mut gate, 0, at(1));
        let later = COOKIE_SECRET_NS;
        assert_eq!(
            gate.admit(later, WHO, at(1), &given, Age::New),
            Admission::Admit
        );
        let too_late = gate.admit(2 * later, WHO, at(1), &given, Age::New);
        assert!(matches!(too_late, Admission::Cookie(_)));
    }
}
