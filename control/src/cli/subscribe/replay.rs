//! `virga sub --from`: what a kept channel's log holds, and on with what comes.

use super::{Arguments, Count, Failure, Shown, write_event};
use crate::{
    cli::client::{ClientError, failed},
    hex,
    mesh::{Cursor, KeptEvent, Replay, Replayed, Which},
};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};
use virga_state::{cursor::NoCursor, format::LogId};

/// The place is written after so many events at the latest.
const PLACE_EVERY: u64 = 1_000;
/// And when nothing comes for so long.
const PLACE_IDLE: Duration = Duration::from_millis(50);

/// A file that says where a reader goes on.
struct Place<'a> {
    file: &'a Path,
    /// The last event that was dealt with, and is not in the file yet.
    unsaved: Option<u64>,
    events: u64,
    /// The log that it is a place in.
    log: Option<LogId>,
}

pub(super) async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mesh = arguments.target.open().await?;
    let mut place = arguments.position.as_deref().map(|file| Place {
        file,
        unsaved: None,
        events: 0,
        log: None,
    });
    let from = match &mut place {
        Some(place) => place.load()?.or(arguments.from),
        None => arguments.from,
    };
    let from = from.unwrap_or(Cursor::Start);
    let which = Which {
        node: arguments.at.clone(),
        log: place.as_ref().and_then(|place| place.log),
    };
    let channel = &arguments.channel;
    let opening = async {
        match arguments.prefix {
            true => mesh.replay_prefix(channel, from).await,
            false => mesh.replay_at(channel, from, &which).await,
        }
    };
    let mut events = opening.await?;
    let ended = follow(&mut events, place.as_mut(), arguments).await;
    // Also where it ended otherwise than asked for.
    let saved = place.as_mut().map_or(Ok(()), Place::save);
    ended.and(saved.map_err(Failure::from))
}

async fn follow(
    events: &mut Replay,
    mut place: Option<&mut Place<'_>>,
    arguments: &Arguments,
) -> Result<(), Failure> {
    let mut count = Count::new(arguments);
    while !count.is_reached() {
        let Some(next) = next(events, place.as_deref_mut(), &count).await? else {
            return Err(count.stopped().into());
        };
        match next {
            Replayed::Gap(why) => eprintln!("virga: {why}"),
            Replayed::Event(event) => {
                print(&event, arguments)?;
                count.add();
                if let Some(place) = &mut place {
                    place.log = events.log(&event.channel).map(|opened| opened.log);
                    place.note(event.offset)?;
                }
            }
        }
    }
    Ok(())
}

/// What comes next; while nothing does, the place is written.
async fn next(
    events: &mut Replay,
    place: Option<&mut Place<'_>>,
    count: &Count,
) -> Result<Option<Replayed>, Failure> {
    if let Some(place) = place.filter(|place| place.unsaved.is_some()) {
        match tokio::time::timeout(PLACE_IDLE, events.next_kept()).await {
            Ok(next) => return Ok(next.transpose()?),
            Err(_) => place.save()?,
        }
    }
    let next = count.within(events.next_kept()).await?;
    Ok(next.transpose()?)
}

impl Place<'_> {
    fn load(&mut self) -> Result<Option<Cursor>, ClientError> {
        let text = match fs::read_to_string(self.file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read the file of --position")(error)),
        };
        let wrong = |error: Box<dyn std::error::Error + Send + Sync>| {
            let error = io::Error::new(io::ErrorKind::InvalidData, error);
            failed("read the file of --position")(error)
        };
        let mut words = text.split_whitespace();
        let cursor = words.next().unwrap_or_default().parse();
        let cursor = cursor.map_err(|error: NoCursor| wrong(error.into()))?;
        if let Some(word) = words.next() {
            let log = word.strip_prefix("log:").and_then(hex::decode_id);
            let expected = || wrong("behind the place stands log: and the log's id".into());
            self.log = Some(log.ok_or_else(expected)?);
        }
        Ok(Some(cursor))
    }

    fn note(&mut self, offset: u64) -> Result<(), ClientError> {
        self.unsaved = Some(offset);
        self.events += 1;
        match self.events.is_multiple_of(PLACE_EVERY) {
            true => self.save(),
            false => Ok(()),
        }
    }

    /// Whole or not at all.
    fn save(&mut self) -> Result<(), ClientError> {
        let Some(offset) = self.unsaved.take() else {
            return Ok(());
        };
        let mut new = PathBuf::from(self.file).into_os_string();
        new.push(".new");
        let mut text = Cursor::After(offset).to_string();
        if let Some(log) = &self.log {
            text += " log:";
            text += &hex::encode_bytes(log);
        }
        text.push('\n');
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, self.file))
            .map_err(failed("write the file of --position"))
    }
}

#[derive(serde::Serialize)]
struct Line<'a> {
    channel: &'a str,
    offset: u64,
    origin: String,
    time_unix_ns: u64,
    #[serde(flatten)]
    event: Shown<'a>,
}

fn print(event: &KeptEvent, arguments: &Arguments) -> Result<(), Failure> {
    let channel = event.channel.as_str();
    let line = Line {
        channel,
        offset: event.offset,
        origin: event.origin.to_string(),
        time_unix_ns: event.time_unix_ns,
        event: Shown::of(&event.payload),
    };
    write_event(channel, &event.payload, &line, arguments)
}
