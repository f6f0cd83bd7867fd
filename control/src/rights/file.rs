//! Signed objects as files: one line each, a label and base64url (RFC 4648) without padding.
//!
//! ```text
//! virga-token-v1 AQ…
//! virga-revocations-v1 dmlyZ2EC…
//! virga-capability-v1 dmlyZ2ED…
//! virga-subnet-v1 dmlyZ2EE…
//! virga-identity-v1 dmlyZ2EJ…
//! virga-channel-v1 dmlyZ2EF…
//! virga-filter-v1 dmlyZ2EG…
//! ```
//! None is secret: a token serves only whoever has its subject's key. A file of placements and successions
//! may have several lines.

use super::{
    chain::{CHAIN_BYTES_MAX, Chain, ChainError},
    declaration::{DECLARATION_BYTES_MAX, DeclarationError},
    identity::{Claim, IDENTITY_BYTES_MAX, Identity},
    revocation::{LIST_BYTES_MAX, List, ListError},
    signed::ObjectError,
};
use crate::{
    capability::{
        Statement,
        statement::{Forged, STATEMENT_BYTES_MAX, Unverified},
    },
    filters::statement::STATEMENT_BYTES_MAX as FILTER_BYTES_MAX,
    membership::{MEMBERSHIP_BYTES, Membership},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

const TOKEN: &str = "virga-token-v1";
const REVOCATIONS: &str = "virga-revocations-v1";
const CAPABILITY: &str = "virga-capability-v1";
const SUBNET: &str = "virga-subnet-v1";
const CHANNEL: &str = "virga-channel-v1";
const IDENTITY: &str = "virga-identity-v1";
const FILTER: &str = "virga-filter-v1";
const IDENTITY_EXTENSION: &str = "identity";
/// Lines of the longest file of placements and successions.
const IDENTITIES_MAX: usize = 64;
/// Bytes of the longest such file.
pub const IDENTITIES_BYTES_MAX: usize =
    IDENTITIES_MAX * (IDENTITY.len() + 2 + IDENTITY_BYTES_MAX.div_ceil(3) * 4);

/// A file that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("{}: cannot {operation}", path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// What it said.
        source: io::Error,
    },
    /// It is something else.
    #[error("{}: {what}; expected one line, `{label} <base64url>`", path.display())]
    Text {
        /// Where.
        path: PathBuf,
        /// What is wrong.
        what: String,
        /// How it should begin.
        label: &'static str,
    },
    /// The declaration in it is broken.
    #[error("{}: {error}", path.display())]
    Declaration {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        error: DeclarationError,
    },
    /// The token in it is broken.
    #[error("{}: {error}", path.display())]
    Chain {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        error: ChainError,
    },
    /// The list in it is broken.
    #[error("{}: {error}", path.display())]
    List {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        error: ListError,
    },
    /// The statement in it is broken.
    #[error("{}: the statement cannot be read: {error}", path.display())]
    Statement {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        error: ObjectError,
    },
    /// The membership in it is broken.
    #[error("{}: the membership cannot be read: {error}", path.display())]
    Membership {
        /// Where.
        path: PathBuf,
        /// What is wrong with it.
        error: ObjectError,
    },
    /// The statement or membership in it was changed.
    #[error("{}: {error}", path.display())]
    Forged {
        /// Where.
        path: PathBuf,
        /// Who should have signed it.
        error: Forged,
    },
}

/// The line of a token's file.
#[must_use]
pub fn token_line(chain: &Chain) -> String {
    format!("{TOKEN} {}\n", URL_SAFE_NO_PAD.encode(chain.encode()))
}

/// The line of a revocation list's file.
#[must_use]
pub fn revocations_line(signed: &[u8]) -> String {
    format!("{REVOCATIONS} {}\n", URL_SAFE_NO_PAD.encode(signed))
}

/// Reads a token's file; nothing but its form is looked at.
///
/// # Errors
/// [`FileError`].
pub fn read_token(path: &Path) -> Result<Chain, FileError> {
    let bytes = read(path, TOKEN, CHAIN_BYTES_MAX)?;
    Chain::parse(&bytes).map_err(|error| FileError::Chain {
        path: path.into(),
        error,
    })
}

