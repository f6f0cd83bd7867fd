//! What one flow gave: looked at before and after, at both ends.

use std::time::Duration;

use virga_bench::load::{Running, Seen};
use virga_ebpf::limits::{HEADER_BYTES, TAG_BYTES};

use super::{
    bare::{Came, Shape},
    for_a_window, sending,
};
use crate::{
    report::{Entry, Skip, failed},
    rounds::median,
};

/// How long a flow is measured, after it has run for [`WARM_UP`].
pub(super) const WINDOW: Duration = Duration::from_millis(250);
pub(super) const WARM_UP: Duration = Duration::from_millis(100);
/// How long what is under way may take after that.
pub(super) const SETTLE: Duration = Duration::from_millis(30);

/// A flow of unreliable events.
pub(super) struct Flow {
    /// Its entry over loopback and over veth.
    pub(super) names: [&'static str; 2],
    /// Bytes of an event.
    pub(super) event_bytes: usize,
    /// Events of one call.
    pub(super) batch: usize,
    /// What is asked of the rate, in million events a second.
    pub(super) asked: f64,
}

/// One event a call, and 64: the packets are the same, since events that wait go out together.
pub(super) const FLOWS: [Flow; 2] = [
    Flow {
        names: ["transport.single_64b", "transport.single_64b_veth"],
        event_bytes: 64,
        batch: 1,
        asked: 1.5,
    },
    Flow {
        names: ["transport.batch_64x64b", "transport.batch_64x64b_veth"],
        event_bytes: 64,
        batch: 64,
        asked: 12.0,
    },
];

/// One flow of ours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ours {
    offered: u64,
    taken: u64,
    taken_bytes: u64,
    datagrams: u64,
    datagram_bytes: u64,
    sends: u64,
    elapsed_ns: u64,
    sender_cpu_ns: u64,
    receiver_cpu_ns: u64,
}

/// Has the sender send, and looks at both ends before and after.
pub(super) fn of_workers(ends: &[Running; 2]) -> Result<Ours, Skip> {
    let (before, after) = sending(&ends[0], || {
        for_a_window(WARM_UP);
        let before = both(ends)?;
        for_a_window(WINDOW);
        Ok((before, both(ends)?))
    })?;
    for_a_window(SETTLE);
    let ([sender, receiver], [sender_after, receiver_after]) = (before, after);
    let since = |part: fn(&Seen) -> u64, before: &Seen, after: &Seen| part(after) - part(before);
    let ours = Ours {
        offered: since(|s| s.offered, &sender, &sender_after),
        taken: since(|s| s.taken, &receiver, &receiver_after),
        taken_bytes: since(|s| s.taken_bytes, &receiver, &receiver_after),
        datagrams: since(|s| s.datagrams, &sender, &sender_after),
        datagram_bytes: since(|s| s.datagram_bytes, &sender, &sender_after),
        sends: since(|s| s.sends, &sender, &sender_after),
        elapsed_ns: since(|s| s.now_ns, &receiver, &receiver_after),
        sender_cpu_ns: since(|s| s.cpu_ns, &sender, &sender_after),
        receiver_cpu_ns: since(|s| s.cpu_ns, &receiver, &receiver_after),
    };
    if ours.taken == 0 || ours.datagrams == 0 {
        return Err(failed(format!("nothing came: {ours:?}")));
    }
    Ok(ours)
}

fn both(ends: &[Running; 2]) -> Result<[Seen; 2], Skip> {
    Ok([
        ends[0].seen().map_err(failed)?,
        ends[1].seen().map_err(failed)?,
    ])
}

/// Round trips of one window.
pub(super) fn round_trips(asker: &Running) -> Result<Vec<u64>, Skip> {
    let all = sending(asker, || {
        for_a_window(WINDOW);
        asker.round_trips_ns().map_err(failed)
    })?;
    for_a_window(SETTLE);
    Ok(all)
}

/// A quantile, in microseconds.
pub(super) fn quantile_us(all_ns: &[u64], part: f64) -> f64 {
    let mut sorted = all_ns.to_vec();
    sorted.sort_unstable();
    let at = whole(float(sorted.len() as u64) * part);
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    let found = sorted.get(at).or(sorted.last());
    found.map_or(f64::NAN, |&ns| float(ns) / 1e3)
}

