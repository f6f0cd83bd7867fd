//! `virga bundle`: one archive for support, without keys.

use super::{
    Failure, block_on,
    client::{ClientError, Target},
    counted,
};
use crate::{
    api::status::Status,
    bundle::{Bundle, gather},
    cause,
    config::Config,
    keys,
    mesh::Mesh,
};
use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};
use tokio::time::timeout;

/// A node that is neither stopped nor stuck has answered by then.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The node's configuration [default: /etc/virga/node.toml].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A log to take the end of, beside the journal; may be given more than once.
    #[arg(long = "log", value_name = "FILE")]
    logs: Vec<PathBuf>,
    /// Where the archive goes [default: virga-bundle-NODE-TIME.tar.gz, here].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    target: Target,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let usual = || Path::new(keys::DIRECTORY).join("node.toml");
    let path = arguments.config.clone().unwrap_or_else(usual);
    let mut bundle = Bundle::default();
    let config = gather::configuration(&mut bundle, &path);
    let mut answer = None;
    block_on(async {
        answer = Some(ask(arguments, config.as_ref()).await);
        Ok(())
    })?;
    let status = match answer {
        Some(Ok(status)) => {
            gather::running(&mut bundle, &status);
            Some(status)
        }
        Some(Err(error)) => {
            bundle.lack("status.json, drops.json, metrics.txt", cause::chain(&error));
            None
        }
        None => None,
    };
    gather::machine(&mut bundle, config.as_ref(), status.as_ref());
    gather::journal(&mut bundle);
    for log in &arguments.logs {
        gather::log(&mut bundle, log);
    }

    let now = SystemTime::now();
    let named = status.map(|status| status.node.name);
    let node = named.or(config.map(|config| config.node.name));
    let folder = folder(node.as_deref(), now);
    let out = arguments.out.clone();
    let out = out.unwrap_or_else(|| PathBuf::from(format!("{folder}.tar.gz")));
    let lacks = bundle.lacks().to_vec();
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&out);
    let file = file.map_err(|error| unwritten(&out, error))?;
    let parts = bundle
        .write(&file, &folder, now)
        .map_err(|error| unwritten(&out, error))?;
    let bytes = file.metadata()?.len();
    let mut text = io::stdout().lock();
    for lack in lacks {
        writeln!(text, "not there: {lack}")?;
    }
    let parts = counted(parts as u64, "part");
    Ok(writeln!(
        text,
        "{}: {parts}, {bytes} bytes; it has no keys, and names, addresses, public keys and channels",
        out.display()
    )?)
}

fn unwritten(path: &Path, error: io::Error) -> Failure {
    Failure::runtime(io::Error::new(
        error.kind(),
        format!("{}: {error}", path.display()),
    ))
}

/// What the archive's folder is called.
fn folder(node: Option<&str>, now: SystemTime) -> String {
    let time = humantime::format_rfc3339_seconds(now).to_string();
    let time = time.replace(['-', ':'], "");
    format!("virga-bundle-{}-{time}", node.unwrap_or("unknown"))
}

/// The status of the node that is meant: the one of the configuration, unless another is named.
async fn ask(arguments: &Arguments, config: Option<&Config>) -> Result<Status, ClientError> {
    let target = &arguments.target;
    let is_named = target.socket.is_some() || target.node.is_some();
    let status = async {
        let mesh = match config.filter(|_| !is_named) {
            Some(config) => Mesh::open(&config.node.socket).await?,
            None => target.open().await?,
        };
        Ok(mesh.status().await?)
    };
    let silent = ClientError::Silent {
        seconds: PATIENCE.as_secs(),
    };
    timeout(PATIENCE, status).await.map_err(|_| silent)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_named_for_its_node_and_time() {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(86_399);
        assert_eq!(
            folder(Some("edge-a"), at),
            "virga-bundle-edge-a-19700101T235959Z"
        );
    }
}