/// Reads a file of tokens, one a line; none where there is no such file. Nothing but their form is looked at.
///
/// # Errors
/// [`FileError`].
pub fn read_tokens(path: &Path) -> Result<Vec<Chain>, FileError> {
    let text = lines_of(path)?;
    let tokens = text.lines().map(|line| {
        let bytes = decode(path, TOKEN, CHAIN_BYTES_MAX, line)?;
        Chain::parse(&bytes).map_err(|error| FileError::Chain {
            path: path.into(),
            error,
        })
    });
    tokens.collect()
}

/// What a file says that need not be there.
fn lines_of(path: &Path) -> Result<String, FileError> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read.map_err(|source| FileError::Io {
            path: path.into(),
            operation: "read",
            source,
        }),
    }
}

/// Replaces a file of tokens, one a line.
///
/// # Errors
/// [`FileError::Io`].
pub fn replace_tokens<'a>(
    path: &Path,
    tokens: impl Iterator<Item = &'a Chain>,
) -> Result<(), FileError> {
    replace_lines(path, tokens.map(token_line).collect())
}

fn replace_lines(path: &Path, lines: String) -> Result<(), FileError> {
    let made = path.parent().map_or(Ok(()), fs::create_dir_all);
    made.map_err(|source| FileError::Io {
        path: path.into(),
        operation: "make the folder of",
        source,
    })?;
    replace(path, &lines)
}

/// Reads a revocation list's file, and gives the list and its signed bytes.
///
/// # Errors
/// [`FileError`]; also where its issuer did not sign it.
pub fn read_revocations(path: &Path) -> Result<(List, Vec<u8>), FileError> {
    let bytes = read(path, REVOCATIONS, LIST_BYTES_MAX)?;
    match List::parse(&bytes) {
        Ok(list) => Ok((list, bytes)),
        Err(error) => Err(FileError::List {
            path: path.into(),
            error,
        }),
    }
}

/// The line of a statement's file, by an issuer or by the subject itself.
#[must_use]
pub fn statement_line(statement: &Statement) -> String {
    let digits = URL_SAFE_NO_PAD.encode(statement.as_bytes());
    format!("{CAPABILITY} {digits}\n")
}

/// Reads a statement's file, and verifies the statement's signature.
///
/// # Errors
/// [`FileError`].
pub fn read_statement(path: &Path) -> Result<Statement, FileError> {
    let bytes = read(path, CAPABILITY, STATEMENT_BYTES_MAX)?;
    let unverified = Statement::parse(&bytes).map_err(|error| FileError::Statement {
        path: path.into(),
        error,
    })?;
    unverified.verify().map_err(|error| FileError::Forged {
        path: path.into(),
        error,
    })
}

/// Reads a file of statements that need not be there, one a line; their signatures are not looked at.
///
/// # Errors
/// [`FileError`].
pub fn read_statements(path: &Path) -> Result<Vec<Unverified>, FileError> {
    let text = lines_of(path)?;
    let statements = text.lines().map(|line| {
        let bytes = decode(path, CAPABILITY, STATEMENT_BYTES_MAX, line)?;
        Statement::parse(&bytes).map_err(|error| FileError::Statement {
            path: path.into(),
            error,
        })
    });
    statements.collect()
}

/// Replaces a file of statements, one a line.
///
/// # Errors
/// [`FileError::Io`].
pub fn replace_statements<'a>(
    path: &Path,
    statements: impl Iterator<Item = &'a Statement>,
) -> Result<(), FileError> {
    replace_lines(path, statements.map(statement_line).collect())
}

/// The line of a membership's file.
#[must_use]
pub fn membership_line(membership: &Membership) -> String {
    let digits = URL_SAFE_NO_PAD.encode(membership.as_bytes());
    format!("{SUBNET} {digits}\n")
}

/// Reads a membership's file, and verifies its signature.
///
/// # Errors
/// [`FileError`].
pub fn read_membership(path: &Path) -> Result<Membership, FileError> {
    membership(path, &read(path, SUBNET, MEMBERSHIP_BYTES)?)
}

