//! What a fold makes of logs that a node gives.

use super::{Failure, Found, Logs};
use crate::{
    cli::{log::log_name, print_json, subscribe::shown},
    hex,
    mesh::Which,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io::{self, Write as _},
};
use virga_state::{
    fold::{Fold, Policy, Token, ready::KeyChange},
    format::LogId,
};

/// An event's place, such as metrics/edge-a:41.
pub(super) fn token(text: &str) -> Result<Token, String> {
    let parts = text.rsplit_once(':');
    let (log, offset) = parts.ok_or("write LOG:OFFSET, such as metrics/edge-a:41")?;
    let log = log_name(log).map_err(|error| error.to_string())?;
    let offset = offset.parse();
    let offset = offset.map_err(|_| format!("{text:?} ends in no offset"))?;
    Ok(Token { log, offset })
}

/// A log's id.
pub(super) fn id(text: &str) -> Result<LogId, String> {
    hex::decode_id(text).ok_or_else(|| "a log's id is 32 hex digits".to_owned())
}

#[derive(serde::Serialize)]
struct Line<'a> {
    log: &'a str,
    offset: u64,
    key: &'a str,
    value: Option<&'a Value>,
}

impl Logs {
    pub(super) async fn live<F: Fold>(
        &self,
        fold: F,
        policy: Policy,
        show: impl Fn(&F::State) -> BTreeMap<String, Value>,
        change: impl Fn(F::Change) -> KeyChange<Value>,
    ) -> Result<(), Failure> {
        if let Some(token) = self.reach.as_ref().filter(|t| !self.names.contains(&t.log)) {
            let words = format!(
                "--reach waits for an event of {}: name that log, too",
                token.log
            );
            return Err(Failure::runtime(words));
        }
        if self.log.is_some() && self.names.len() > 1 {
            let words = "--log means one log: name one, or leave it out";
            return Err(Failure::runtime(words));
        }
        let mesh = self.target.open().await?;
        let which = Which {
            node: self.at.clone(),
            log: self.log,
        };
        let names = self.names.iter();
        let channels: Vec<_> = names
            .map(|name| (name.to_string(), which.clone()))
            .collect();
        let live = mesh.fold_at(fold, policy, &channels).await;
        let mut live = live.map_err(Failure::runtime)?;
        let caught_up = live.catch_up(|_, _| {}).await;
        caught_up.map_err(Failure::runtime)?;
        if let Some(token) = &self.reach {
            let reached = live.reach(token, |_, _| {}).await;
            reached.map_err(Failure::runtime)?;
        }
        let found = live.logs().filter_map(|(log, opened)| {
            let opened = opened?;
            let id = hex::encode_bytes(&opened.log);
            let node = Some(opened.node.to_string());
            Some((log.clone(), Found { id, node }))
        });
        self.show(live.folding(), &found.collect(), show)?;
        let mut left = if self.follow {
            self.count.unwrap_or(u64::MAX)
        } else {
            0
        };
        while left > 0 {
            left -= 1;
            let (token, made) = live.next_change().await.map_err(Failure::runtime)?;
            self.print(&token, &change(made))?;
        }
        Ok(())
    }

    fn print(&self, token: &Token, change: &KeyChange<Value>) -> Result<(), Failure> {
        if self.json {
            return print_json(&Line {
                log: token.log.as_str(),
                offset: token.offset,
                key: &change.key,
                value: change.value.as_ref(),
            });
        }
        let key = shown(change.key.as_bytes());
        let mut out = io::stdout().lock();
        match &change.value {
            Some(value) => writeln!(out, "{key}\t{value}")?,
            None => writeln!(out, "{key}\tremoved")?,
        }
        Ok(())
    }
}
