//! `virga capture`: packets as a running node decides upon them, as lines or as a file for Wireshark.

use super::{
    Failure, block_on,
    client::{ClientError, Target},
    counted, print_json,
};
use crate::{
    capture::{
        asked::Asked,
        line::{Begun, Counts, Line, Packet, Place},
        pcapng::{Writer, comment},
    },
    daemon::unix_ns,
    hex,
    mesh::{Capture, Mesh},
};
use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, timeout},
};

/// A file is brought up to date this often while packets come.
const FLUSH_EVERY: Duration = Duration::from_millis(500);
/// A node that answers at all has told the last line by then.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without -w a line is printed for each packet. At the end standard error tells how many packets there were, and how many of them were missed and why. Only one capture goes on at a time, and it costs nothing while none does."
)]
pub(super) struct Arguments {
    /// Write a pcapng file for Wireshark and tshark, each packet with what became of it as its comment; - is standard
    /// output.
    #[arg(short = 'w', long = "write", value_name = "FILE")]
    write: Option<PathBuf>,
    /// Only packets that came in by this interface.
    #[arg(long, value_name = "NAME")]
    interface: Option<String>,
    /// Only what was decided there. Default: both; a packet for this node is seen at each.
    #[arg(long)]
    place: Option<Place>,
    /// Only these: forward, local, echo, drop, pass. Default: all but pass, which is traffic of others.
    #[arg(long, value_name = "VERDICT", value_delimiter = ',')]
    verdict: Vec<String>,
    /// Only packets dropped for these reasons, as `virga drops` names them.
    #[arg(long, value_name = "REASON", value_delimiter = ',')]
    reason: Vec<String>,
    /// Only packets of this channel.
    #[arg(long, value_name = "NAME")]
    channel: Option<String>,
    /// Only packets of this entity: its name, its public key, or the 16 hex digits that headers call it by.
    #[arg(long, value_name = "ENTITY")]
    origin: Option<String>,
    /// Only packets to this node: its name, or its id.
    #[arg(long, value_name = "NODE")]
    destination: Option<String>,
    /// Only packets of this session, by its id.
    #[arg(long, value_name = "ID")]
    session: Option<String>,
    /// At most so many packets a second; those above are counted as missed. Default: 1000.
    #[arg(long, value_name = "N")]
    rate: Option<u32>,
    /// One in so many, picked at random; 0 has as many passed over as the rate needs.
    #[arg(long, value_name = "N")]
    one_in: Option<u32>,
    /// End after so many packets.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so many seconds.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// With what follows the headers: sealed payload of the mesh, and what others send of theirs. Without it only
    /// headers leave the node.
    #[arg(long)]
    payload: bool,
    /// Print a JSON object a line: as the node tells it.
    #[arg(long, conflicts_with = "write")]
    json: bool,
    /// End the capture that goes on, whoever began it.
    #[arg(long, conflicts_with_all = ["write", "json"])]
    stop: bool,
    #[command(flatten)]
    target: Target,
}

