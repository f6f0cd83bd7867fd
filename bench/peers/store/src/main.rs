//! `virga-peers-store fjall|sqlite FOLDER BYTES TOGETHER MILLISECONDS`: how many events a second a store takes that are
//! on disk for good when it says so, so many of them by one commit. Each event has a number of 8 bytes as its key.
//! Prints one figure. fjall: a write batch, then `persist(SyncData)`; SQLite: a transaction in WAL mode with
//! `synchronous = FULL`, as each one's documents say for events that must survive loss of power.

use std::{
    env,
    error::Error,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    match run() {
        Ok(rate) => {
            println!("{rate}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("virga-peers-store: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<f64> {
    let args: Vec<String> = env::args().skip(1).collect();
    let [store, folder, bytes, together, milliseconds] = &args[..] else {
        return Err("fjall|sqlite FOLDER BYTES TOGETHER MILLISECONDS".into());
    };
    let folder = Path::new(folder);
    let payload = vec![0x5a_u8; bytes.parse()?];
    let together: u64 = together.parse()?;
    let time = Duration::from_millis(milliseconds.parse()?);
    match store.as_str() {
        "fjall" => {
            let database = fjall::Database::builder(folder).open()?;
            let events = database.keyspace("events", fjall::KeyspaceCreateOptions::default)?;
            rate(together, time, |numbers| {
                let mut batch = database.batch();
                for number in numbers {
                    batch.insert(&events, number.to_be_bytes(), &payload);
                }
                batch.commit()?;
                Ok(database.persist(fjall::PersistMode::SyncData)?)
            })
        }
        "sqlite" => {
            let mut database = rusqlite::Connection::open(folder.join("events.db"))?;
            database.pragma_update(None, "journal_mode", "wal")?;
            database.pragma_update(None, "synchronous", "full")?;
            database.execute(
                "create table events (number integer primary key, payload blob)",
                (),
            )?;
            rate(together, time, |numbers| {
                let transaction = database.transaction()?;
                {
                    let mut insert =
                        transaction.prepare_cached("insert into events values (?1, ?2)")?;
                    for number in numbers {
                        insert.execute((i64::try_from(number)?, &payload))?;
                    }
                }
                Ok(transaction.commit()?)
            })
        }
        other => Err(format!("{other} is neither fjall nor sqlite").into()),
    }
}

/// Commits until the time is over; events a second.
fn rate(
    together: u64,
    time: Duration,
    mut commit: impl FnMut(std::ops::Range<u64>) -> Outcome<()>,
) -> Outcome<f64> {
    let begin = Instant::now();
    let mut next = 0;
    while begin.elapsed() < time {
        commit(next..next + together)?;
        next += together;
    }
    Ok(next as f64 / begin.elapsed().as_secs_f64())
}
