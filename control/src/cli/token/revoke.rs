//! `virga token revoke`: the next version of an issuer's revocation list.

use super::{Failure, entity_key, now_s, public_key, usage};
use crate::rights::{
    LinkId, List,
    file::{self, FileError},
    revocation::Entry,
};
use std::{
    io::{self, Write as _},
    path::PathBuf,
};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The issuer's revocation list; made when it is missing.
    list: PathBuf,
    /// The issuer's entity key file.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    #[command(flatten)]
    what: What,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    /// The last link of this token, and all that was delegated from it.
    #[arg(long, value_name = "FILE")]
    token: Option<PathBuf>,
    /// One link of a token, or one statement about capabilities, by its id (32 hex digits; `virga token
    /// inspect` and `virga capability inspect` print it), and all that was delegated from it.
    #[arg(long, value_name = "ID", value_parser = LinkId::parse)]
    link: Option<LinkId>,
    /// All links to this entity, and all that was delegated from them.
    #[arg(long, value_name = "KEY", value_parser = public_key)]
    subject: Option<[u8; 32]>,
    /// All tokens of generations before this one.
    #[arg(long, value_name = "N")]
    generation: Option<u32>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let key = entity_key(&arguments.key)?;
    let list = match file::read_revocations(&arguments.list) {
        Ok((list, _signed)) => list,
        Err(FileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            List::new(key.public)
        }
        Err(error) => return Err(error.into()),
    };
    if *list.issuer() != key.public {
        let path = arguments.list.display();
        let other = format!("{path} is another issuer's list; each issuer has one of its own");
        return Err(Failure::Usage(other.into()));
    }
    let what = &arguments.what;
    let next = if let Some(path) = &what.token {
        let chain = file::read_token(path)?;
        if *chain.issuer() != key.public {
            let issuer = crate::hex::encode(chain.issuer());
            let other = format!("the token's issuer is {issuer}, and only that one can revoke it");
            return Err(Failure::Usage(other.into()));
        }
        // A changed copy has another id, and the token itself would go on.
        chain.clone().authenticate().map_err(usage)?;
        let Some(last) = chain.links().last() else {
            return Ok(());
        };
        list.revoke(Entry::Link(last.id()), last.grant().not_after_s, now_s())
    } else if let Some(id) = what.link {
        // Nobody here knows when it ends.
        list.revoke(Entry::Link(id), u64::MAX, now_s())
    } else if let Some(subject) = what.subject {
        // Nobody knows when the last of its tokens ends.
        list.revoke(Entry::Subject(subject), u64::MAX, now_s())
    } else {
        list.begin_generation(what.generation.unwrap_or_default())
    };
    let next = next.map_err(usage)?;
    file::replace(&arguments.list, &file::revocations_line(&next.sign(&key)))?;
    let (path, version) = (arguments.list.display(), next.version());
    let entries = next.entries().count();
    Ok(writeln!(
        io::stdout().lock(),
        "{path} is at version {version}: {entries} entries, tokens of generation {} and later",
        next.generation()
    )?)
}
