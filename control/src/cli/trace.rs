//! `virga trace`: the way that packets for a node take, and how each link on it is doing; or how long a channel's
//! events stay in each stage of their way through the node.

use super::{Failure, block_on, client::Target, print_json};
use crate::trace::{End, Trace, TraceHop};
use std::io::{self, Write};

mod flow;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "With --flow, events are timed while it runs, at a bounded rate, and a table is printed at its end (Ctrl-C ends it, too). Times are differences of this host's own clocks: clocks of different hosts are never compared. One flow is timed at a time, and none costs nothing."
)]
pub(super) struct Arguments {
    /// A peer's name, or a node's id.
    #[arg(required_unless_present = "flow", conflicts_with = "flow")]
    destination: Option<String>,
    #[command(flatten)]
    flow: flow::FlowArguments,
    /// Print a JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    target: Target,
}

/// Ends with 1 where the way does not lead there.
pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Some(destination) = &arguments.destination else {
        return flow::run(&arguments.flow, &arguments.target, arguments.json);
    };
    block_on(async {
        let mesh = arguments.target.open().await?;
        let trace = mesh.trace(destination).await?;
        match arguments.json {
            true => print_json(&trace)?,
            false => {
                let mut text = Vec::new();
                write(&mut text, &trace)?;
                io::stdout().lock().write_all(&text)?;
            }
        }
        match trace.end {
            End::Arrived => Ok(()),
            _ => Err(Failure::Told(1)),
        }
    })
}

fn name(hop: &TraceHop) -> &str {
    hop.name.as_deref().unwrap_or(&hop.node)
}

fn write(out: &mut impl Write, trace: &Trace) -> io::Result<()> {
    for (n, hop) in (1..).zip(&trace.hops) {
        write!(out, "{n:>2}  {} {}: ", name(hop), hop.node)?;
        match hop.rtt_us {
            Some(us) => write!(out, "link {us} us")?,
            None => write!(out, "link not measured")?,
        }
        if let Some(loss) = hop.loss_ppm {
            write!(out, ", {loss} lost of a million")?;
        }
        match hop.answered_us {
            Some(us) => writeln!(out, ", answered after {us} us")?,
            None => writeln!(out)?,
        }
    }
    let last = trace.hops.last().map_or("this node", name);
    writeln!(out, "{last} {}", trace.end.meaning())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(trace: &Trace) -> String {
        let mut text = Vec::new();
        write(&mut text, trace).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn each_hop_has_a_line_and_the_last_one_says_how_it_ends() {
        let hop = |name: Option<&str>, rtt_us| TraceHop {
            node: "00000000000000aa".into(),
            name: name.map(Into::into),
            rtt_us,
            loss_ppm: rtt_us.map(|_| 3),
            answered_us: rtt_us,
        };
        let mut trace = Trace {
            destination: "00000000000000bb".into(),
            end: End::Silent,
            hops: vec![hop(Some("b"), Some(120)), hop(None, None)],
        };
        let expected = " 1  b 00000000000000aa: link 120 us, 3 lost of a million, answered after 120 us\n \
                        2  00000000000000aa 00000000000000aa: link not measured\n\
                        00000000000000aa does not answer: look whether it runs, and at the link to it\n";
        assert_eq!(text(&trace), expected);
        trace.hops.clear();
        trace.end = End::NoRoute;
        assert!(text(&trace).starts_with("this node has no way to it"));
    }
}
