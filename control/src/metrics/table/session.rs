//! Sessions: their protocol, and the one with each peer.

use crate::{
    api::status::{ClassStatus, ClassTimesStatus, SessionStatus, Status, TimesStatus},
    metrics::{Rows, Series, Value, quantiles, seconds},
};
use std::collections::BTreeMap;
use virga_transport::SessionState::{self, Draining, Established, Proving};

/// Those that are told of also where no session is in them.
const STATES: [SessionState; 3] = [Proving, Established, Draining];

pub(super) const SERIES: &[Series] = &[
    Series::gauge(
        "virga_sessions",
        "sessions",
        &["state"],
        "Sessions by state: `proving`, `established` or `draining`.",
        |status, rows| {
            for state in STATES {
                rows.put([state.name()], 0_u64);
            }
            for session in &status.sessions {
                rows.count([&session.state]);
            }
        },
    ),
    Series::gauge(
        "virga_session_rtt_seconds",
        "seconds",
        &["peer"],
        "Smoothed round trip to a peer.",
        |status, rows| each_peer(status, rows, |session| session.rtt_us.map(micros)),
    ),
    Series::gauge(
        "virga_session_rtt_least_seconds",
        "seconds",
        &["peer"],
        "Least round trip to a peer that was seen.",
        |status, rows| {
            each_peer(status, rows, |session| {
                session.path.rtt_least_us.map(micros)
            })
        },
    ),
    Series::gauge(
        "virga_session_rtt_variation_seconds",
        "seconds",
        &["peer"],
        "How much the round trip to a peer varies.",
        |status, rows| {
            each_peer(status, rows, |session| {
                Some(micros(session.path.rtt_variation_us))
            })
        },
    ),
    Series::counter(
        "virga_session_round_trips_total",
        "round trips",
        &["peer"],
        "Round trips to a peer that acknowledgements measured.",
        |status, rows| {
            each_peer(status, rows, |session| {
                Some(session.round_trips?.count.into())
            })
        },
    ),
    Series::gauge(
        "virga_session_round_trip_seconds",
        "seconds",
        &["peer", "quantile"],
        "Of those round trips, since the session began, to 7 %.",
        |status, rows| {
            for (peer, session) in latest(status) {
                for (quantile, ns) in session.round_trips.iter().flat_map(quantiles) {
                    rows.put([peer, quantile], seconds(ns));
                }
            }
        },
    ),
    Series::gauge(
        "virga_session_queued_bytes",
        "bytes",
        &["peer"],
        "Bytes for a peer that streams hold: they wait, or are not acknowledged.",
        |status, rows| each_peer(status, rows, |session| Some(session.queued_bytes.into())),
    ),
    Series::gauge(
        "virga_session_age_seconds",
        "seconds",
        &["peer"],
        "How long ago the keys of the session with a peer were agreed on.",
        |status, rows| each_peer(status, rows, |session| Some(session.age_s.into())),
    ),
    Series::gauge(
        "virga_session_hybrid",
        "none",
        &["peer"],
        "1 if ML-KEM-768 is mixed into the keys of the session with a peer, else 0.",
        |status, rows| each_peer(status, rows, |session| Some(session.hybrid.into())),
    ),
    Series::gauge(
        "virga_session_key_epoch",
        "epochs",
        &["peer"],
        "Key epoch of the session with a peer.",
        |status, rows| each_peer(status, rows, |session| Some(session.epoch.into())),
    ),
    Series::counter(
        "virga_session_sent_packets_total",
        "packets",
        &["peer"],
        "Packets that were sealed for a peer, of the present session: it begins anew with each.",
        |status, rows| each_peer(status, rows, |session| Some(session.sent_packets.into())),
    ),
    Series::counter(
        "virga_session_sent_bytes_total",
        "bytes",
        &["peer"],
        "Their bytes, of the present session: it begins anew with each.",
        |status, rows| each_peer(status, rows, |session| Some(session.sent_bytes.into())),
    ),
    Series::counter(
        "virga_session_received_packets_total",
        "packets",
        &["peer"],
        "Packets of a peer that were opened, of the present session: it begins anew with each.",
        |status, rows| {
            each_peer(status, rows, |session| {
                Some(session.received_packets.into())
            })
        },
    ),
    Series::counter(
        "virga_session_received_bytes_total",
        "bytes",
        &["peer"],
        "Their bytes, of the present session: it begins anew with each.",
        |status, rows| each_peer(status, rows, |session| Some(session.received_bytes.into())),
    ),
    Series::counter(
        "virga_session_retransmitted_packets_total",
        "packets",
        &["peer"],
        "Packets whose data travelled again to a peer, of the present session: it begins anew with each.",
        |status, rows| {
            each_peer(status, rows, |session| {
                Some(session.retransmitted_packets.into())
            })
        },
    ),
    Series::counter(
        "virga_session_retransmitted_bytes_total",
        "bytes",
        &["peer"],
        "Bytes that travelled again to a peer, of the present session: it begins anew with each.",
        |status, rows| {
            each_peer(status, rows, |session| {
                Some(session.retransmitted_bytes.into())
            })
        },
    ),
    Series::counter(
        "virga_session_lost_packets_total",
        "packets",
        &["peer"],
        "Packets to a peer that were declared lost, of the present session: it begins anew with each.",
        |status, rows| {
            each_peer(status, rows, |session| {
                Some(session.path.lost_packets.into())
            })
        },
    ),
    Series::counter(
        "virga_session_spurious_lost_packets_total",
        "packets",
        &["peer"],
        "Of those, packets that arrived after all, of the present session: it begins anew with each.",
        |status, rows| {
            each_peer(status, rows, |session| {
                Some(session.path.spurious_losses.into())
            })
        },
    ),
    Series::gauge(
        "virga_session_datagram_bytes",
        "bytes",
        &["peer"],
        "Largest datagram that the path to a peer carries, without the outer headers.",
        |status, rows| {
            each_peer(status, rows, |session| {
                Some(session.path.datagram_bytes.into())
            })
        },
    ),
    Series::gauge(
        "virga_session_window_bytes",
        "bytes",
        &["peer"],
        "Bytes that may be on their way to a peer.",
        |status, rows| {
            each_peer(status, rows, |session| {
                Some(session.path.window_bytes.into())
            })
        },
    ),
    Series::gauge(
        "virga_session_in_flight_bytes",
        "bytes",
        &["peer"],
        "Bytes that are on their way to a peer.",
        |status, rows| {
            each_peer(status, rows, |session| {
                Some(session.path.in_flight_bytes.into())
            })
        },
    ),
    Series::gauge(
        "virga_session_pacing_bytes_per_second",
        "bytes a second",
        &["peer"],
        "Bytes a second that pacing lets out to a peer.",
        |status, rows| {
            each_peer(status, rows, |session| {
                Some(session.path.pacing_bytes_per_second.into())
            })
        },
    ),
    Series::gauge(
        "virga_session_streams_sending",
        "streams",
        &["peer"],
        "Streams open to a peer.",
        |status, rows| each_peer(status, rows, |session| Some(session.streams_sending.into())),
    ),
    Series::gauge(
        "virga_session_streams_receiving",
        "streams",
        &["peer"],
        "Streams open from a peer.",
        |status, rows| {
            each_peer(status, rows, |session| {
                Some(session.streams_receiving.into())
            })
        },
    ),
    Series::counter(
        "virga_class_sent_packets_total",
        "packets",
        &["class"],
        "Packets that sessions sealed, by class of priority (7 is control).",
        |status, rows| each_class(status, rows, |class| class.sent_packets),
    ),
    Series::counter(
        "virga_class_sent_bytes_total",
        "bytes",
        &["class"],
        "Their bytes.",
        |status, rows| each_class(status, rows, |class| class.sent_bytes),
    ),
    Series::counter(
        "virga_class_sent_events_total",
        "events",
        &["class"],
        "Events that began in them.",
        |status, rows| each_class(status, rows, |class| class.sent_events),
    ),
    Series::counter(
        "virga_class_received_packets_total",
        "packets",
        &["class"],
        "Packets that sessions opened, by class of priority.",
        |status, rows| each_class(status, rows, |class| class.received_packets),
    ),
    Series::counter(
        "virga_class_received_bytes_total",
        "bytes",
        &["class"],
        "Their bytes.",
        |status, rows| each_class(status, rows, |class| class.received_bytes),
    ),
    Series::counter(
        "virga_class_received_events_total",
        "events",
        &["class"],
        "Events that began in them.",
        |status, rows| each_class(status, rows, |class| class.received_events),
    ),
    Series::counter(
        "virga_class_retransmitted_packets_total",
        "packets",
        &["class"],
        "Packets in which data travelled again, by class of priority.",
        |status, rows| each_class(status, rows, |class| class.retransmitted_packets),
    ),
    Series::counter(
        "virga_class_retransmitted_bytes_total",
        "bytes",
        &["class"],
        "Bytes that travelled again.",
        |status, rows| each_class(status, rows, |class| class.retransmitted_bytes),
    ),
    Series::gauge(
        "virga_class_queued_bytes",
        "bytes",
        &["class"],
        "Bytes that streams hold for sending, by class of priority.",
        |status, rows| each_class(status, rows, |class| class.queued_bytes),
    ),
    Series::counter(
        "virga_class_followed_messages_total",
        "messages",
        &["worker", "class", "until"],
        "Messages that were followed until they were `sent`, and `acknowledged`: of each stream one at a time.",
        |status, rows| {
            for one in &status.workers {
                let number = one.number.to_string();
                for (class, times) in &one.class_times {
                    let (class, sent, acked) =
                        (class.to_string(), times.sent_after, times.acked_after);
                    rows.put([&number, &class, "sent"], sent.count);
                    rows.put([&number, &class, "acknowledged"], acked.count);
                }
            }
        },
    ),
    Series::gauge(
        "virga_class_sent_after_seconds",
        "seconds",
        &["worker", "class", "quantile"],
        "From the call that queued such a message until all of it was sealed into packets, to 1 %.",
        |status, rows| each_class_time(status, rows, |times| times.sent_after),
    ),
    Series::gauge(
        "virga_class_acked_after_seconds",
        "seconds",
        &["worker", "class", "quantile"],
        "From that call until the peer had acknowledged all of it, of reliable channels, to 1 %.",
        |status, rows| each_class_time(status, rows, |times| times.acked_after),
    ),
    Series::counter(
        "virga_transport_dropped_packets_total",
        "packets",
        &["reason"],
        "Packets and handshakes that sessions dropped, by reason.",
        |status, rows| {
            for (reason, count) in &status.transport.drops {
                rows.put([reason], *count);
            }
        },
    ),
    Series::counter(
        "virga_transport_received_datagrams_total",
        "datagrams",
        &[],
        "Datagrams that came to the sessions' protocol.",
        |status, rows| rows.put([], status.transport.received_datagrams),
    ),
    Series::counter(
        "virga_transport_sent_datagrams_total",
        "datagrams",
        &[],
        "Datagrams that it made.",
        |status, rows| rows.put([], status.transport.sent_datagrams),
    ),
    Series::counter(
        "virga_handshake_initiations_sent_total",
        "handshakes",
        &[],
        "Handshakes that this node began.",
        |status, rows| rows.put([], status.transport.initiations_sent),
    ),
    Series::counter(
        "virga_handshake_initiations_answered_total",
        "handshakes",
        &[],
        "Handshakes of others that it answered.",
        |status, rows| rows.put([], status.transport.initiations_answered),
    ),
    Series::counter(
        "virga_handshake_refusals_sent_total",
        "handshakes",
        &[],
        "Handshakes of others that it refused because their policy contradicts its own.",
        |status, rows| rows.put([], status.transport.refusals_sent),
    ),
    Series::counter(
        "virga_handshake_refusals_received_total",
        "handshakes",
        &[],
        "Handshakes that it began and that others refused so.",
        |status, rows| rows.put([], status.transport.refusals_received),
    ),
    Series::gauge(
        "virga_handshake_conflicts",
        "peers",
        &[],
        "Peers that there is no session with because the policies of the two ends contradict each other.",
        |status, rows| {
            rows.put(
                [],
                u64::try_from(status.transport.conflicts.len()).unwrap_or(u64::MAX),
            )
        },
    ),
    Series::counter(
        "virga_sessions_established_by_pattern_total",
        "sessions",
        &["pattern"],
        "Sessions that were established, by the Noise pattern that they began by.",
        |status, rows| {
            for (pattern, &count) in &status.transport.established_by_pattern {
                rows.put([pattern.as_str()], count);
            }
        },
    ),
    Series::counter(
        "virga_sessions_established_hybrid_total",
        "sessions",
        &[],
        "Sessions that were established with ML-KEM-768 mixed into their keys.",
        |status, rows| rows.put([], status.transport.established_hybrid),
    ),
    Series::counter(
        "virga_sessions_closed_total",
        "sessions",
        &["reason"],
        "Sessions that ended, and attempts at one, by reason: `violation` is a peer that broke the protocol.",
        |status, rows| {
            for (reason, &count) in &status.transport.closed_by_reason {
                rows.put([reason.as_str()], count);
            }
        },
    ),
    Series::counter(
        "virga_handshake_cookies_sent_total",
        "handshakes",
        &[],
        "Handshakes that it asked for a cookie, because many came.",
        |status, rows| rows.put([], status.transport.cookies_sent),
    ),
    Series::counter(
        "virga_handshake_half_open_evicted_total",
        "sessions",
        &[],
        "Half-open sessions that gave way to others.",
        |status, rows| rows.put([], status.transport.half_open_evicted),
    ),
    Series::counter(
        "virga_handshake_outbox_full_total",
        "messages",
        &[],
        "Handshake messages that were lost because too many waited to be sent.",
        |status, rows| rows.put([], status.transport.outbox_full),
    ),
    Series::counter(
        "virga_sessions_established_total",
        "sessions",
        &[],
        "Sessions that both ends have proven themselves in.",
        |status, rows| rows.put([], status.transport.sessions_established),
    ),
    Series::counter(
        "virga_key_epochs_total",
        "epochs",
        &[],
        "Key epochs that sessions moved on to.",
        |status, rows| rows.put([], status.transport.epochs_advanced),
    ),
    Series::counter(
        "virga_resets_sent_total",
        "resets",
        &[],
        "Resets sent to peers whose session this node does not know.",
        |status, rows| rows.put([], status.transport.resets_sent),
    ),
    Series::counter(
        "virga_resets_received_total",
        "resets",
        &[],
        "Resets received.",
        |status, rows| rows.put([], status.transport.resets_received),
    ),
    Series::counter(
        "virga_refused_sends_total",
        "messages",
        &[],
        "Messages that were given back because a queue was full.",
        |status, rows| rows.put([], status.transport.sends_refused),
    ),
    Series::counter(
        "virga_expired_messages_total",
        "messages",
        &[],
        "Messages that were not sent because their deadline had passed.",
        |status, rows| rows.put([], status.transport.messages_expired),
    ),
];

