//! Pictures of `virga` in a terminal, of a small mesh that runs: what the program writes goes through a pseudo terminal
//! and a terminal emulator, and what stands on its screen then is drawn as SVG. `scripts/screenshots` runs it, as root.
#![allow(unreachable_pub)]

use std::{
    error::Error,
    fs,
    io::{Read as _, Write as _},
    num::NonZeroU16,
    path::{Path, PathBuf},
    process::{Child, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use virga::mesh::blocking::{Mesh, Publisher};

#[path = "../demo/diamond.rs"]
mod diamond;
#[path = "../demo/hosts.rs"]
mod hosts;
#[path = "../demo/interrupt.rs"]
mod interrupt;
mod svg;

use diamond::{Middle, Ways, diamond_by};
use hosts::Hosts;

/// Columns of every picture.
const COLUMNS: u16 = 118;
/// How long a program is looked at before the picture.
const LOOK: Duration = Duration::from_millis(4_500);
/// How long subscriptions may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// Events a second, and packets a second of each flood.
const RATE: u32 = 2_000;
const FLOOD_RATE: &str = "3000";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A picture: its file, the host, rows, what is typed there, and words that it has to show.
const PICTURES: [(&str, &str, u16, &[&str], &str); 3] = [
    (
        "top-router",
        "r1",
        30,
        &["top"],
        "Peers and the ways to them",
    ),
    ("top-edge", "a", 28, &["top"], "Peers and the ways to them"),
    ("drops", "r1", 14, &["drops"], "in all"),
];

/// Writes pictures of a running mesh's `virga top` and `virga drops`.
#[derive(Parser)]
struct Arguments {
    /// The `virga` binary that the hosts run.
    #[arg(long)]
    virga: PathBuf,
    /// The folder that the pictures are written to.
    folder: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !rustix::process::geteuid().is_root() {
        println!("skipped: namespaces and XDP need root");
        return ExitCode::from(3);
    }
    if let Err(error) = interrupt::listen() {
        eprintln!("screenshots: signals cannot be listened for: {error}");
        return ExitCode::FAILURE;
    }
    match take_all(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("screenshots: {error}");
            ExitCode::FAILURE
        }
    }
}

fn take_all(arguments: &Arguments) -> Result<()> {
    let hosts = diamond_by(
        Ways::Learned,
        "virga-pictures",
        &arguments.virga,
        Middle::Cable,
    )?;
    check()?;
    let (a, b) = (
        Mesh::open(hosts.socket("a"))?,
        Mesh::open(hosts.socket("b"))?,
    );
    let mut events = b.subscribe(diamond::CHANNEL)?;
    if a.wait_for_subscribers(diamond::CHANNEL, 1, PATIENCE)?
        .is_none()
    {
        return Err("b's subscription does not reach a".into());
    }
    // They end with the node that they talk to.
    thread::spawn(move || events.by_ref().for_each(drop));
    let publisher = a.publisher(diamond::CHANNEL)?;
    thread::spawn(move || publish(&publisher));
    let floods = [flood(&hosts, "unauthorised")?, flood(&hosts, "malformed")?];
    fs::create_dir_all(&arguments.folder)?;
    for (name, host, rows, typed, shows) in PICTURES {
        let drawn = take(&hosts, (host, rows), typed, shows)?;
        let file = arguments.folder.join(format!("{name}.svg"));
        fs::write(&file, drawn)?;
        println!("{}", file.display());
    }
    drop(floods);
    Ok(())
}

fn publish(publisher: &Publisher) {
    let event = [0x56; 400];
    while publisher.publish(&event).is_ok() {
        thread::sleep(Duration::from_secs(1) / RATE);
    }
}

/// A sender that ends when it is dropped.
struct Flood(Child);

impl Drop for Flood {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn flood(hosts: &Hosts, kind: &str) -> Result<Flood> {
    let destination = hosts.host("b").node.id.to_string();
    let mut command = hosts.command("a", path(hosts.virga())?);
    command.args([
        "gen",
        "--kind",
        kind,
        "--to",
        "10.79.1.1:4783",
        "--destination",
        &destination,
    ]);
    command.args(["--rate", FLOOD_RATE, "--seconds", "600"]);
    Ok(Flood(command.stdout(Stdio::null()).spawn()?))
}

fn path(path: &Path) -> Result<&str> {
    Ok(path.to_str().ok_or("a path that is no text")?)
}

/// Runs `virga` on a host in a terminal of so many rows, and draws what stands there after a while.
fn take(hosts: &Hosts, (host, rows): (&str, u16), typed: &[&str], shows: &str) -> Result<String> {
    let socket = hosts.socket(host);
    let line = format!(
        "stty rows {rows} cols {COLUMNS}; exec {} {} --socket {}",
        path(hosts.virga())?,
        typed.join(" "),
        path(&socket)?
    );
    // script(1) gives it a pseudo terminal; what is written there is all that script writes.
    let mut command = hosts.command(host, "script");
    command.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    command.env("TERM", "xterm-256color");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut keys = child.stdin.take().ok_or("no standard input")?;
    let mut written = child.stdout.take().ok_or("no standard output")?;
    let reading = thread::spawn(move || {
        let mut bytes = Vec::new();
        written.read_to_end(&mut bytes).map(|_| bytes)
    });
    let looked = look();
    // Control-C: both programs take it for their end.
    keys.write_all(b"\x03")?;
    drop(keys);
    child.wait()?;
    let bytes = reading.join().map_err(|_| "the reader has ended")??;
    looked?;
    // Leaving the alternate screen would show what was there before.
    let shown = before(&bytes, b"\x1b[?1049l");
    let (height, width) = (NonZeroU16::try_from(rows)?, NonZeroU16::try_from(COLUMNS)?);
    let mut terminal = vt100::Parser::new(height, width, 0);
    terminal.process(shown);
    let text = terminal.screen().contents();
    if !text.contains(shows) {
        let typed = typed.join(" ");
        return Err(format!("virga {typed} on {host} does not show {shows:?}:\n{text}").into());
    }
    Ok(svg::draw(terminal.screen(), (rows, COLUMNS)))
}

/// Waits for so long as a program is looked at, or until an interrupt comes.
fn look() -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < LOOK {
        check()?;
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// An error once an interrupt has come: whatever returns it takes the mesh away again.
fn check() -> Result<()> {
    match interrupt::has_come() {
        true => Err("interrupted".into()),
        false => Ok(()),
    }
}

/// All before a sequence.
fn before<'a>(bytes: &'a [u8], sequence: &[u8]) -> &'a [u8] {
    let end = bytes
        .windows(sequence.len())
        .position(|window| window == sequence);
    &bytes[..end.unwrap_or(bytes.len())]
}
