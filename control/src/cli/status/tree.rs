//! Nodes that get a channel's events by others.

use super::{ChannelStatus, Status, counted};

/// Who gets a channel's events by whom, and how many get them by this node.
pub(super) fn lines(channel: &ChannelStatus, status: &Status) -> String {
    let name = |id: &String| {
        let named = status.sessions.iter().find(|session| session.peer == *id);
        named.map_or_else(|| id.clone(), |session| session.name.clone())
    };
    let mut lines = String::new();
    for (relay, children) in &channel.relayed {
        let children: Vec<String> = children.iter().map(name).collect();
        let (relay, children) = (name(relay), children.join(", "));
        lines += &format!("\n    {relay} passes its events on to {children}");
    }
    if channel.children > 0 {
        let nodes = counted(channel.children, "node");
        lines += &format!("\n    passed on to {nodes} for their publisher");
    }
    lines
}
