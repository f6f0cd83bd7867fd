//! What of the evidence outlives a restart.
//!
//! The files are there so that a restart loses no packet of others: a daemon that begins with what it knew admits what
//! the pinned maps admitted, less what has expired or is on a list that was kept; lists that it has missed come with the
//! first session. Statements have a file of their own, which an earlier version passes over.

use super::{follow, now_s};
use crate::{
    admissions::{Piece, Store},
    capability::statement::By,
    cause,
    config::Config,
    identity::Present,
    image,
    rights::{
        List,
        file::{self, FileError},
    },
};
use std::path::{Path, PathBuf};
use tokio::task::block_in_place;

/// Where it is kept.
pub(super) struct Files {
    tokens: PathBuf,
    statements: PathBuf,
}

impl Files {
    /// In a node's state folder.
    pub(super) fn of(state: &Path) -> Self {
        Self {
            tokens: state.join("evidence"),
            statements: state.join("evidence-statements"),
        }
    }

    /// Replaces both by what is held.
    pub(super) fn save(&self, store: &Store) {
        let saved = block_in_place(|| {
            let tokens = store.tokens().map(|token| token.chain());
            let tokens = file::replace_tokens(&self.tokens, tokens);
            [
                tokens,
                file::replace_statements(&self.statements, store.statements()),
            ]
        });
        for error in saved.into_iter().filter_map(Result::err) {
            tracing::error!(
                error = cause::chain(&error as &FileError),
                "who may publish by what it has shown is not kept: after a restart it has to be heard again"
            );
        }
    }

    /// What they say, as far as they can be read.
    fn read(&self) -> Vec<Piece> {
        let tokens = file::read_tokens(&self.tokens).map(|tokens| {
            let tokens = tokens.into_iter();
            tokens
                .map(|token| Piece::Token(token.encode()))
                .collect::<Vec<_>>()
        });
        let statements = file::read_statements(&self.statements).map(|statements| {
            let statements = statements.iter().map(|read| read.claimed().as_bytes());
            statements
                .map(|bytes| Piece::Statement(bytes.to_vec()))
                .collect()
        });
        let read = [tokens, statements].into_iter().map(|read| {
            read.unwrap_or_else(|error| {
                tracing::warn!(
                    error = cause::chain(&error),
                    "what had been heard of is lost; until neighbours tell it again, packets of its holders do not pass"
                );
                Vec::new()
            })
        });
        read.flatten().collect()
    }
}

/// What the configuration says that this node's entity can show.
pub(super) fn own(config: &Config) -> impl Iterator<Item = Piece> {
    let tokens = config.node.tokens.iter();
    let tokens = tokens.map(|token| Piece::Token(token.chain().encode()));
    let statements = config.node.statements.iter();
    let vouched = statements.filter(|one| one.by() != By::Itself);
    tokens.chain(vouched.map(|one| Piece::Statement(one.as_bytes().to_vec())))
}

/// What the node knew when it last ran, less what has ended since.
pub(in crate::daemon) fn recall(present: &Present, lists: &[Vec<u8>]) -> Store {
    let config = &present.config;
    let mut store = Store::new(None, &config.channels, image::room(config));
    follow(&mut store, present);
    // All of them were verified when they were read.
    for list in lists.iter().filter_map(|signed| List::parse(signed).ok()) {
        store.learn(list, now_s());
    }
    for piece in own(config) {
        // One that gives no right to publish is no evidence.
        let _held = store.take(&piece, now_s());
    }
    if store.is_needed() {
        store.recall(Files::of(&config.node.state).read(), now_s());
    }
    store
}
