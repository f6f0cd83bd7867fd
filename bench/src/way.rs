//! The arithmetic from what was measured to what is asked, and beyond it.

use crate::report::{Entry, number};

/// Nanoseconds of a forwarded packet that are aimed at beyond what is asked.
const FORWARD_NS: f64 = 45.0;
/// Shares of a bare redirect's rate: what is asked, and what is aimed at.
const OF_REDIRECT: [f64; 2] = [0.90, 0.95];

/// A sentence for each figure that has a way to go or has come further than asked.
pub(crate) fn left(entries: &[Entry]) -> Vec<String> {
    let find = |name: &str| entries.iter().find(|e| e.name == name);
    let forward = find("xdp.forward_ns");
    let mut lines: Vec<String> = forward.map(program).into_iter().collect();
    lines.extend(find("forward.vs_minimal_redirect").and_then(|e| chain(e, forward)));
    lines.extend(entries.iter().filter_map(missed));
    lines
}

/// The program alone.
fn program(entry: &Entry) -> String {
    let left = entry.ours - FORWARD_NS;
    let rest = if left > 0.0 {
        format!("{} ns are left to {}", number(left), number(FORWARD_NS))
    } else {
        format!("{} is reached", number(FORWARD_NS))
    };
    format!(
        "{}: {} ns above null; {rest}.",
        entry.name,
        number(entry.ours)
    )
}

/// The chain: a packet's time with our program and with the bare redirect.
fn chain(entry: &Entry, forward: Option<&Entry>) -> Option<String> {
    let (ours, bare) = (1e3 / entry.ours, 1e3 / entry.reference?);
    let more = ours - bare;
    let mut line = format!(
        "{}: a packet takes {} ns through the chain, {} with a bare redirect: {} more",
        entry.name,
        number(ours),
        number(bare),
        number(more)
    );
    for share in OF_REDIRECT {
        let allowed = bare / share - bare;
        let left = more - allowed;
        let rest = if left > 0.0 {
            format!("{} are left", number(left))
        } else {
            "reached".to_owned()
        };
        line += &format!(
            "; {} of its rate allows {}: {rest}",
            number(share),
            number(allowed)
        );
    }
    if let Some(forward) = forward {
        line += &format!(" (the program alone: {} above null)", number(forward.ours));
    }
    Some(line + ".")
}

/// Any other figure that is not what is asked.
fn missed(entry: &Entry) -> Option<String> {
    let is_told = ["xdp.forward_ns", "forward.vs_minimal_redirect"].contains(&entry.name);
    if is_told || entry.is_met()? {
        return None;
    }
    let got = entry
        .ratio
        .map_or_else(String::new, |ratio| format!(", ratio {}", number(ratio)));
    let (ours, unit) = (number(entry.ours), entry.unit);
    Some(format!(
        "{}: {ours} {unit}{got}; {}.",
        entry.name,
        entry.asked()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_is_the_difference_of_two_packets_times() {
        let entries = [
            Entry::new("xdp.forward_ns", "ns above null", 53.0).limit(60.0),
            Entry::new("forward.vs_minimal_redirect", "million packets/s", 6.25)
                .beside(10.0)
                .limit(0.9),
            Entry::new("guard.miss_ns", "ns", 3.5).limit(3.0),
            Entry::new("guard.hit_ns", "ns", 4.0).limit(5.0),
        ];
        let lines = left(&entries);
        assert_eq!(lines.len(), 3);
        assert!(lines[0].contains("8.00 ns are left to 45.00"), "{lines:?}");
        // 160 ns where 100 are the reference's.
        assert!(
            lines[1].contains("60.00 more; 0.90 of its rate allows 11.11: 48.89 are left"),
            "{lines:?}"
        );
        assert!(
            lines[1].contains("0.95 of its rate allows 5.26: 54.74 are left"),
            "{lines:?}"
        );
        assert!(
            lines[2].contains("guard.miss_ns: 3.50 ns; at most 3.00: missed"),
            "{lines:?}"
        );
    }
}
