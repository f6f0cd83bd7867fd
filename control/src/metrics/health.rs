//! What keeps a node from being ready.

use crate::{api::status::Status, config::Config};
use std::{path::Path, time::Duration};
use tokio::{net::UnixStream, time::timeout};

/// How long a connection to the API's socket may take.
const CONNECTING: Duration = Duration::from_secs(1);

/// What is not as the configuration asks for, or keeps the node from its work; nothing: it is ready.
pub(super) async fn problems(config: &Config, status: &Status) -> Vec<String> {
    let mut problems = shown(status);
    problems.extend(socket(&config.node.socket).await);
    problems
}

/// What a status shows of it.
fn shown(status: &Status) -> Vec<String> {
    let mut problems = Vec::new();
    let forwarding = &status.forwarding;
    if let Some(problem) = &forwarding.problem {
        problems.push(format!("forwarding: {problem}"));
    }
    if forwarding.mode_asked != "auto" && forwarding.mode != forwarding.mode_asked {
        problems.push(format!(
            "forwarding: {} is asked for, {} is in use: {}",
            forwarding.mode_asked, forwarding.mode, forwarding.why
        ));
    }
    for log in &status.logs {
        match &log.problem {
            Some(problem) => problems.push(format!("the log of {}: {problem}", log.channel)),
            None if log.has_ended => problems.push(format!(
                "the log of {} takes no more until the node is started again",
                log.channel
            )),
            None => {}
        }
    }
    problems
}

/// Why programs on this machine do not reach the node.
async fn socket(path: &Path) -> Option<String> {
    let what = match timeout(CONNECTING, UnixStream::connect(path)).await {
        Ok(Ok(_)) => return None,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", CONNECTING.as_secs()),
    };
    Some(format!("the API's socket {}: {what}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{kept::LogStatus, metrics::tests::status};

    #[test]
    fn what_is_not_as_asked_is_said_with_its_reason() {
        let ready = status();
        assert_eq!(shown(&ready), [""; 0]);

        let mut not = ready.clone();
        not.forwarding.mode_asked = "native".into();
        not.forwarding.mode = "userspace".into();
        not.forwarding.why = "eth0 has no driver for it".into();
        let said =
            "forwarding: native is asked for, userspace is in use: eth0 has no driver for it";
        assert_eq!(shown(&not), [said]);
        not.forwarding.mode_asked = "auto".into();
        assert_eq!(shown(&not), [""; 0], "auto asks for no more than there is");
        not.forwarding.problem = Some("eth0 is gone".into());
        assert_eq!(shown(&not), ["forwarding: eth0 is gone"]);

        let mut not = ready;
        let log = LogStatus {
            channel: "a/b".into(),
            durability: "synced".into(),
            first: 0,
            end: 0,
            readable: 0,
            lost: 0,
            interrupted: 0,
            refused: 0,
            forks: 0,
            repaired: 0,
            named: 0,
            unfound: std::collections::BTreeMap::new(),
            repeated: 0,
            gaps: std::collections::BTreeMap::new(),
            waiting_bytes: 0,
            compacted_events: 0,
            compacted_bytes: 0,
            compaction_problem: None,
            problem: Some("no space left on device".into()),
            has_ended: true,
            replication: None,
            is_left: false,
        };
        not.logs = vec![log];
        assert_eq!(shown(&not), ["the log of a/b: no space left on device"]);
        not.logs[0].problem = None;
        assert!(shown(&not)[0].contains("until the node is started again"));
    }

    #[tokio::test]
    async fn a_socket_that_is_not_there_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.sock");
        let said = socket(&path).await.unwrap();
        assert!(said.contains("node.sock: No such file"), "{said}");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(socket(&path).await, None);
    }
}
