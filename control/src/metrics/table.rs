//! Every series there is, by what it is about.

mod channel;
mod discovery;
mod forwarding;
mod link;
mod nat;
mod node;
mod session;
mod worker;

use super::Series;

/// What some series are about, and those series.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// What they are about.
    pub title: &'static str,
    /// They themselves.
    pub series: &'static [Series],
}

/// All of them.
pub const GROUPS: &[Group] = &[
    Group {
        title: "The node",
        series: node::SERIES,
    },
    Group {
        title: "Forwarding",
        series: forwarding::SERIES,
    },
    Group {
        title: "Links to neighbours",
        series: link::SERIES,
    },
    Group {
        title: "Nodes that were found, and members",
        series: discovery::SERIES,
    },
    Group {
        title: "Ways through NATs",
        series: nat::SERIES,
    },
    Group {
        title: "Sessions",
        series: session::SERIES,
    },
    Group {
        title: "Channels and logs",
        series: channel::SERIES,
    },
    Group {
        title: "Workers and their sockets",
        series: worker::SERIES,
    },
];

/// Every series.
pub fn all() -> impl Iterator<Item = &'static Series> {
    GROUPS.iter().flat_map(|group| group.series)
}
