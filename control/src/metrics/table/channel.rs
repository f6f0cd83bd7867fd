//! Channels, their subscribers, and the logs of those that are kept.

use crate::{
    api::status::Status,
    channel::status::{ChannelStatus, SubscriberStatus},
    kept::{LogStatus, replicated::ReplicationStatus},
    metrics::{Rows, Series, Value, quantiles, seconds},
};

pub(super) const SERIES: &[Series] = &[
    Series::gauge(
        "virga_channel_remote_subscribers",
        "nodes",
        &["channel"],
        "Nodes that have subscribed to a channel here.",
        |status, rows| each_channel(status, rows, |channel| channel.remote_subscribers.into()),
    ),
    Series::gauge(
        "virga_channel_remote_holding",
        "nodes",
        &["channel"],
        "Of those, nodes that asked for a pause.",
        |status, rows| each_channel(status, rows, |channel| channel.remote_holding.into()),
    ),
    Series::gauge(
        "virga_channel_relayed_subscribers",
        "nodes",
        &["channel"],
        "Of the nodes that have subscribed here, those that get the events by others of them.",
        |status, rows| {
            each_channel(status, rows, |channel| {
                let children = channel.relayed.values();
                children.map(Vec::len).sum::<usize>().into()
            });
        },
    ),
    Series::gauge(
        "virga_channel_children",
        "nodes",
        &["channel"],
        "Nodes that this one passes a channel's events on to for their publishers.",
        |status, rows| each_channel(status, rows, |channel| channel.children.into()),
    ),
    Series::counter(
        "virga_channel_relayed_events_total",
        "events",
        &["channel"],
        "Events of a channel that were passed on to other nodes for their publishers.",
        |status, rows| each_channel(status, rows, |channel| channel.relayed_events.into()),
    ),
    Series::gauge(
        "virga_channel_local_subscribers",
        "programs",
        &["channel"],
        "Programs on this node that have subscribed to a channel.",
        |status, rows| each_channel(status, rows, |channel| channel.local_subscribers.into()),
    ),
    Series::gauge(
        "virga_channel_waiting_batches",
        "batches",
        &["channel"],
        "Batches of a channel that wait for room.",
        |status, rows| each_channel(status, rows, |channel| channel.batches_waiting.into()),
    ),
    Series::counter(
        "virga_channel_published_events_total",
        "events",
        &["channel"],
        "Events that this node published on a channel.",
        |status, rows| each_channel(status, rows, |channel| channel.published.into()),
    ),
    Series::counter(
        "virga_channel_sent_events_total",
        "events",
        &["channel"],
        "Events of a channel that were handed to the streams of subscribing nodes.",
        |status, rows| each_channel(status, rows, |channel| channel.sent.into()),
    ),
    Series::counter(
        "virga_channel_received_events_total",
        "events",
        &["channel"],
        "Events of a channel that arrived.",
        |status, rows| each_channel(status, rows, |channel| channel.received.into()),
    ),
    Series::counter(
        "virga_channel_delivered_events_total",
        "events",
        &["channel"],
        "Events of a channel that were handed to programs on this node.",
        |status, rows| each_channel(status, rows, |channel| channel.delivered.into()),
    ),
    Series::counter(
        "virga_channel_dropped_events_total",
        "events",
        &["channel"],
        "Events of a channel that were not.",
        |status, rows| each_channel(status, rows, |channel| channel.dropped.into()),
    ),
    Series::counter(
        "virga_channel_blocked_publishes_total",
        "publishes",
        &["channel"],
        "Times that a publisher had to wait.",
        |status, rows| each_channel(status, rows, |channel| channel.publishes_blocked.into()),
    ),
    Series::gauge(
        "virga_channel_paused_seconds",
        "seconds",
        &["channel"],
        "For how long a slow subscriber on this node has paused a reliable channel; 0 while none does.",
        |status, rows| {
            each_channel(status, rows, |channel| millis(channel.paused_ms));
        },
    ),
    Series::counter(
        "virga_channel_reasons_total",
        "times",
        &["reason"],
        "Refusals and drops of the channels, by reason.",
        |status, rows| {
            for (reason, count) in &status.channel_reasons {
                rows.put([reason], *count);
            }
        },
    ),
    Series::gauge(
        "virga_subscriptions",
        "subscriptions",
        &["state"],
        "Subscriptions of this node at others: `connecting`, `asked`, `granted`, or why they were refused.",
        |status, rows| {
            for subscription in &status.subscriptions {
                rows.count([&subscription.state]);
            }
        },
    ),
    Series::gauge(
        "virga_subscribers",
        "programs",
        &[],
        "Programs on this node that have subscribed.",
        |status, rows| rows.put([], status.subscribers.len()),
    ),
    Series::gauge(
        "virga_subscriber_queued_bytes",
        "bytes",
        &[],
        "Bytes of events that those programs have not taken yet.",
        |status, rows| {
            let queued = status.subscribers.iter().map(|s| s.queued_bytes);
            rows.put([], queued.sum::<usize>());
        },
    ),
    Series::gauge(
        "virga_subscriber_slow_seconds",
        "seconds",
        &[],
        "For how long the slowest of those programs has not kept up; 0 while all do.",
        |status, rows| rows.put([], longest(status, |s| s.slow_ms)),
    ),
    Series::gauge(
        "virga_subscriber_unread_seconds",
        "seconds",
        &[],
        "For how long a slow one of those programs has taken nothing; 0 while there is none.",
        |status, rows| rows.put([], longest(status, |s| s.unread_ms)),
    ),
    Series::counter(
        "virga_delivery_waits_total",
        "deliveries",
        &[],
        "Events whose way from their worker to a program's subscription was timed.",
        |status, rows| rows.put([], status.delivery_wait.count),
    ),
    Series::gauge(
        "virga_delivery_wait_seconds",
        "seconds",
        &["quantile"],
        "From an event's arrival at its worker until a program's subscription has taken it, since the daemon's start.",
        |status, rows| {
            for (quantile, ns) in quantiles(&status.delivery_wait) {
                rows.put([quantile], seconds(ns));
            }
        },
    ),
    Series::gauge(
        "virga_log_first_offset",
        "events",
        &["channel"],
        "Offset of the first event that a channel's log keeps.",
        |status, rows| each_log(status, rows, |log| log.first.into()),
    ),
    Series::gauge(
        "virga_log_end_offset",
        "events",
        &["channel"],
        "Offset of the next event of a channel's log.",
        |status, rows| each_log(status, rows, |log| log.end.into()),
    ),
    Series::gauge(
        "virga_log_readable_offset",
        "events",
        &["channel"],
        "Events of a channel's log below this offset can be read.",
        |status, rows| each_log(status, rows, |log| log.readable.into()),
    ),
    Series::counter(
        "virga_log_lost_events_total",
        "events",
        &["channel"],
        "Events that a channel's log had taken and could not write.",
        |status, rows| each_log(status, rows, |log| log.lost.into()),
    ),
    Series::counter(
        "virga_log_interruptions_total",
        "times",
        &["channel"],
        "How often a channel went on without its log.",
        |status, rows| each_log(status, rows, |log| log.interrupted.into()),
    ),
    Series::counter(
        "virga_log_refused_events_total",
        "events",
        &["channel"],
        "Events that a channel's log did not take, as they are not as their entity signed them.",
        |status, rows| each_log(status, rows, |log| log.refused.into()),
    ),
    Series::counter(
        "virga_log_forks_total",
        "batches",
        &["channel"],
        "Batches of a channel whose entity had signed something that contradicts them.",
        |status, rows| each_log(status, rows, |log| log.forks.into()),
    ),
    Series::counter(
        "virga_log_repaired_events_total",
        "events",
        &["channel"],
        "Events that a channel's log got from another node's, since later ones follow them.",
        |status, rows| each_log(status, rows, |log| log.repaired.into()),
    ),
    Series::counter(
        "virga_log_gaps_total",
        "times",
        &["channel", "reason"],
        "How often a channel's log went on without events that later ones follow, and why.",
        |status, rows| {
            for log in &status.logs {
                for (reason, count) in &log.gaps {
                    rows.put([&log.channel, reason], *count);
                }
            }
        },
    ),
    Series::counter(
        "virga_log_named_events_total",
        "events",
        &["channel"],
        "Events that a channel's log got from another node's, since those of others name them.",
        |status, rows| each_log(status, rows, |log| log.named.into()),
    ),
    Series::counter(
        "virga_log_unfound_total",
        "times",
        &["channel", "reason"],
        "How often events that those in a channel's log name were not to be had, and why.",
        |status, rows| {
            for log in &status.logs {
                for (reason, count) in &log.unfound {
                    rows.put([&log.channel, reason], *count);
                }
            }
        },
    ),
    Series::counter(
        "virga_log_repeated_events_total",
        "events",
        &["channel"],
        "Events that came to a channel's log although it had them; they are in it once.",
        |status, rows| each_log(status, rows, |log| log.repeated.into()),
    ),
    Series::gauge(
        "virga_log_waiting_bytes",
        "bytes",
        &["channel"],
        "Events that are not in a channel's log yet, as they wait for those in front of them.",
        |status, rows| each_log(status, rows, |log| log.waiting_bytes.into()),
    ),
    Series::counter(
        "virga_log_compacted_events_total",
        "events",
        &["channel"],
        "Events that compaction took out of a channel's log, as a later one has their key.",
        |status, rows| each_log(status, rows, |log| log.compacted_events.into()),
    ),
    Series::counter(
        "virga_log_compacted_bytes_total",
        "bytes",
        &["channel"],
        "Bytes that compaction took out of a channel's log.",
        |status, rows| each_log(status, rows, |log| log.compacted_bytes.into()),
    ),
    Series::gauge(
        "virga_log_compaction_degraded",
        "none",
        &["channel"],
        "1 while a channel's log is not compacted, or not all of it, although it should be (`virga status` says why), else 0.",
        |status, rows| {
            each_log(status, rows, |log| log.compaction_problem.is_some().into());
        },
    ),
    Series::gauge(
        "virga_log_degraded",
        "none",
        &["channel"],
        "1 while something keeps a channel's log from taking events (`virga status` says what), else 0.",
        |status, rows| each_log(status, rows, |log| log.problem.is_some().into()),
    ),
    Series::gauge(
        "virga_log_ended",
        "none",
        &["channel"],
        "1 if a channel's log takes no more until the node is started again, else 0.",
        |status, rows| each_log(status, rows, |log| log.has_ended.into()),
    ),
    Series::gauge(
        "virga_log_leader",
        "none",
        &["channel"],
        "1 while this node leads a channel's log that is on several nodes, else 0.",
        |status, rows| each_replica(status, rows, |r| (r.role == "leader").into()),
    ),
    Series::gauge(
        "virga_log_leader_known",
        "none",
        &["channel"],
        "1 while this node knows who leads a channel's log that is on several nodes, else 0: nothing is appended.",
        |status, rows| each_replica(status, rows, |r| r.leader.is_some().into()),
    ),
    Series::gauge(
        "virga_log_epoch",
        "none",
        &["channel"],
        "Counts the leaders of a channel's log that is on several nodes.",
        |status, rows| each_replica(status, rows, |r| r.epoch.into()),
    ),
    Series::gauge(
        "virga_log_committed_offset",
        "events",
        &["channel"],
        "Events of a channel's log below this offset are at most of its replicas, as this node knows.",
        |status, rows| each_replica(status, rows, |r| r.committed.into()),
    ),
    Series::gauge(
        "virga_log_whole",
        "none",
        &["channel"],
        "1 while this node's copy of a channel's log counts; 0 until one that had lost something has all again.",
        |status, rows| each_replica(status, rows, |r| r.is_whole.into()),
    ),
    Series::gauge(
        "virga_log_replica_lag",
        "events",
        &["channel", "replica"],
        "Where this node leads: events that another replica does not have yet.",
        |status, rows| {
            for (channel, replica) in replicated(status) {
                for copy in &replica.copies {
                    rows.put([channel, &copy.node], copy.lag);
                }
            }
        },
    ),
    Series::counter(
        "virga_log_submissions_total",
        "submissions",
        &["channel"],
        "What publishers had this node append to a channel's log that is on several nodes.",
        |status, rows| each_replica(status, rows, |r| r.submissions.into()),
    ),
    Series::counter(
        "virga_log_cut_events_total",
        "events",
        &["channel"],
        "Events that this node's copy of a channel's log had and the leader's had not: kept aside.",
        |status, rows| each_replica(status, rows, |r| r.cut_events.into()),
    ),
    Series::counter(
        "virga_log_replica_drops_total",
        "messages",
        &["channel", "reason"],
        "What was said of a channel's log that is on several nodes, and was not taken.",
        |status, rows| {
            for (channel, replica) in replicated(status) {
                for (reason, count) in &replica.dropped {
                    rows.put([channel, reason.as_str()], *count);
                }
            }
        },
    ),
];

fn replicated(status: &Status) -> impl Iterator<Item = (&str, &ReplicationStatus)> {
    let logs = status.logs.iter();
    logs.filter_map(|log| Some((log.channel.as_str(), log.replication.as_ref()?)))
}

fn each_replica(status: &Status, rows: &mut Rows, value: fn(&ReplicationStatus) -> Value) {
    for (channel, replica) in replicated(status) {
        rows.put([channel], value(replica));
    }
}

fn each_channel(status: &Status, rows: &mut Rows, value: fn(&ChannelStatus) -> Value) {
    for channel in &status.channels {
        rows.put([&channel.name], value(channel));
    }
}

fn each_log(status: &Status, rows: &mut Rows, value: fn(&LogStatus) -> Value) {
    for log in &status.logs {
        rows.put([&log.channel], value(log));
    }
}

/// The longest of the subscribers' times.
fn longest(status: &Status, time_ms: fn(&SubscriberStatus) -> Option<u64>) -> Value {
    millis(status.subscribers.iter().filter_map(time_ms).max())
}

/// A time in seconds, 0 where there is none.
fn millis(ms: Option<u64>) -> Value {
    seconds(ms.unwrap_or(0).saturating_mul(1_000_000)).into()
}