impl Came {
    /// Bytes of events that came, a nanosecond.
    pub(super) fn gigabytes(&self, event_bytes: u64) -> f64 {
        float(self.events * event_bytes) / float(self.elapsed_ns.max(1))
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a count of some millions"
)]
fn whole(figure: f64) -> u64 {
    figure.max(0.0) as u64
}

impl Ours {
    /// Events that came, a microsecond.
    pub(super) fn million_events(&self) -> f64 {
        float(self.taken) * 1e3 / float(self.elapsed_ns.max(1))
    }

    /// Bytes of events, a nanosecond.
    pub(super) fn gigabytes(&self) -> f64 {
        float(self.taken_bytes) / float(self.elapsed_ns.max(1))
    }

    fn events_a_datagram(&self) -> u64 {
        (self.offered + self.datagrams / 2)
            .checked_div(self.datagrams)
            .unwrap_or(1)
            .max(1)
    }

    fn datagram_bytes(&self) -> usize {
        let bytes = self.datagram_bytes.checked_div(self.datagrams).unwrap_or(0);
        usize::try_from(bytes).unwrap_or(0)
    }

    /// Bytes that a packet seals, on average.
    pub(super) fn payload_bytes(&self) -> usize {
        self.datagram_bytes()
            .saturating_sub(HEADER_BYTES + TAG_BYTES)
            .max(1)
    }

    /// Datagrams such as these.
    pub(super) fn shape(&self, event_bytes: usize) -> Shape {
        let events = usize::try_from(self.events_a_datagram()).unwrap_or(1);
        let bytes_min = HEADER_BYTES + TAG_BYTES + events * event_bytes;
        Shape {
            datagram_bytes: self.datagram_bytes().max(bytes_min),
            event_bytes,
            events,
        }
    }

    /// What the rate is made of, for people.
    pub(super) fn explain(&self, name: &str) {
        let events = float(self.taken.max(1));
        eprintln!(
            "{name}: {:.1} ns of the sender's and {:.1} of the receiver's processor an event that came; \
             {:.2} of those offered came; {:.1} events and {} bytes a datagram, {:.1} datagrams a call",
            float(self.sender_cpu_ns) / events,
            float(self.receiver_cpu_ns) / events,
            events / float(self.offered.max(1)),
            float(self.offered) / float(self.datagrams.max(1)),
            self.datagram_bytes(),
            float(self.datagrams) / float(self.sends.max(1)),
        );
    }
}

/// All rounds of a flow.
#[derive(Default)]
pub(super) struct Figures {
    ours: Vec<f64>,
    reference: Vec<f64>,
    ratios: Vec<f64>,
    last: Option<(Ours, Came)>,
}

impl Figures {
    pub(super) fn push(&mut self, ours: &Ours, came: &Came) {
        let one = ours.million_events();
        let other = float(came.events) * 1e3 / float(came.elapsed_ns.max(1));
        self.ours.push(one);
        self.reference.push(other);
        self.ratios.push(one / other);
        self.last = Some((*ours, *came));
    }

    /// What the last round was made of, for people.
    pub(super) fn explain(&self, name: &str) {
        let Some((ours, came)) = &self.last else {
            return;
        };
        ours.explain(name);
        let events = float(came.events.max(1));
        eprintln!(
            "{name}, bare: {:.1} ns of the sender's and {:.1} of the receiver's processor an event; {:.2} came",
            float(came.sender_cpu_ns) / events,
            float(came.receiver_cpu_ns) / events,
            events / float(came.sent.max(1)),
        );
    }

    pub(super) fn entry(&self, name: &'static str, asked: Option<f64>) -> Entry {
        let entry = Entry::new(name, "million events/s", median(&self.ours))
            .beside(median(&self.reference))
            .ratio(median(&self.ratios))
            .spread(&self.ratios);
        match asked {
            // Of a rate a ratio is asked.
            Some(asked) => entry.limit(asked / median(&self.reference)),
            None => entry,
        }
    }
}
