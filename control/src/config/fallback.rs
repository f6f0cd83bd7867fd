//! `[fallback]`: what carries packets where UDP does not get through, and where each neighbour is dialled then.

use super::{
    file,
    problem::{Report, Section},
    rules::Checker,
    secrets,
    values::{self, Fault},
};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use toml::Spanned;
use virga_carrier::{Target, choice::Pace, tls::Trust};

/// Milliseconds without an answer by UDP after which a neighbour is dialled.
const AFTER_MS: u32 = 3_000;
const AFTER_MS_MIN: i64 = 100;
const AFTER_MS_MAX: i64 = 600_000;
/// Seconds between two questions whether UDP works.
const PROBE_S: u32 = 5;
const PROBE_S_MAX: i64 = 3_600;
/// Addresses of one neighbour.
const TARGETS_MAX: usize = 8;

/// The section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FallbackSection {
    /// Where plain TCP is taken.
    pub listen_tcp: Option<SocketAddr>,
    /// Where WebSocket is taken.
    pub listen_ws: Option<SocketAddr>,
    /// The certificate chain and its key, as PEM files: with them, WebSocket is taken over TLS alone.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Whose certificates are taken where `wss` is dialled.
    pub trust: Trust,
    /// When a neighbour is dialled, and when UDP is tried again.
    pub pace: Pace,
}

impl Default for FallbackSection {
    fn default() -> Self {
        Self {
            listen_tcp: None,
            listen_ws: None,
            certificate: None,
            trust: Trust::System,
            pace: Pace {
                after: Duration::from_millis(AFTER_MS.into()),
                probe_every: Duration::from_secs(PROBE_S.into()),
            },
        }
    }
}

/// The section; what is not said is as it is by default: off.
pub(super) fn resolve(
    section: Option<Spanned<file::Fallback>>,
    (directory, mesh): (&Path, Option<SocketAddr>),
    report: &mut Report<'_>,
) -> FallbackSection {
    let default = FallbackSection::default();
    let Some(section) = section else {
        return default;
    };
    let span = section.span();
    let file = section.into_inner();
    let section = Section::new("fallback", span.clone());
    if let Some(key) = match (&file.certificate, &file.certificate_key) {
        (Some(_), None) => Some("certificate_key"),
        (None, Some(_)) => Some("certificate"),
        _ => None,
    } {
        let fix = "name the PEM files of both the certificate and its key, or of neither";
        report.add(span.clone(), section.key(key), "is missing", fix);
    }
    if let (Some(certificate), None) = (&file.certificate, &file.listen_ws) {
        let what = "is for `listen_ws`, which is not there";
        let fix = "add `listen_ws`, or remove it";
        report.add(certificate.span(), section.key("certificate"), what, fix);
    }
    let mut check = Checker {
        section: &section,
        report,
    };
    let path = |text: &str| secrets::file(directory, text).map(|named| named.path);
    let certificate = check.text("certificate", file.certificate, path);
    let key = check.text("certificate_key", file.certificate_key, path);
    let trust = check.text("trust", file.trust, |text| match text {
        "system" => Ok(Trust::System),
        "any" => Ok(Trust::Any),
        file => path(file).map(Trust::Pinned),
    });
    let after = check.number("after_ms", file.after_ms, AFTER_MS_MIN, AFTER_MS_MAX);
    let probe = check.number("probe_s", file.probe_s, 1, PROBE_S_MAX);
    let listen = |text: &str| {
        let address = values::listen(text)?;
        match mesh.is_some_and(|mesh| mesh.port() == address.port()) {
            true => values::fault(
                format!("{address} has the mesh's port, where `virga invite` takes TCP"),
                "give it another port",
            ),
            false => Ok(address),
        }
    };
    let listen_tcp = check.text("listen_tcp", file.listen_tcp, listen);
    let listen_ws = check.text("listen_ws", file.listen_ws, |text| {
        let address = listen(text)?;
        match listen_tcp == Some(address) {
            true => values::fault(
                format!("{address} is where `listen_tcp` takes plain TCP"),
                "give it another port",
            ),
            false => Ok(address),
        }
    });
    FallbackSection {
        listen_tcp,
        listen_ws,
        certificate: certificate.zip(key),
        trust: trust.unwrap_or(default.trust),
        pace: Pace {
            after: after.map_or(default.pace.after, Duration::from_millis),
            probe_every: probe.map_or(default.pace.probe_every, Duration::from_secs),
        },
    }
}

/// Where a peer's block says that it is dialled.
pub(super) fn targets(
    section: &Section,
    names: Option<Spanned<Vec<Spanned<String>>>>,
    is_adjacent: bool,
    report: &mut Report<'_>,
) -> Vec<Target> {
    let Some(names) = names else {
        return Vec::new();
    };
    let span = names.span();
    let names = names.into_inner();
    if !is_adjacent && !names.is_empty() {
        let what = "is for a neighbour, and this peer has no address";
        let fix = "give it an `address`, which is tried first, or remove this";
        report.add(span.clone(), section.key("fallback"), what, fix);
    }
    if names.len() > TARGETS_MAX {
        let what = format!("names {} addresses", names.len());
        let fix = format!("name {TARGETS_MAX} at most, the best first");
        report.add(span, section.key("fallback"), what, fix);
    }
    let mut targets: Vec<Target> = Vec::new();
    for name in names {
        match read(name.get_ref()) {
            Ok(target) => targets.push(target),
            Err(Fault { what, fix }) => {
                report.add(name.span(), section.key("fallback"), what, fix);
            }
        }
    }
    targets
}

fn read(text: &str) -> Result<Target, Fault> {
    Target::parse(text).map_err(|what| Fault {
        what: format!("{text:?} {what}"),
        fix: "write such as \"tcp://192.0.2.7:4784\" or \"wss://edge.example/virga\"".to_owned(),
    })
}
