//! How the logs stand, in `virga status`.

use super::write_lines;
use crate::kept::LogStatus;
use std::io::{self, Write};

/// Nothing where no channel is kept.
pub(super) fn write(out: &mut impl Write, logs: &[LogStatus]) -> io::Result<()> {
    if logs.is_empty() {
        return Ok(());
    }
    let lines = logs.iter().map(|log| {
        let some = |count: u64, words: &str| match count {
            0 => String::new(),
            count => format!("; {count} {words}"),
        };
        let replicas = log.replication.as_ref();
        let replicas = replicas.map_or_else(String::new, |r| format!(", {}", r.role));
        let problem = log.problem.as_ref();
        let problem = problem.map_or_else(String::new, |problem| format!("; {problem}"));
        let compaction = log.compaction_problem.as_ref();
        let compaction = compaction.map_or_else(String::new, |why| format!("; compaction: {why}"));
        let gaps = log.gaps.iter().map(|(why, count)| {
            let words = format!("times gone on without events that later ones follow ({why})");
            some(*count, &words)
        });
        let unfound = log.unfound.iter().map(|(why, count)| {
            let words = format!("times events that others name were not to be had ({why})");
            some(*count, &words)
        });
        let gaps: String = gaps.chain(unfound).collect();
        format!(
            "  {} ({}{replicas}): events {}..{}{}{}{}{}{}{}{}{}{}{gaps}{compaction}{problem}",
            log.channel,
            log.durability,
            log.first,
            log.readable,
            some(log.compacted_events, "taken by compaction since the start"),
            some(log.lost, "lost"),
            some(log.refused, "refused, as they are not as they were signed"),
            some(
                log.forks,
                "batches that contradict what their entity signed before"
            ),
            some(log.interrupted, "times let go, as it was too slow"),
            some(log.repaired, "got from another node's log"),
            some(
                log.named,
                "got from another node's log, as others name them"
            ),
            some(log.repeated, "came although they were there"),
            some(
                log.waiting_bytes,
                "bytes in memory alone, waiting for events in front of them"
            ),
        )
    });
    write_lines(out, "logs", lines)
}
