//! `GET /replay`: what logs hold from a place on, and on with what comes, as the body of an answer that
//! does not end. What this node does not keep is read at a node that does.

use super::{
    Api,
    error::{ApiError, Query},
    frames::{LogOpened, Place, write_end},
    subscribe::pattern,
    trace::node,
};
use crate::{
    channel::Pattern,
    hex,
    kept::follow::Follower,
    reading::remote::{NoLog, Remote},
};
use axum::{
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use serde::Deserialize;
use std::{collections::BTreeSet, convert::Infallible, sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::timeout};
use virga_ebpf::header::NodeId;
use virga_state::{Cursor, format::LogId};
use virga_transport::ChannelName;

/// Chunks that wait for the reader: what is read ahead of it.
const CHUNKS_MAX: usize = 2;
/// How long the answer waits for nodes that may keep a log to say so; then it begins, and they are waited for.
const LOOK: Duration = Duration::from_secs(3);

/// Which channels, and from where on.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    channel: Option<String>,
    prefix: Option<String>,
    from: String,
    /// The node whose log is meant: a peer's name, this node's, or an id in hex.
    at: Option<String>,
    /// The id of the log that is meant, in hex.
    log: Option<String>,
    /// Whether it is told how far each log was given.
    #[serde(default)]
    places: bool,
}

/// Which log is meant, where there may be several.
#[derive(Clone, Copy)]
struct Which {
    at: Option<NodeId>,
    log: Option<LogId>,
}

impl Wanted {
    fn cursor(&self) -> Result<Cursor, ApiError> {
        let cursor = self.from.parse::<Cursor>();
        let cursor = cursor.map_err(|error| ApiError::Request(error.to_string()))?;
        match (cursor, &self.prefix) {
            (Cursor::Offset(_) | Cursor::After(_), Some(_)) => Err(ApiError::Request(
                "an offset is a place in one log: with a prefix say start, end or time:SECONDS"
                    .into(),
            )),
            _ => Ok(cursor),
        }
    }

    fn which(&self, api: &Api) -> Result<Which, ApiError> {
        let config = api.identity.config();
        let at = self.at.as_deref().map(|name| node(&config, name));
        let log = match (&self.log, &self.prefix) {
            (None, _) => None,
            (Some(_), Some(_)) => {
                let words = "log=ID means one log: say no prefix with it";
                return Err(ApiError::Request(words.into()));
            }
            (Some(text), None) => {
                let log = hex::decode_id(text);
                let words = || ApiError::Request("log=ID is 32 hex digits".into());
                Some(log.ok_or_else(words)?)
            }
        };
        let at = at.transpose()?;
        Ok(Which { at, log })
    }
}

/// Whether a reader is told how far each log was given.
#[derive(Clone, Copy)]
enum Places {
    Told,
    Untold,
}

/// A log that is read.
enum Source {
    /// This node's, and where it ended when it was opened.
    Here(Box<Follower>, LogOpened, u64),
    There(Box<Remote>),
}

pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Query(wanted): Query<Wanted>,
) -> Result<Response, ApiError> {
    let pattern = pattern(wanted.channel.as_deref(), wanted.prefix.as_deref())?;
    let (cursor, which) = (wanted.cursor()?, wanted.which(&api)?);
    let mut sources = Vec::new();
    for channel in channels(&api, &pattern).await? {
        sources.push(source(&api, channel, cursor, which).await?);
    }
    // Of one log the end is known when the answer begins: what comes after that is given, however late it is found.
    let look = match (cursor, &pattern) {
        (Cursor::End, Pattern::Channel(_)) => None,
        _ => Some(LOOK),
    };
    let sources = find(&pattern, sources, look).await?;
    let places = match wanted.places {
        true => Places::Told,
        false => Places::Untold,
    };
    let (to, chunks) = mpsc::channel(CHUNKS_MAX);
    let is_one = matches!(pattern, Pattern::Channel(_));
    for mut source in sources {
        let to = to.clone();
        tokio::spawn(async move {
            if is_one || source.is_kept(&to).await {
                source.pass_on(to, places).await;
            }
        });
    }
    drop(to);
    let state = (chunks, api.stopping.clone());
    let chunks = futures_util::stream::unfold(state, |(mut chunks, mut stopping)| async {
        let chunk = tokio::select! {
            chunk = chunks.recv() => chunk?,
            _ = stopping.changed() => return None,
        };
        Some((Ok::<Bytes, Infallible>(chunk), (chunks, stopping)))
    });
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, Body::from_stream(chunks)).into_response())
}

/// Of many those that this node keeps, or may have.
async fn channels(api: &Api, pattern: &Pattern) -> Result<BTreeSet<ChannelName>, ApiError> {
    if let Pattern::Channel(name) = pattern {
        return Ok([name.clone()].into());
    }
    let mut channels: BTreeSet<_> = api.kept.matching(pattern).into_iter().collect();
    channels.extend(api.dispatch.subscribable(pattern).await?);
    match channels.is_empty() {
        true => Err(nothing(pattern)),
        false => Ok(channels),
    }
}

fn nothing(pattern: &Pattern) -> ApiError {
    ApiError::Missing(format!(
        "no log of {} {} is kept here, or to be had: add persist = true to the channel, here or at a peer whose entity may subscribe",
        pattern.kind(),
        pattern.name()
    ))
}

