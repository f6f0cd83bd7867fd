//! Files that the configuration names beside it: keys, and what is signed. What is secret is in none of its keys
//! itself, but in a file of its own, or in a credential that systemd hands the service.

use super::values::{self, Fault};
use std::{
    env,
    path::{Path, PathBuf},
};

/// A value that begins so names a credential of the service.
const CREDENTIAL: &str = "credential:";
/// Where systemd says that the service's credentials are (systemd.exec(5), `LoadCredential=`).
const DIRECTORY: &str = "CREDENTIALS_DIRECTORY";
/// Where they are for others: an operator who checks a file, reloads, or makes a bundle.
const OF_SERVICE: &str = "/run/credentials/virga.service";
/// Digits of a key.
const KEY_DIGITS: usize = 64;

/// A file that the configuration names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) path: PathBuf,
    /// Whether the service manager keeps others from it.
    pub(crate) is_credential: bool,
}

/// The file that a value names: relative to the configuration's folder, or `credential:NAME`.
pub(crate) fn file(directory: &Path, text: &str) -> Result<Named, Fault> {
    let own = env::var_os(DIRECTORY).map(PathBuf::from);
    let service = || Some(PathBuf::from(OF_SERVICE)).filter(|folder| folder.is_dir());
    named(directory, own.or_else(service).as_deref(), text)
}

fn named(directory: &Path, credentials: Option<&Path>, text: &str) -> Result<Named, Fault> {
    let Some(name) = text.strip_prefix(CREDENTIAL) else {
        // Whoever wrote it there has it in a file that others may read; the message does not tell it once more.
        let is_key =
            |word: &str| word.len() == KEY_DIGITS && word.bytes().all(|c| c.is_ascii_hexdigit());
        if text.split_whitespace().any(is_key) {
            return values::fault(
                "is a key itself, where a file's name belongs",
                "make a new key with `virga keygen`, for this one may have been read, and name its file here",
            );
        }
        return Ok(Named {
            path: directory.join(text),
            is_credential: false,
        });
    };
    if name.is_empty() || name.contains('/') || name == "." || name == ".." {
        return values::fault(
            format!("{name:?} is no credential's name"),
            "write \"credential:NAME\", with LoadCredential=NAME:PATH in the service",
        );
    }
    match credentials {
        Some(folder) => Ok(Named {
            path: folder.join(name),
            is_credential: true,
        }),
        None => values::fault(
            format!(
                "names the credential {name}, and this process was given none: {DIRECTORY} is not set, and {OF_SERVICE} is \
                 not there for it"
            ),
            format!(
                "run it as a service with LoadCredential={name}:PATH, or set {DIRECTORY} to the folder where it is"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_a_path_or_a_credential_and_never_a_secret() {
        let (directory, credentials) = (Path::new("/etc/virga"), Path::new("/run/credentials/v"));
        let path = |text: &str| named(directory, Some(credentials), text).map(|named| named.path);
        let is = |text, expected: &str| assert_eq!(path(text), Ok(expected.into()), "{text}");
        is("node.key", "/etc/virga/node.key");
        is("/srv/node.key", "/srv/node.key");
        is("credential:psk", "/run/credentials/v/psk");
        for wrong in [
            "credential:",
            "credential:../psk",
            "credential:.",
            "credential:a/b",
        ] {
            assert!(
                path(wrong)
                    .unwrap_err()
                    .what
                    .contains("no credential's name"),
                "{wrong}"
            );
        }
        let missing = named(directory, None, "credential:psk").unwrap_err();
        assert!(missing.what.contains("CREDENTIALS_DIRECTORY is not set"));
        let key = "0123456789abcdef".repeat(4);
        for text in [key.clone(), format!("virga-psk {key}")] {
            let fault = path(&text).unwrap_err();
            assert!(fault.what.contains("is a key itself"));
            assert!(!format!("{}{}", fault.what, fault.fix).contains(&key[..8]));
        }
    }
}
