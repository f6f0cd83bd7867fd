//! `virga log replicas`: how the replicas of a log stand, as a running node knows.

use crate::cli::{Failure, block_on, client::Target, print_json};
use crate::kept::replicated::ReplicationStatus;
use std::io::{self, Write};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// The channel.
    channel: String,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

/// Ends with 1 where there is no leader, or this node takes no part.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    block_on(async {
        let status = arguments.target.open().await?.status().await?;
        let log = status
            .logs
            .iter()
            .find(|log| log.channel == arguments.channel);
        let found = log.and_then(|log| Some((log.end, log.replication.as_ref()?)));
        let Some((end, replication)) = found else {
            let what = format!(
                "that node holds no copy of a log of {} that is on several nodes: ask one that the channel's `replicas` names",
                arguments.channel
            );
            return Err(Failure::runtime(what));
        };
        match arguments.json {
            true => print_json(replication)?,
            false => {
                let mut text = Vec::new();
                write(&mut text, &status.node.name, end, replication)?;
                io::stdout().lock().write_all(&text)?;
            }
        }
        match replication.leader {
            Some(_) => Ok(()),
            None => Err(Failure::Told(1)),
        }
    })
}

fn write(
    out: &mut impl Write,
    own: &str,
    end: u64,
    replication: &ReplicationStatus,
) -> io::Result<()> {
    let ReplicationStatus {
        role,
        epoch,
        leader,
        committed,
        ..
    } = replication;
    let leader = leader.as_deref().unwrap_or("nobody");
    writeln!(
        out,
        "epoch {epoch}, led by {leader}; committed below {committed}"
    )?;
    let whole = match replication.is_whole {
        true => "",
        false => "; does not count before it has all that is committed",
    };
    writeln!(out, "{own}: {role}, has 0..{end}{whole}")?;
    for copy in &replication.copies {
        let counts = match copy.counts {
            true => "",
            false => "; does not count yet",
        };
        writeln!(
            out,
            "{}: has all below {}, lags by {}{counts}",
            copy.node, copy.end, copy.lag
        )?;
    }
    if replication.cut_events > 0 {
        let cut = replication.cut_events;
        writeln!(
            out,
            "{cut} events were taken out of the log here and kept aside: the leader did not have them"
        )?;
    }
    for (why, count) in replication.dropped.iter().filter(|(_, count)| **count > 0) {
        writeln!(out, "not taken ({why}): {count}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kept::replicated::CopyStatus;

    #[test]
    fn each_replica_has_a_line() {
        let replication = ReplicationStatus {
            role: "leader".into(),
            epoch: 3,
            leader: Some("a".into()),
            committed: 9,
            is_whole: true,
            copies: vec![CopyStatus {
                node: "b".into(),
                end: 7,
                lag: 3,
                counts: false,
            }],
            submissions: 4,
            cut_events: 2,
            dropped: [("full".to_owned(), 1), ("unsent".to_owned(), 0)].into(),
        };
        let mut text = Vec::new();
        write(&mut text, "a", 10, &replication).unwrap();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            "epoch 3, led by a; committed below 9\na: leader, has 0..10\n\
             b: has all below 7, lags by 3; does not count yet\n\
             2 events were taken out of the log here and kept aside: the leader did not have them\n\
             not taken (full): 1\n"
        );
    }
}
