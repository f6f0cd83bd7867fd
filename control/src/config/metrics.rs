//! `[metrics]`: where the node answers for its figures and its health.

use super::{
    file,
    problem::{Report, Section},
    values::{self, Fault},
};
use std::net::SocketAddr;
use toml::Spanned;

/// The address in `[metrics]`; none without the section.
pub(super) fn resolve(
    file: Option<Spanned<file::Metrics>>,
    report: &mut Report<'_>,
) -> Option<SocketAddr> {
    let file = file?;
    let section = Section::new("metrics", file.span());
    let listen = file.into_inner().listen;
    let listen = report.required(&section, "listen", listen, "\"127.0.0.1:9478\"")?;
    match values::listen(listen.get_ref()) {
        Ok(address) => Some(address),
        Err(Fault { what, fix }) => {
            report.add(listen.span(), section.key("listen"), what, fix);
            None
        }
    }
}