/// Reads a file of memberships, one a line; none where there is no such file.
///
/// # Errors
/// [`FileError`].
pub fn read_memberships(path: &Path) -> Result<Vec<Membership>, FileError> {
    let text = lines_of(path)?;
    let all = text.lines().map(|line| {
        let bytes = decode(path, SUBNET, MEMBERSHIP_BYTES, line)?;
        membership(path, &bytes)
    });
    all.collect()
}

fn membership(path: &Path, bytes: &[u8]) -> Result<Membership, FileError> {
    let unverified = Membership::parse(bytes).map_err(|error| FileError::Membership {
        path: path.into(),
        error,
    })?;
    unverified.verify().map_err(|error| FileError::Forged {
        path: path.into(),
        error,
    })
}

/// Replaces a file of memberships, one a line.
///
/// # Errors
/// [`FileError::Io`].
pub fn replace_memberships<'a>(
    path: &Path,
    memberships: impl Iterator<Item = &'a Membership>,
) -> Result<(), FileError> {
    replace_lines(path, memberships.map(membership_line).collect())
}

/// Reads a file of what gateways have said of their subnets, one a line, and gives the signed bytes, which are
/// not looked at; none where there is no such file.
///
/// # Errors
/// [`FileError`].
pub fn read_filters(path: &Path) -> Result<Vec<Vec<u8>>, FileError> {
    let text = lines_of(path)?;
    let all = text.lines();
    all.map(|line| decode(path, FILTER, FILTER_BYTES_MAX, line))
        .collect()
}

/// Replaces such a file.
///
/// # Errors
/// [`FileError::Io`].
pub fn replace_filters<'a>(
    path: &Path,
    signed: impl Iterator<Item = &'a [u8]>,
) -> Result<(), FileError> {
    let line = |bytes| format!("{FILTER} {}\n", URL_SAFE_NO_PAD.encode::<&[u8]>(bytes));
    replace_lines(path, signed.map(line).collect())
}

/// The line of a declared channel's file.
#[must_use]
pub fn channel_line(signed: &[u8]) -> String {
    format!("{CHANNEL} {}\n", URL_SAFE_NO_PAD.encode(signed))
}

/// Reads a declared channel's file, and gives its signed bytes, which are not looked at.
///
/// # Errors
/// [`FileError`].
pub fn read_channel(path: &Path) -> Result<Vec<u8>, FileError> {
    read(path, CHANNEL, DECLARATION_BYTES_MAX)
}

/// The line of a placement or succession in its file.
#[must_use]
pub fn identity_line(claim: &Claim) -> String {
    format!("{IDENTITY} {}\n", URL_SAFE_NO_PAD.encode(claim.as_bytes()))
}

/// Reads a file of placements and successions, at least one.
///
/// # Errors
/// [`FileError`]; also where one is not signed by whoever it speaks of.
pub fn read_identities(path: &Path) -> Result<Vec<Claim>, FileError> {
    let text = text(path, IDENTITY, IDENTITIES_BYTES_MAX)?;
    parse_identities(text.as_bytes()).map_err(|what| wrong(path, IDENTITY, what))
}

/// The same from a file's content.
///
/// # Errors
/// What is wrong with it.
pub fn parse_identities(content: &[u8]) -> Result<Vec<Claim>, String> {
    let text = std::str::from_utf8(content).map_err(|_| "it is not text")?;
    let lines = text.trim_end_matches(['\n', '\r']).lines();
    let claims = lines.map(|line| {
        let bytes = bytes(IDENTITY, IDENTITY_BYTES_MAX, line)?;
        let claim = Claim::parse(&bytes).map_err(|error| error.to_string())?;
        claim.verify().map_err(|error| error.to_string())?;
        Ok(claim)
    });
    claims.collect()
}

fn read(path: &Path, label: &'static str, bytes_max: usize) -> Result<Vec<u8>, FileError> {
    let text = text(path, label, bytes_max)?;
    let line = text.trim_end_matches(['\n', '\r']);
    decode(path, label, bytes_max, line)
}

fn wrong(path: &Path, label: &'static str, what: impl Into<String>) -> FileError {
    FileError::Text {
        path: path.into(),
        what: what.into(),
        label,
    }
}

