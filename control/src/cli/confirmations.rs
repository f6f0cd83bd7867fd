//! What `virga sub` says of its subscription while events may be long in coming: who has confirmed it,
//! who refuses, who is waited for.

use crate::{
    channel::status::SubscriptionStatus,
    mesh::{Mesh, MeshError},
};
use std::{
    io::{self, Write as _},
    time::Duration,
};
use tokio::time::Instant;

use super::counted;

/// How long answers get before it is said who is waited for.
const GRACE: Duration = Duration::from_secs(1);
/// How often it is looked until then.
const LOOK_EAGERLY: Duration = Duration::from_millis(50);
/// How often later.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Says on standard error how the subscription stands, and again whenever that changes. Ends with the
/// subscription or the node, of which the deliveries' end tells too.
pub(super) async fn tell(mesh: Mesh, kind: &'static str, name: String) -> Result<(), MeshError> {
    let start = Instant::now();
    let mut told = String::new();
    let mut publishers = 0;
    loop {
        let mut asked = mesh.subscriptions().await?;
        asked.retain(|one| one.kind == kind && one.name == name);
        // Who publishes is the same as long as a node runs.
        if has_ended(publishers, &asked) {
            return Ok(());
        }
        publishers = asked.len();
        let is_early = start.elapsed() < GRACE;
        let pause = match is_early && asked.iter().any(is_waiting) {
            true => LOOK_EAGERLY,
            false => {
                let words = describe(kind, &name, &asked);
                if words != told {
                    // Without standard error there is nobody to tell.
                    let _nobody = writeln!(io::stderr(), "virga: {words}");
                    told = words;
                }
                LOOK_AGAIN
            }
        };
        tokio::time::sleep(pause).await;
    }
}

fn is_waiting(one: &SubscriptionStatus) -> bool {
    matches!(one.state.as_str(), "connecting" | "asked")
}

/// Whether the node knows no more of a subscription that it had asked publishers for.
fn has_ended(publishers: usize, asked: &[SubscriptionStatus]) -> bool {
    publishers > 0 && asked.is_empty()
}

/// One line for all publishers.
fn describe(kind: &str, name: &str, asked: &[SubscriptionStatus]) -> String {
    let subscribed = format!("subscribed to {kind} {name}");
    if asked.is_empty() {
        return format!("{subscribed}; no other node publishes there by this node's configuration");
    }
    let names = |wanted: &dyn Fn(&SubscriptionStatus) -> bool| {
        let names = asked.iter().filter(|one| wanted(one));
        names.map(|one| one.peer_name.as_str()).collect::<Vec<_>>()
    };
    let confirmed = names(&|one| one.state == "granted");
    let mut parts = vec![match confirmed.as_slice() {
        [] => format!("{subscribed}; no publisher has confirmed"),
        [one] => format!("{subscribed}; 1 publisher has confirmed ({one})"),
        many => {
            let count = counted(many.len(), "publisher");
            format!("{subscribed}; {count} have confirmed ({})", many.join(", "))
        }
    }];
    for (state, words) in [
        ("asked", "asked, without an answer yet"),
        ("connecting", "no session yet with"),
    ] {
        let names = names(&|one| one.state == state);
        if !names.is_empty() {
            parts.push(format!("{words}: {}", names.join(", ")));
        }
    }
    for one in asked {
        if !is_waiting(one) && one.state != "granted" {
            let why = match one.words.as_str() {
                "" => reason(&one.state),
                words => words,
            };
            parts.push(format!("{} refuses: {why}", one.peer_name));
        }
    }
    parts.join("; ")
}

/// What a refusing publisher's operator has to look at.
fn reason(state: &str) -> &str {
    match state {
        "not_authorised" => "its configuration does not let this node's entity subscribe",
        "unknown_channel" => "its configuration has no such channel",
        "not_published" => "its own entity may not publish there",
        "token_missing" => {
            "the channel requires a token, and this node has shown none that it takes (`virga token present`)"
        }
        "token_issuer" => "no issuer that it trusts gave this node's token",
        "token_scope" => "this node's token is for other channels",
        "token_operation" => "this node's token does not allow to subscribe",
        "token_not_yet_valid" => "this node's token is not valid yet",
        "token_expired" => "this node's token has expired",
        "token_revoked" => "this node's token has been revoked",
        "too_many" => "this node has too many subscriptions there",
        "too_often" => "this node asks more often than it may there; it asks again",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(peer: &str, state: &str) -> SubscriptionStatus {
        SubscriptionStatus {
            kind: "channel".into(),
            name: "a".into(),
            peer: "00".into(),
            peer_name: peer.into(),
            state: state.into(),
            words: String::new(),
            granted: 1,
        }
    }

    #[test]
    fn a_subscription_that_the_node_ended_is_no_more_told_of() {
        assert!(!has_ended(0, &[]) && !has_ended(1, &[one("x", "granted")]));
        assert!(has_ended(1, &[]));
    }

    #[test]
    fn every_state_is_in_the_line() {
        let line = |asked: &[SubscriptionStatus]| describe("channel", "a", asked);
        assert_eq!(
            line(&[]),
            "subscribed to channel a; no other node publishes there by this node's configuration"
        );
        assert_eq!(
            line(&[one("x", "granted")]),
            "subscribed to channel a; 1 publisher has confirmed (x)"
        );
        assert_eq!(
            line(&[
                one("x", "granted"),
                one("y", "granted"),
                one("z", "connecting"),
                one("u", "asked"),
                one("v", "not_published"),
            ]),
            "subscribed to channel a; 2 publishers have confirmed (x, y); asked, without an answer yet: u; \
             no session yet with: z; v refuses: its own entity may not publish there"
        );
    }
}
