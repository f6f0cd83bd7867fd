//! `virga man`: the manual's pages: one a command, made of the command's own definition, and virga.toml(5) of the
//! commented example.

use super::{Cli, Failure, keygen};
use clap::CommandFactory as _;
use roff::{Inline, Roff, bold, roman};
use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
};

/// The configuration, key by key.
const EXAMPLE: &str = include_str!("../../example.toml");
/// Its page.
const CONFIGURATION: &str = "virga.toml.5";

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The folder; made when it is missing.
    folder: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    keygen::make_folder(&arguments.folder)?;
    clap_mangen::generate_to(Cli::command(), &arguments.folder)?;
    let path = arguments.folder.join(CONFIGURATION);
    fs::write(path, configuration().render())?;
    Ok(writeln!(io::stdout(), "{}", arguments.folder.display())?)
}

/// What the example says, with each section and each key as a heading, and its comment below.
fn configuration() -> Roff {
    let mut page = Roff::new();
    page.control("TH", ["virga.toml", "5", "", "virga", "Virga"])
        .control("SH", ["NAME"])
        .text([roman("virga.toml - configuration of a Virga node")])
        .control("SH", ["DESCRIPTION"]);
    let mut comment: Vec<&str> = Vec::new();
    for line in EXAMPLE.lines() {
        if let Some(words) = line.strip_prefix('#') {
            comment.push(words.strip_prefix(' ').unwrap_or(words));
            continue;
        }
        match line.is_empty() {
            true if comment.is_empty() => continue,
            true => {}
            false if line.starts_with('[') => {
                page.control("SH", [line]);
            }
            false => {
                page.control("PP", []).text([bold(line)]);
            }
        }
        said(&mut page, &comment);
        comment.clear();
    }
    said(&mut page, &comment);
    page
}

/// A comment, line by line: some are lists.
fn said(page: &mut Roff, comment: &[&str]) {
    if comment.is_empty() {
        return;
    }
    page.control("RS", ["4"]).control("nf", []);
    for line in comment {
        page.text([Inline::Roman((*line).to_owned())]);
    }
    page.control("fi", []).control("RE", []);
}
