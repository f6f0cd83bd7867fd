//! `virga-peers-store fjall|sqlite|rocksdb FOLDER BYTES TOGETHER MILLISECONDS`: how many events a second a store takes that are
//! on disk for good when it says so, so many of them by one commit. Each event has a number of 8 bytes as its key.
//! Prints one figure. fjall: a write batch, then `persist(SyncData)`; SQLite: a transaction in WAL mode with
//! `synchronous = FULL`; RocksDB, where it is built in (`--features rocksdb`): a write batch with `sync`. So each one's documents say for
//! events that must survive loss of power.

use std::{
    env,
    error::Error,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What is measured.
struct Load {
    payload: Vec<u8>,
    together: u64,
    time: Duration,
}

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
        return Err("fjall|sqlite|rocksdb FOLDER BYTES TOGETHER MILLISECONDS".into());
    };
    let folder = Path::new(folder);
    let load = Load {
        payload: vec![0x5a_u8; bytes.parse()?],
        together: together.parse()?,
        time: Duration::from_millis(milliseconds.parse()?),
    };
    match store.as_str() {
        "fjall" => fjall(folder, &load),
        "sqlite" => sqlite(folder, &load),
        "rocksdb" => rocksdb(folder, &load),
        other => Err(format!("{other} is none of fjall, sqlite and rocksdb").into()),
    }
}

fn fjall(folder: &Path, load: &Load) -> Outcome<f64> {
    let database = fjall::Database::builder(folder).open()?;
    let events = database.keyspace("events", fjall::KeyspaceCreateOptions::default)?;
    rate(load, |numbers| {
        let mut batch = database.batch();
        for number in numbers {
            batch.insert(&events, number.to_be_bytes(), &load.payload);
        }
        batch.commit()?;
        Ok(database.persist(fjall::PersistMode::SyncData)?)
    })
}

fn sqlite(folder: &Path, load: &Load) -> Outcome<f64> {
    let mut database = rusqlite::Connection::open(folder.join("events.db"))?;
    database.pragma_update(None, "journal_mode", "wal")?;
    database.pragma_update(None, "synchronous", "full")?;
    database.execute(
        "create table events (number integer primary key, payload blob)",
        (),
    )?;
    rate(load, |numbers| {
        let transaction = database.transaction()?;
        {
            let mut insert = transaction.prepare_cached("insert into events values (?1, ?2)")?;
            for number in numbers {
                insert.execute((i64::try_from(number)?, &load.payload))?;
            }
        }
        Ok(transaction.commit()?)
    })
}

#[cfg(feature = "rocksdb")]
fn rocksdb(folder: &Path, load: &Load) -> Outcome<f64> {
    let mut options = rocksdb::Options::default();
    options.create_if_missing(true);
    let database = rocksdb::DB::open(&options, folder)?;
    let mut synced = rocksdb::WriteOptions::default();
    synced.set_sync(true);
    rate(load, |numbers| {
        let mut batch = rocksdb::WriteBatch::default();
        for number in numbers {
            batch.put(number.to_be_bytes(), &load.payload);
        }
        Ok(database.write_opt(batch, &synced)?)
    })
}

#[cfg(not(feature = "rocksdb"))]
fn rocksdb(_: &Path, _: &Load) -> Outcome<f64> {
    Err("RocksDB is not built in: build with --features rocksdb".into())
}

/// Commits until the time is over; events a second.
fn rate(load: &Load, mut commit: impl FnMut(std::ops::Range<u64>) -> Outcome<()>) -> Outcome<f64> {
    let begin = Instant::now();
    let mut next = 0;
    while begin.elapsed() < load.time {
        commit(next..next + load.together)?;
        next += load.together;
    }
    Ok(next as f64 / begin.elapsed().as_secs_f64())
}
