//! `virga log order`.

use super::{Failure, LogError, log_name};
use crate::hex;
use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    path::PathBuf,
    str::FromStr,
};
use virga_state::{
    LogName,
    batch::FeedId,
    causal::{EventId, Index, Missing, Order},
    io::open,
    verify::{self, Depth},
};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Arguments {
    /// An event, by its log's name and its offset there, such as metrics/edge-a:41.
    one: Place,
    /// Another.
    other: Place,
    /// The folder that holds the logs; all of them are looked at.
    #[arg(long, value_name = "FOLDER")]
    logs: PathBuf,
}

/// An event of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    log: LogName,
    offset: u64,
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.rsplit_once(':');
        let (log, offset) = parts.ok_or("write LOG:OFFSET, such as metrics/edge-a:41")?;
        let log = log_name(log).map_err(|error| error.to_string())?;
        let offset = offset.parse();
        let offset = offset.map_err(|_| format!("{text:?} ends in no offset"))?;
        Ok(Self { log, offset })
    }
}

/// Why two events cannot be compared.
#[derive(Debug, thiserror::Error)]
enum OrderError {
    /// It is not there, or nobody has signed it.
    #[error("the log {} has no signed event at offset {}", .0.log, .0.offset)]
    Unsigned(Place),
}

/// Two events' names, as far as they were met.
struct Wanted<'a> {
    places: [&'a Place; 2],
    found: [Option<EventId>; 2],
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut index = Index::default();
    let mut wanted = Wanted {
        places: [&arguments.one, &arguments.other],
        found: [None, None],
    };
    let mut channels = BTreeMap::new();
    let failed = |source| LogError::Folder {
        folder: arguments.logs.clone(),
        source,
    };
    let names = open::list(&arguments.logs).map_err(failed);
    for name in names.map_err(Failure::runtime)? {
        let failed = |source| LogError::Open {
            name: name.clone(),
            source,
        };
        let folder = open::read(&arguments.logs, &name).map_err(failed);
        let folder = folder.map_err(Failure::runtime)?;
        let checked = verify::verify_with(&folder, &name, Depth::Content, |offset, batch| {
            let statement = batch.statement();
            let feed = statement.feed();
            wanted.meet(&name, offset, (feed, statement.first, statement.count));
            channels.insert(feed, (name.clone(), statement.entity));
            // What is refused is not there: the answer then says that it is unknown.
            let _place = index.insert(batch);
        });
        for flaw in &checked.map_err(failed).map_err(Failure::runtime)?.flaws {
            writeln!(io::stderr(), "virga: {name}: {flaw}")?;
        }
    }
    let [one, other] = wanted.events().map_err(Failure::runtime)?;
    let said = match index.order(one, other) {
        Order::Same => "same".to_owned(),
        Order::Before => "before".to_owned(),
        Order::After => "after".to_owned(),
        Order::Concurrent => "concurrent".to_owned(),
        Order::Forked(feed) => format!("forked: {}", feed_name(&channels, feed)),
        Order::Unknown(missing) => {
            let missing = missing
                .iter()
                .map(|missing| missing_name(&channels, missing));
            let missing: Vec<String> = missing.collect();
            format!("unknown until fetched: {}", missing.join(", "))
        }
    };
    Ok(writeln!(io::stdout(), "{said}")?)
}

impl Wanted<'_> {
    fn meet(&mut self, log: &LogName, offset: u64, (feed, first, count): (FeedId, u64, u32)) {
        for (place, found) in self.places.iter().zip(&mut self.found) {
            let further = place.offset.checked_sub(offset);
            let further = further.filter(|further| *further < count.into());
            if let Some(further) = further.filter(|_| place.log == *log) {
                let sequence = first + further;
                *found = Some(EventId { feed, sequence });
            }
        }
    }

    fn events(&self) -> Result<[EventId; 2], OrderError> {
        let event = |at: usize| {
            let place = self.places[at];
            self.found[at].ok_or_else(|| OrderError::Unsigned(place.clone()))
        };
        Ok([event(0)?, event(1)?])
    }
}

/// A feed by its channel and entity, where a log told them.
fn feed_name(channels: &BTreeMap<FeedId, (LogName, [u8; 32])>, feed: FeedId) -> String {
    match channels.get(&feed) {
        Some((channel, entity)) => format!("{channel} of entity {}", hex::encode(entity)),
        None => format!("feed {}", hex::encode(&feed.0)),
    }
}

fn missing_name(channels: &BTreeMap<FeedId, (LogName, [u8; 32])>, missing: &Missing) -> String {
    let feed = feed_name(channels, missing.feed);
    let head = missing
        .head
        .map(|head| format!(", head {}", hex::encode(&head)));
    let head = head.unwrap_or_default();
    format!("event {} of {feed}{head}", missing.sequence)
}
