//! Every reason for a drop as a page to read: `virga drops --reasons` prints it, `docs/guides/drops.md` is it.

use super::{NOT_DELIVERED, Place, advice};
use crate::{api::status::Status, channel::reason::Reason as ChannelReason};
use std::fmt::Write as _;
use virga_carrier::Reason as Carrier;
use virga_ebpf::reason::Reason;
use virga_transport::DropReason;

const HEAD: &str = "# Troubleshooting by drop reason

What every reason means by which something is dropped, and what to do about it. It is what `virga drops --reasons` prints.

```sh
virga drops --once          # what was dropped since the node's start, each reason with its fix
virga drops --seconds 2     # what is dropped while one looks
virga drops --once --json   # for machines
```

Start with the place where the count grows: `nic` and `userspace` are the forwarder, on the NIC and over the socket; `sockets`
is between the NIC and the sessions; `carriers` are TCP and WebSocket in place of UDP; `sessions` are handshakes and encryption; `channels` are rights and slow subscribers;
`logs` are kept channels. [`control/metrics/series.md`](../../control/metrics/series.md) has the same counts for Prometheus.
Where nothing is said to be done, the packets are somebody else's fault, or a few of them are normal.
";

/// The page.
#[must_use]
pub fn page() -> String {
    let forwarder: Vec<String> = Reason::ALL.iter().map(|r| r.name().to_owned()).collect();
    let sockets: Vec<String> = Status::default().lost().into_keys().collect();
    let carriers = Carrier::ALL.map(|r| r.name().to_owned()).to_vec();
    let sessions: Vec<String> = DropReason::ALL
        .iter()
        .map(|r| r.name().to_owned())
        .collect();
    let channels = ChannelReason::ALL.iter().map(|r| r.name().to_owned());
    let channels: Vec<String> = channels.chain([NOT_DELIVERED.to_owned()]).collect();
    let mut page = HEAD.to_owned();
    for (title, place, reasons) in [
        ("Forwarder (`nic`, `userspace`)", Place::Nic, forwarder),
        ("Sockets (`sockets`)", Place::Sockets, sockets),
        ("Carriers (`carriers`)", Place::Carriers, carriers),
        ("Sessions (`sessions`)", Place::Sessions, sessions),
        ("Channels (`channels`)", Place::Channels, channels),
        ("Logs (`logs`)", Place::Logs, vec!["lost".to_owned()]),
    ] {
        // A string takes what is written to it.
        let _written = write!(
            page,
            "\n## {title}\n\n| reason | what it means | what to do |\n|---|---|---|\n"
        );
        for reason in reasons {
            let meaning = cell(super::meaning(place, &reason));
            let fix = cell(advice::fix(place, &reason).unwrap_or(""));
            let _written = writeln!(page, "| `{reason}` | {meaning} | {fix} |");
        }
    }
    page
}

/// A text as a table's cell has it.
fn cell(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guide_is_this_page() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/guides/drops.md");
        let guide = std::fs::read_to_string(path).unwrap();
        assert!(
            guide == page(),
            "virga drops --reasons > docs/guides/drops.md"
        );
    }
}
