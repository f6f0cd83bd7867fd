//! Load on handshakes: cookies that cost no state, and a fair share of handshakes, cookies and resets
//! for each ingress source. What is the whole node's a second, each of its workers has its part of: who
//! picks the worker that answers gains nothing.

use crate::{
    config::NodeLimits,
    keys::{first_16, same},
    limits::{
        ADMISSION_SLOTS, COOKIE_SECRET_NS, COOKIES_PER_SECOND, COOKIES_PER_SECOND_PER_SOURCE,
        INTRODUCTIONS_PER_SECOND, INTRODUCTIONS_PER_SECOND_PER_SOURCE, RESETS_PER_SECOND,
        RESETS_PER_SECOND_PER_SOURCE,
    },
    random::Generator,
    share::Share,
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
    introductions: Bucket,
    introductions_by_source: Vec<Bucket>,
    resets: Bucket,
    resets_by_source: Vec<Bucket>,
    slot_key: [u8; 32],
    secret: Zeroizing<[u8; 32]>,
    secret_before: Zeroizing<[u8; 32]>,
    secret_since_ns: u64,
    generator: Generator,
}

impl Gate {
    /// The gate of one worker, with `limits` that are this worker's.
    pub(crate) fn new(limits: &NodeLimits, share: Share, seed: &[u8; 32], now_ns: u64) -> Self {
        let mut generator = Generator::new(seed, b"cookie");
        let part = |all: u64| Bucket::full(all.div_ceil(u64::from(share.workers())), now_ns);
        let by_source = |bucket: Bucket| vec![bucket; ADMISSION_SLOTS];
        let per_source = limits.handshakes_per_second_per_source;
        Self {
            all: Bucket::full(limits.handshakes_per_second, now_ns),
            sources: by_source(Bucket::full(per_source, now_ns)),
            cookies: part(COOKIES_PER_SECOND),
            cookies_by_source: by_source(part(COOKIES_PER_SECOND_PER_SOURCE)),
            introductions: part(INTRODUCTIONS_PER_SECOND),
            introductions_by_source: by_source(part(INTRODUCTIONS_PER_SECOND_PER_SOURCE)),
            resets: part(RESETS_PER_SECOND),
            resets_by_source: by_source(part(RESETS_PER_SECOND_PER_SOURCE)),
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

    /// Whether one more introduction of a source is listened to.
    pub(crate) fn admit_introduction(&mut self, now_ns: u64, source: IpAddr) -> bool {
        let slot = self.slot(source);
        self.introductions_by_source[slot].take(now_ns) && self.introductions.take(now_ns)
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

    fn gate(share: Share, per_second: u64, per_second_per_source: u64) -> Gate {
        let limits = NodeLimits {
            handshakes_per_second: per_second,
            handshakes_per_second_per_source: per_second_per_source,
            ..NodeLimits::default()
        };
        Gate::new(&limits.part(share, 0), share, &[1; 32], 0)
    }

    fn cookie(gate: &mut Gate, now_ns: u64, source: SocketAddr) -> [u8; 16] {
        match gate.admit(now_ns, WHO, source, &[0; 16], Age::New) {
            Admission::Cookie(cookie) => cookie,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn at_ease_no_cookie_is_asked_and_under_load_it_is() {
        let mut gate = gate(Share::WHOLE, 3, 2);
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
        let mut gate = gate(Share::WHOLE, 0, 2);
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
        let mut gate = gate(Share::WHOLE, 0, 9);
        let given = cookie(&mut gate, 0, at(1));
        let later = COOKIE_SECRET_NS;
        assert_eq!(
            gate.admit(later, WHO, at(1), &given, Age::New),
            Admission::Admit
        );
        let too_late = gate.admit(2 * later, WHO, at(1), &given, Age::New);
        assert!(matches!(too_late, Admission::Cookie(_)));
    }

    /// What `workers` do together in a second, asked often by everybody: handshakes, cookies and resets,
    /// to one source or to many.
    fn answered(workers: usize, sources: u16) -> [u64; 3] {
        let mut done = [0; 3];
        for share in Share::split(workers) {
            let mut gate = gate(share, 100, 10);
            for n in 0..10_000u16 {
                let source = SocketAddr::from(([10, 1, 2, 3], 4783));
                let [high, low] = (n % sources).to_be_bytes();
                let source = match sources {
                    1 => source,
                    _ => SocketAddr::from(([10, 0, high, low], 4783)),
                };
                match gate.admit(0, WHO, source, &[0; 16], Age::New) {
                    Admission::Admit => done[0] += 1,
                    Admission::Cookie(_) => done[1] += 1,
                    Admission::Refuse => {}
                }
                done[2] += u64::from(gate.admit_reset(0, source.ip()));
            }
        }
        done
    }

    #[test]
    fn several_workers_answer_no_more_than_one() {
        for sources in [1, 5_000] {
            let alone = answered(1, sources);
            assert!(alone.iter().all(|&n| n > 0));
            for workers in [2, 3, 4, 64] {
                let together = answered(workers, sources);
                let rounding = workers as u64 - 1;
                for (alone, together) in alone.into_iter().zip(together) {
                    let most = alone + rounding;
                    assert!(
                        (alone..=most).contains(&together),
                        "{workers}: {together} of {most}"
                    );
                }
            }
        }
    }
}
