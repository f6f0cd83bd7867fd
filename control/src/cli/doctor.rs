//! `virga doctor`: what this machine lacks, with the line that fixes it.

use super::{Failure, print_json};
use crate::{
    config::Config,
    doctor::{self, Check, Verdict},
};
use std::{
    io::{self, Write as _},
    path::PathBuf,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Look at this interface; may be given more than once. Otherwise at those of the
    /// configuration, or at all that are up.
    #[arg(long = "interface", value_name = "NAME")]
    interfaces: Vec<String>,
    /// Judge by what this configuration asks for.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print a JSON array.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let config = arguments.config.as_deref().map(Config::load).transpose()?;
    let checks = doctor::examine(&arguments.interfaces, config.as_ref());
    if arguments.json {
        print_json(&checks)?;
    } else {
        write_table(&checks)?;
    }
    match checks.iter().any(|check| check.verdict == Verdict::Fail) {
        true => Err(Failure::Told(1)),
        false => Ok(()),
    }
}

pub(super) fn write_table(checks: &[Check]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let mut interface = &None;
    for check in checks {
        if check.interface != *interface {
            interface = &check.interface;
            writeln!(out, "{}", interface.as_deref().unwrap_or("host"))?;
        }
        writeln!(out, "{:<8}{:<17}{}", check.verdict, check.name, check.found)?;
        if let Some(fix) = check.fix.as_ref().filter(|_| check.verdict != Verdict::Ok) {
            writeln!(out, "{:<8}{:<17}-> {fix}", "", "")?;
        }
    }
    Ok(())
}