/// This node's log, or else another's, where nothing is asked yet.
async fn source(
    api: &Api,
    channel: ChannelName,
    cursor: Cursor,
    which: Which,
) -> Result<Source, ApiError> {
    let config = api.identity.config();
    let own = config.node.id;
    let is_here = which.at.is_none_or(|at| at == own);
    let is_meant = |log: &LogId| which.log.is_none_or(|meant| meant == *log);
    if let Some(log) = api.kept.id(&channel).filter(|_| is_here).filter(is_meant) {
        let kept = api.kept.clone();
        let opened = LogOpened {
            channel: channel.clone(),
            log,
            node: own,
        };
        let end = kept.readable(&channel);
        // Looking for the place reads files.
        let opening = tokio::task::spawn_blocking(move || kept.follow(&channel, cursor));
        let follower = opening.await.map_err(failed)?.map_err(failed)?;
        let follower = follower.ok_or_else(|| failed("the log is gone"))?;
        return Ok(Source::Here(Box::new(follower), opened, end));
    }
    if which.at == Some(own) {
        let words = format!("this node keeps no log of {channel}, or another one than is meant");
        return Err(ApiError::Missing(words));
    }
    let of = (channel, cursor);
    let remote = Remote::new(
        (&api.dispatch, &api.reading),
        &config,
        of,
        (which.at, which.log),
    );
    Ok(Source::There(Box::new(remote)))
}

/// Looks for those that other nodes keep; those of many that nobody keeps are left out.
async fn find(
    pattern: &Pattern,
    mut sources: Vec<Source>,
    look: Option<Duration>,
) -> Result<Vec<Source>, ApiError> {
    let looks = sources.iter_mut().map(|source| async {
        match source {
            Source::Here(..) => Ok(()),
            Source::There(remote) => match look {
                // Those that did not answer yet may still come up.
                Some(look) => timeout(look, remote.find()).await.unwrap_or(Ok(())),
                None => remote.find().await,
            },
        }
    });
    let found = join_all(looks).await;
    let is_one = matches!(pattern, Pattern::Channel(_));
    let mut errors = found.iter().filter_map(|found| found.as_ref().err());
    if let Some(error) = errors.find(|error| is_one || !error.is_kept_nowhere()) {
        return Err(error.clone().into());
    }
    let found = sources.into_iter().zip(found);
    let found = found.filter(|(_, found)| found.is_ok());
    let found: Vec<Source> = found.map(|(source, _)| source).collect();
    match found.is_empty() {
        true => Err(nothing(pattern)),
        false => Ok(found),
    }
}

impl From<NoLog> for ApiError {
    fn from(error: NoLog) -> Self {
        let words = error.to_string();
        match error {
            NoLog::Subscription(error) => error.into(),
            NoLog::Nowhere(_) | NoLog::Refused(..) => Self::Missing(words),
            NoLog::TooMany => Self::Busy(words),
        }
    }
}

impl Source {
    /// Waits for a node that keeps it; false where none does, or nobody reads any more.
    async fn is_kept(&mut self, to: &mpsc::Sender<Bytes>) -> bool {
        let Self::There(remote) = self else {
            return true;
        };
        tokio::select! {
            found = remote.find() => !found.is_err_and(|error| error.is_kept_nowhere()),
            () = to.closed() => false,
        }
    }

    /// Until whoever reads is gone, the node stops, or the log cannot be read on.
    async fn pass_on(mut self, to: mpsc::Sender<Bytes>, places: Places) {
        let passed = tokio::select! {
            passed = self.pass_chunks(&to, places) => passed,
            () = to.closed() => return,
        };
        if let Err(why) = passed {
            let mut end = BytesMut::new();
            write_end(&mut end, &why);
            // Nobody reads any more otherwise.
            let _sent = to.send(end.freeze()).await;
        }
    }

    async fn pass_chunks(
        &mut self,
        to: &mpsc::Sender<Bytes>,
        places: Places,
    ) -> Result<(), String> {
        let end = match places {
            Places::Told => Some(self.end().await?),
            Places::Untold => None,
        };
        let mut first = BytesMut::new();
        if let Self::Here(_, opened, _) = self {
            opened.write(&mut first);
        }
        let mut chunk = Some(first.freeze()).filter(|first| !first.is_empty());
        loop {
            if chunk.is_none() {
                chunk = self.next_chunk().await?;
            }
            let Some(ready) = chunk.take() else {
                return Ok(());
            };
            let place = end.and_then(|end| self.place(end));
            for part in [Some(ready), place].into_iter().flatten() {
                if to.send(part).await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    async fn next_chunk(&mut self) -> Result<Option<Bytes>, String> {
        match self {
            Self::Here(follower, ..) => follower.next_chunk().await,
            Self::There(remote) => remote.next_chunk().await.map(Some),
        }
    }

    /// Where the log ends when it is found.
    async fn end(&mut self) -> Result<u64, String> {
        match self {
            Self::Here(_, _, end) => Ok(*end),
            Self::There(remote) => remote.end().await,
        }
    }

    /// How far it was given, as a frame.
    fn place(&self, end: u64) -> Option<Bytes> {
        let (channel, next) = match self {
            Self::Here(follower, opened, _) => (&opened.channel, follower.position()?),
            Self::There(remote) => (remote.channel(), remote.position()),
        };
        let mut frame = BytesMut::new();
        let channel = channel.clone();
        Place { channel, next, end }.write(&mut frame);
        Some(frame.freeze())
    }
}

fn failed(error: impl std::fmt::Display) -> ApiError {
    ApiError::Failed(error.to_string())
}