/// A file's text, which has at most so many bytes of content.
fn text(path: &Path, label: &'static str, bytes_max: usize) -> Result<String, FileError> {
    let io_error = |operation, source| FileError::Io {
        path: path.into(),
        operation,
        source,
    };
    let file = crate::files::open(path).map_err(|error| io_error("open", error))?;
    // Base64 takes four characters for three bytes.
    let text_max = label.len() + 2 + bytes_max.div_ceil(3) * 4;
    let mut text = Vec::new();
    file.take(text_max as u64 + 1)
        .read_to_end(&mut text)
        .map_err(|error| io_error("read", error))?;
    let is_too_long = text.len() > text_max;
    let text = String::from_utf8(text).map_err(|_| wrong(path, label, "it is not text"))?;
    if !text.starts_with(label) {
        return Err(wrong(path, label, "it begins otherwise"));
    }
    match is_too_long {
        true => Err(wrong(path, label, "it is too long")),
        false => Ok(text),
    }
}

/// The bytes of one line of a file.
fn decode(
    path: &Path,
    label: &'static str,
    bytes_max: usize,
    line: &str,
) -> Result<Vec<u8>, FileError> {
    bytes(label, bytes_max, line).map_err(|what| wrong(path, label, what))
}

/// What a line holds.
fn bytes(label: &'static str, bytes_max: usize, line: &str) -> Result<Vec<u8>, String> {
    let digits = line
        .strip_prefix(label)
        .and_then(|rest| rest.strip_prefix(' '))
        .ok_or("it begins otherwise")?;
    if digits.len() > bytes_max.div_ceil(3) * 4 {
        return Err("it is too long".into());
    }
    URL_SAFE_NO_PAD
        .decode(digits)
        .map_err(|error| format!("it is not base64url: {error}"))
}

/// The folder of placements and successions in a node's state folder.
#[must_use]
pub fn identity_folder(state: &Path) -> PathBuf {
    state.join("identity")
}

/// All placements and successions that a node has kept; none where it has kept none.
///
/// # Errors
/// [`FileError`].
pub fn kept_identities(state: &Path) -> Result<Vec<Claim>, FileError> {
    let folder = identity_folder(state);
    let io_error = |source| FileError::Io {
        path: folder.clone(),
        operation: "list",
        source,
    };
    let entries = match fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(io_error)?.path();
        // What a crash left half-written has another name.
        if path.extension().is_some_and(|e| e == IDENTITY_EXTENSION) {
            paths.push(path);
        }
    }
    paths.sort();
    let mut claims = Vec::new();
    for path in paths {
        claims.extend(read_identities(&path)?);
    }
    Ok(claims)
}

/// Keeps a placement or succession, in place of an earlier one of the same kind and entity.
///
/// # Errors
/// [`FileError::Io`].
pub fn keep_identity(state: &Path, claim: &Claim) -> Result<(), FileError> {
    let folder = identity_folder(state);
    fs::create_dir_all(&folder).map_err(|source| FileError::Io {
        path: folder.clone(),
        operation: "make this folder",
        source,
    })?;
    sync_folder(&folder).map_err(|source| FileError::Io {
        path: folder.clone(),
        operation: "sync the folder of",
        source,
    })?;
    let (key, kind) = match claim.what() {
        Identity::Placement(placement) => (placement.entity, "placement"),
        Identity::Succession(succession) => (succession.old, "succession"),
    };
    let name = format!("{}-{kind}.{IDENTITY_EXTENSION}", crate::hex::encode(&key));
    replace(&folder.join(name), &identity_line(claim))
}

/// Replaces a file as a whole, or leaves it as it was.
///
/// # Errors
/// [`FileError::Io`].
pub fn replace(path: &Path, line: &str) -> Result<(), FileError> {
    let mut name = path.as_os_str().to_os_string();
    name.push(format!(".new-{}", std::process::id()));
    let new = PathBuf::from(name);
    let written = fs::write(&new, line)
        .and_then(|()| fs::File::open(&new)?.sync_all())
        .and_then(|()| fs::rename(&new, path))
        .and_then(|()| sync_folder(path));
    written.map_err(|source| {
        let _left_over = fs::remove_file(&new);
        FileError::Io {
            path: path.into(),
            operation: "write",
            source,
        }
    })
}

/// The new name is there after a crash, too.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