impl Arguments {
    fn asked(&self) -> Asked {
        let list = |all: &[String]| (!all.is_empty()).then(|| all.join(","));
        Asked {
            interface: self.interface.clone(),
            place: self.place,
            verdict: list(&self.verdict),
            reason: list(&self.reason),
            channel: self.channel.clone(),
            origin: self.origin.clone(),
            destination: self.destination.clone(),
            session: self.session.clone(),
            rate: self.rate,
            one_in: self.one_in,
            count: self.count,
            seconds: self.seconds,
            payload: self.payload.then_some(true),
        }
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    block_on(async {
        let mesh = arguments.target.open().await?;
        if arguments.stop {
            return Ok(mesh.stop_capture().await?);
        }
        // Ctrl-C ends it with what there was; before the node is asked, so that none comes too early.
        let interrupt = signal(SignalKind::interrupt())?;
        let terminate = signal(SignalKind::terminate())?;
        // A file of before is left as it is where there is no capture.
        let capture = mesh.capture(&arguments.asked()).await?;
        let mut out = Out::open(arguments)?;
        let followed = follow(&mesh, capture, (interrupt, terminate), &mut out).await;
        if let (Err(_), Out::File { packets, path, .. }) = (&followed, &out) {
            let told = counted(*packets, "packet");
            say(&format!("{told} were handed to {} before", path.display()));
        }
        let counts = followed?;
        say(&summary(&counts));
        Ok(())
    })
}

/// Whoever closed standard error goes without.
fn say(text: &str) {
    let _unheard = writeln!(io::stderr(), "{text}");
}

/// Writes what comes, until the last line.
async fn follow(
    mesh: &Mesh,
    mut capture: Capture,
    (mut interrupt, mut terminate): (Signal, Signal),
    out: &mut Out,
) -> Result<Counts, Failure> {
    let mut counts = Counts::default();
    let mut is_stopping = false;
    let mut flushed = Instant::now();
    loop {
        let next = tokio::select! {
            next = timeout(PATIENCE, capture.next_line()) => next,
            _ = interrupt.recv(), if !is_stopping => {
                is_stopping = true;
                stop(mesh).await?;
                continue;
            }
            _ = terminate.recv(), if !is_stopping => {
                is_stopping = true;
                stop(mesh).await?;
                continue;
            }
        };
        // It tells how many there were four times a second.
        let silent = |_| ClientError::Silent {
            seconds: PATIENCE.as_secs(),
        };
        let Some(line) = next.map_err(silent)? else {
            let arrived = counts.told;
            return Err(ClientError::Stopped { arrived }.into());
        };
        let line = line?;
        out.write(&line)?;
        if flushed.elapsed() >= FLUSH_EVERY {
            flushed = Instant::now();
            out.flush()?;
        }
        match line {
            Line::Begun(begun) => {
                // Whoever waits for the file to begin sees that it has.
                out.flush()?;
                say(&introduction(&begun));
                if let Some(why) = &begun.nic_refused {
                    say(why);
                }
            }
            Line::Packet(_) => {}
            Line::Counts(so_far) => counts = so_far,
            Line::Ended(ended) => {
                out.end(&ended.counts)?;
                return Ok(ended.counts);
            }
        }
    }
}

/// Over already is as good.
async fn stop(mesh: &Mesh) -> Result<(), ClientError> {
    match mesh.stop_capture().await {
        Ok(()) | Err(crate::mesh::MeshError::Refused { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn introduction(begun: &Begun) -> String {
    let nic = (!begun.nic.is_empty()).then(|| format!("the NIC path on {}", begun.nic.join(", ")));
    let userspace = begun.userspace.then(|| "the workers' sockets".to_owned());
    let places: Vec<String> = nic.into_iter().chain(userspace).collect();
    match places.is_empty() {
        true => "capturing from nowhere: this node has no NIC path".to_owned(),
        false => format!("capturing from {}; Ctrl-C ends it", places.join(" and ")),
    }
}

fn summary(counts: &Counts) -> String {
    let mut text = format!(
        "{} captured of {} that were asked for",
        counted(counts.told, "packet"),
        counts.matched
    );
    let parts = [
        (
            counts.passed_over,
            "passed over, one in so many being asked for",
        ),
        (counts.over_rate, "missed: above --rate"),
        (counts.no_room, "missed: the node had no room for them"),
        (counts.unread, "missed: not taken from the node in time"),
    ];
    for (count, what) in parts.into_iter().filter(|(count, _)| *count > 0) {
        text += &format!("; {count} {what}");
    }
    text
}

/// Where packets go.
enum Out {
    Json,
    Text,
    File {
        path: PathBuf,
        writer: Option<Writer<BufWriter<Box<dyn Write>>>>,
        to: Option<Box<dyn Write>>,
        packets: u64,
    },
}

impl Out {
    fn open(arguments: &Arguments) -> Result<Self, Failure> {
        let Some(path) = &arguments.write else {
            return Ok(if arguments.json {
                Self::Json
            } else {
                Self::Text
            });
        };
        let to: Box<dyn Write> = match path.as_path() == Path::new("-") {
            true => Box::new(io::stdout()),
            false => {
                let file = File::create(path);
                Box::new(file.map_err(|error| cannot(path, error))?)
            }
        };
        Ok(Self::File {
            path: path.clone(),
            writer: None,
            to: Some(to),
            packets: 0,
        })
    }

    fn write(&mut self, line: &Line) -> Result<(), Failure> {
        match (self, line) {
            (Self::Json, line) => print_json(line),
            (Self::Text, Line::Packet(packet)) => {
                let text = text(packet);
                Ok(writeln!(io::stdout().lock(), "{text}")?)
            }
            (
                Self::File {
                    path, writer, to, ..
                },
                Line::Begun(begun),
            ) => {
                if let Some(to) = to.take() {
                    let new =
                        Writer::new(BufWriter::new(to), begun.port, begun.nic_refused.as_deref());
                    *writer = Some(new.map_err(|error| cannot(path, error))?);
                }
                Ok(())
            }
            (
                Self::File {
                    path,
                    writer: Some(writer),
                    packets,
                    ..
                },
                Line::Packet(packet),
            ) => {
                let data = hex::decode_bytes(&packet.data).unwrap_or_default();
                let written = writer.packet(packet, &data);
                written.map_err(|error| cannot(path, error))?;
                *packets += 1;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<(), Failure> {
        match self {
            Self::File {
                path,
                writer: Some(writer),
                ..
            } => writer.flush().map_err(|error| cannot(path, error)),
            _ => Ok(io::stdout().flush()?),
        }
    }

    fn end(&mut self, counts: &Counts) -> Result<(), Failure> {
        match self {
            Self::File {
                path,
                writer: Some(writer),
                ..
            } => {
                let ended = writer.end(unix_ns(), counts);
                ended.map_err(|error| cannot(path, error))
            }
            _ => Ok(io::stdout().flush()?),
        }
    }
}

/// Nobody reads standard output any more, or the file cannot be written.
fn cannot(path: &Path, error: io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return error.into();
    }
    let text = format!(
        "cannot write {}: {error}; the capture has ended, the node goes on",
        path.display()
    );
    Failure::Runtime(text.into())
}

/// One packet on one line.
fn text(packet: &Packet) -> String {
    let at = SystemTime::UNIX_EPOCH + Duration::from_nanos(packet.unix_ns);
    let at = humantime::format_rfc3339_micros(at);
    let place = match &*packet.interface {
        "" => "-",
        name => name,
    };
    let mut text = format!("{at}  {place}  {}  {} B", comment(packet), packet.bytes);
    if let Some(source) = packet.source {
        text += &format!("  from {source}");
    }
    if let Some(header) = &packet.header {
        let origin = header.origin_name.as_ref().unwrap_or(&header.origin);
        let channel = header.channel_name.as_ref().unwrap_or(&header.channel);
        text += &format!(
            "  {origin} on {channel} to {}, session {}, stream {:x}, packet {}",
            header.destination, header.session, header.stream, header.sequence
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_missed_is_told_by_its_cause_and_what_was_not_is_left_out() {
        let mut counts = Counts {
            matched: 10,
            told: 1,
            ..Counts::default()
        };
        assert_eq!(
            summary(&counts),
            "1 packet captured of 10 that were asked for"
        );
        (counts.over_rate, counts.unread) = (7, 2);
        let text = summary(&counts);
        assert!(text.contains("7 missed: above --rate"), "{text}");
        assert!(text.contains("2 missed: not taken"), "{text}");
        assert!(!text.contains("no room"), "{text}");
    }
}