/// The session that each peer is reached by now: the latest one that is established.
fn latest(status: &Status) -> BTreeMap<&str, &SessionStatus> {
    let mut latest: BTreeMap<&str, &SessionStatus> = BTreeMap::new();
    for session in status.sessions.iter().filter(|s| s.state == "established") {
        let known = latest.entry(&session.name).or_insert(session);
        if session.age_s < known.age_s {
            *known = session;
        }
    }
    latest
}

/// A value of it.
fn each_peer(status: &Status, rows: &mut Rows, value: fn(&SessionStatus) -> Option<Value>) {
    for (peer, session) in latest(status) {
        if let Some(value) = value(session) {
            rows.put([peer], value);
        }
    }
}

fn each_class(status: &Status, rows: &mut Rows, value: fn(&ClassStatus) -> u64) {
    for (class, counted) in &status.transport.classes {
        rows.put([&class.to_string()], value(counted));
    }
}

fn each_class_time(status: &Status, rows: &mut Rows, of: fn(&ClassTimesStatus) -> TimesStatus) {
    for one in &status.workers {
        let number = one.number.to_string();
        for (class, times) in &one.class_times {
            let times = of(times);
            if times.count == 0 {
                continue;
            }
            for (quantile, ns) in quantiles(&times) {
                rows.put([&number, &class.to_string(), quantile], seconds(ns));
            }
        }
    }
}

fn micros(us: u64) -> Value {
    seconds(us.saturating_mul(1_000)).into()
}
