//! Three hosts, two routed hops: this machine's live metrics travel as events from one edge to the
//! other, through a router that forwards them in the NIC's driver while it is flooded. Ends with a
//! table of what held, and with exit code 0 only if all of it did. `scripts/demo` runs it.
#![allow(unreachable_pub)]

use std::{
    collections::HashMap,
    error::Error,
    path::PathBuf,
    process::{Child, ExitCode, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use clap::Parser;
use futures_util::StreamExt;
use tokio::time::{MissedTickBehavior, interval};
use virga::mesh::Mesh;

mod hosts;
mod metrics;
mod outcome;

use hosts::Hosts;
use outcome::{Outcome, Sample};

/// The channel that carries the metrics.
const CHANNEL: &str = "metrics/edge-a";
/// Packets a second of each of the two floods.
const FLOOD_RATE: u32 = 10_000;
/// How long events may still arrive after the last was published.
const DRAIN: Duration = Duration::from_secs(10);

/// Streams live metrics across a router under attack, and says what held.
#[derive(Parser)]
struct Arguments {
    /// The `virga` binary that the hosts run.
    #[arg(long)]
    virga: PathBuf,
    /// How long events are published.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Events a second.
    #[arg(long, default_value_t = 2_000)]
    rate: u32,
    /// One JSON object as the last line.
    #[arg(long)]
    json: bool,
}

/// Events that are under way, by their number: when they were published, and what they were.
type Published = Mutex<HashMap<u64, (Instant, Vec<u8>)>>;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("demo: no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = runtime.block_on(async {
        tokio::select! {
            done = demonstrate(&arguments) => done,
            () = interrupted() => Err("interrupted".into()),
        }
    });
    match done {
        Ok(outcome) => {
            print!("{}", outcome.table());
            if arguments.json {
                println!("{}", outcome.json());
            }
            if outcome.held() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}

/// The whole demonstration. Dropping the stage cleans up, however it ends.
async fn demonstrate(arguments: &Arguments) -> Result<Outcome> {
    let is_root = rustix::process::geteuid().is_root();
    let mut hosts = Hosts::new("virga-demo", &arguments.virga)?;
    if is_root {
        say("hosts: edge-a -- router -- edge-b, each a network namespace");
        set_namespaces(hosts_added(&mut hosts)?)?;
    } else {
        say("not root: the same three nodes on loopback, forwarding in user space.");
        say("left out: namespaces, XDP, and the kernel's counters of the router.");
        set_loopback(&mut hosts)?;
    }
    for host in ["router", "edge-b", "edge-a"] {
        hosts.start(host)?;
    }
    stream(arguments, &hosts, is_root).await
}

fn hosts_added(hosts: &mut Hosts) -> Result<&Hosts> {
    for host in ["edge-a", "router", "edge-b"] {
        hosts.add(host)?;
    }
    hosts.join(
        ("edge-a", "mesh0", "10.77.1.2/24"),
        ("router", "mesh-a", "10.77.1.1/24"),
    )?;
    hosts.join(
        ("edge-b", "mesh0", "10.77.2.2/24"),
        ("router", "mesh-b", "10.77.2.1/24"),
    )?;
    Ok(hosts)
}

fn set_namespaces(hosts: &Hosts) -> Result<()> {
    let native = |interfaces: &str| {
        // So few packets of the router's own that its kernel's counters can be read between two of them.
        format!("[forwarding]\nmode = \"native\"\ninterfaces = [{interfaces}]\nkeepalive_ms = 0\n")
    };
    let edge = native("\"mesh0\"");
    let addresses = [
        "10.77.1.1:4783",
        "10.77.2.1:4783",
        "10.77.1.2:4783",
        "10.77.2.2:4783",
    ];
    let [at_a, at_b, a, b] = addresses;
    hosts.configure(
        "edge-a",
        a,
        &(edge.clone() + &peers_of_edge("edge-b", at_a)),
    )?;
    hosts.configure("edge-b", b, &(edge + &peers_of_edge("edge-a", at_b)))?;
    let router = native("\"mesh-a\", \"mesh-b\"") + &peers_of_router(a, b);
    hosts.configure("router", "0.0.0.0:4783", &router)?;
    Ok(())
}

fn set_loopback(hosts: &mut Hosts) -> Result<()> {
    for host in ["edge-a", "router", "edge-b"] {
        hosts.add_here(host)?;
    }
    let [a, router, b] = ["127.77.0.2:4783", "127.77.0.1:4783", "127.77.0.3:4783"];
    let mode = "[forwarding]\nmode = \"userspace\"\n".to_owned();
    hosts.configure(
        "edge-a",
        a,
        &(mode.clone() + &peers_of_edge("edge-b", router)),
    )?;
    hosts.configure(
        "edge-b",
        b,
        &(mode.clone() + &peers_of_edge("edge-a", router)),
    )?;
    hosts.configure("router", router, &(mode + &peers_of_router(a, b)))?;
    Ok(())
}

fn peers_of_edge(other: &str, router: &str) -> String {
    format!(
        "[[peers]]\nname = \"router\"\nnode_key = \"{{router.node}}\"\n\
         entity_key = \"{{router.entity}}\"\naddress = \"{router}\"\n\
         [[peers]]\nname = \"{other}\"\nnode_key = \"{{{other}.node}}\"\n\
         entity_key = \"{{{other}.entity}}\"\nvia = [\"router\"]\n{}",
        channel()
    )
}

fn peers_of_router(a: &str, b: &str) -> String {
    let edge = |name: &str, address: &str| {
        format!(
            "[[peers]]\nname = \"{name}\"\nnode_key = \"{{{name}.node}}\"\n\
             entity_key = \"{{{name}.entity}}\"\naddress = \"{address}\"\n"
        )
    };
    edge("edge-a", a) + &edge("edge-b", b) + &channel()
}

/// Who may do what is told by entity key, as names of nodes differ between their own and others' files.
fn channel() -> String {
    format!(
        "[[channels]]\nname = \"{CHANNEL}\"\nreliable = true\npriority = 4\n\
         publish = [\"{{edge-a.entity}}\"]\nsubscribe = [\"{{edge-b.entity}}\"]\n"
    )
}

/// Publishes, floods, receives; then reads every counter.
async fn stream(arguments: &Arguments, hosts: &Hosts, is_root: bool) -> Result<Outcome> {
    let receiving = Mesh::open(hosts.socket("edge-b")).await?;
    let mut deliveries = receiving.subscribe(CHANNEL).await?;
    let sending = Mesh::open(hosts.socket("edge-a")).await?;
    let mut publisher = sending.publisher(CHANNEL).await?;
    await_subscriber(hosts)?;

    let before = Sample::take(hosts, is_root)?;
    say(&format!(
        "publishing {} events/s for {} s; flooding the router with 2 x {FLOOD_RATE} packets/s",
        arguments.rate, arguments.seconds
    ));
    let mut floods = Floods::start(hosts, arguments.seconds, is_root)?;
    let sent = Arc::new(Published::default());
    let awaited = Arc::clone(&sent);
    let receiver = tokio::spawn(async move {
        let mut received = outcome::Received::default();
        while let Some(Ok(delivery)) = deliveries.next().await {
            let now = Instant::now();
            let number = metrics::number(&delivery.payload);
            let expected = number.and_then(|n| awaited.lock().ok()?.remove(&n));
            match expected {
                Some((at, payload)) if payload == delivery.payload[..] => {
                    received.equal += 1;
                    received
                        .latencies_us
                        .push(u64::try_from((now - at).as_micros()).unwrap_or(0));
                }
                _ => received.unequal += 1,
            }
            if number == Some(metrics::LAST) {
                break;
            }
        }
        received
    });

    let published = publish(arguments, &mut publisher, &sent).await?;
    publisher.finish().await?;
    let received = tokio::time::timeout(DRAIN, receiver)
        .await
        .map_err(|_| "the last event did not arrive within ten seconds")??;
    floods.wait()?;
    let after = Sample::take(hosts, is_root)?;
    Outcome::new(published, received, &before, &after)
}

/// Publishes metrics at the rate asked for; returns how many events. The last has a number of its own.
async fn publish(
    arguments: &Arguments,
    publisher: &mut virga::mesh::Publisher,
    sent: &Published,
) -> Result<u64> {
    let total = arguments.seconds * u64::from(arguments.rate);
    let mut source = metrics::Source::new();
    let mut tick = interval(Duration::from_millis(1));
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let start = Instant::now();
    let mut number = 0;
    let mut shown = 0;
    while number < total {
        tick.tick().await;
        let due =
            u64::from(arguments.rate) * u64::try_from(start.elapsed().as_micros())? / 1_000_000;
        while number < due.min(total) {
            number += 1;
            let name = if number == total {
                metrics::LAST
            } else {
                number
            };
            let event = source.event(name)?;
            sent.lock()
                .map_err(|_| "a poisoned lock")?
                .insert(name, (Instant::now(), event.clone()));
            publisher.publish(&event).await?;
        }
        if start.elapsed().as_secs() > shown {
            shown = start.elapsed().as_secs();
            say(&format!("{shown:>3} s: {number} events published"));
        }
    }
    Ok(total)
}

/// Waits until the publisher's node knows its subscriber.
fn await_subscriber(hosts: &Hosts) -> Result<()> {
    let is_there = || {
        let status = hosts.status("edge-a").ok()?;
        let channels = status["channels"].as_array()?.clone();
        let channel = channels.iter().find(|c| c["name"] == CHANNEL)?;
        (channel["remote_subscribers"].as_u64()? > 0).then_some(())
    };
    if hosts::eventually(|| is_there().is_some()) {
        return Ok(());
    }
    Err(format!(
        "edge-b's subscription did not reach edge-a.\nedge-a:\n{}\nedge-b:\n{}\nrouter:\n{}",
        hosts.log("edge-a"),
        hosts.log("edge-b"),
        hosts.log("router")
    )
    .into())
}

/// Two senders that the router shall not let through.
struct Floods {
    children: Vec<Child>,
}

impl Floods {
    fn start(hosts: &Hosts, seconds: u64, is_root: bool) -> Result<Self> {
        let destination = hosts.host("edge-b").node.id.to_string();
        let [a, b, to_a, to_b] = if is_root {
            ["10.77.1.2", "10.77.2.2", "10.77.1.1:4783", "10.77.2.1:4783"]
        } else {
            let router = "127.77.0.1:4783";
            ["127.77.0.2", "127.77.0.3", router, router]
        };
        let plans = [
            ("edge-a", "unauthorised", a, to_a),
            ("edge-b", "malformed", b, to_b),
        ];
        let mut children = Vec::new();
        for (host, kind, from, to) in plans {
            let virga = hosts.virga().to_string_lossy().into_owned();
            let child = hosts
                .command(host, &virga)
                .args([
                    "gen",
                    "--from",
                    from,
                    "--to",
                    to,
                    "--kind",
                    kind,
                    "--destination",
                    &destination,
                ])
                .args([
                    "--rate",
                    &FLOOD_RATE.to_string(),
                    "--seconds",
                    &seconds.to_string(),
                ])
                .stdout(Stdio::null())
                .spawn()?;
            children.push(child);
        }
        Ok(Self { children })
    }

    fn wait(&mut self) -> Result<()> {
        for child in &mut self.children {
            let status = child.wait()?;
            if !status.success() {
                return Err(format!("a flood ended with {status}").into());
            }
        }
        Ok(())
    }
}

impl Drop for Floods {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended by itself.
            let _killed = child.kill();
            let _reaped = child.wait();
        }
    }
}

fn say(line: &str) {
    eprintln!("demo: {line}");
}
