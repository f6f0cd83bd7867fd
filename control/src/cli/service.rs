//! The package's service, where systemd is there and has it.

use super::Failure;
use crate::{enrol::files::NODE_FILE, keys};
use std::{
    io,
    path::Path,
    process::{Command, Stdio},
};

/// Runs the node whose configuration is in the usual place.
const UNIT: &str = "virga.service";

/// Whether the service is there and runs the node of this configuration.
pub(super) fn runs(config: &Path) -> bool {
    let usual = Path::new(keys::DIRECTORY).join(NODE_FILE);
    let is_usual = config.canonicalize().is_ok_and(|path| path == usual);
    // As sd_booted(3) does.
    is_usual && Path::new("/run/systemd/system").is_dir() && is_quiet(&["cat", UNIT])
}

/// Has it run, now and from each start of the machine on.
pub(super) fn enable() -> Result<(), Failure> {
    done(&["enable", "--now", UNIT])
}

fn systemctl(arguments: &[&str]) -> Command {
    let mut command = Command::new("systemctl");
    command.args(arguments).stdin(Stdio::null());
    command
}

fn is_quiet(arguments: &[&str]) -> bool {
    let mut command = systemctl(arguments);
    let command = command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn done(arguments: &[&str]) -> Result<(), Failure> {
    let status = systemctl(arguments).status()?;
    if status.success() {
        return Ok(());
    }
    let words = format!(
        "`systemctl {}` failed ({status}): `journalctl -u {UNIT}` has the node's own words",
        arguments.join(" ")
    );
    Err(Failure::runtime(io::Error::other(words)))
}
