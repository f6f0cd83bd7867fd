//! Files that an operator named: opened without ever waiting for whatever else stands there.

use std::{
    fs::{self, File, FileType, OpenOptions},
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, fchown},
    path::Path,
};

/// Opens a regular file for reading. A FIFO without a writer does not hold this up, and a terminal
/// does not become the process's own; both are refused, as all is that is not a regular file.
///
/// # Errors
/// What the system said, or what stands there instead of a file.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let file = opened.map_err(|error| match error.raw_os_error() {
        // A socket, or a device without a driver: the error's own words would send people looking
        // for a path that is there.
        Some(libc::ENXIO) => not_regular("a socket or a device"),
        _ => error,
    })?;
    let kind = file.metadata()?.file_type();
    match kind.is_file() {
        true => Ok(file),
        false => Err(not_regular(name(kind))),
    }
}

/// Gives a new file to whom its folder belongs, when root made it: a service that runs as a user of its own reads it.
///
/// # Errors
/// What the system said.
pub(crate) fn settle(path: &Path, file: &File) -> io::Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    match folder_of(path)? {
        folder if folder.uid() == 0 => Ok(()),
        folder => fchown(file, Some(folder.uid()), Some(folder.gid())),
    }
}

/// The folder that a file is in.
fn folder_of(path: &Path) -> io::Result<fs::Metadata> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    fs::metadata(folder.unwrap_or(Path::new(".")))
}

/// Whether a file belongs to whom its folder does.
pub(crate) fn is_settled(path: &Path, owner: u32) -> bool {
    folder_of(path).is_ok_and(|folder| folder.uid() == owner)
}

fn not_regular(what: &str) -> io::Error {
    io::Error::other(format!("it is {what}, not a regular file"))
}

fn name(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO (named pipe)"
    } else {
        "a device"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use std::os::unix::net::UnixListener;

    #[test]
    fn what_root_makes_belongs_to_whom_the_folder_does() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new");
        let file = File::create(&path).unwrap();
        let owner = || fs::metadata(&path).unwrap().uid();
        let us = rustix::process::geteuid();
        settle(&path, &file).unwrap();
        assert_eq!(owner(), us.as_raw());
        assert!(is_settled(&path, owner()));
        if !us.is_root() {
            println!("skipped: only root can give a file away");
            return;
        }
        std::os::unix::fs::chown(folder.path(), Some(1), Some(1)).unwrap();
        assert!(!is_settled(&path, owner()));
        settle(&path, &file).unwrap();
        assert_eq!(owner(), 1);
        assert!(is_settled(&path, 1));
    }

    #[test]
    fn only_a_regular_file_is_opened_and_nothing_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let refused = |path: &Path| open(path).unwrap_err().to_string();
        fs::write(at("file"), "text").unwrap();
        assert!(open(&at("file")).is_ok());
        let mode = Mode::RUSR | Mode::WUSR;
        mknodat(CWD, at("fifo"), FileType::Fifo, mode, 0).unwrap();
        assert_eq!(
            refused(&at("fifo")),
            "it is a FIFO (named pipe), not a regular file"
        );
        let _listener = UnixListener::bind(at("socket")).unwrap();
        assert_eq!(
            refused(&at("socket")),
            "it is a socket or a device, not a regular file"
        );
        assert_eq!(
            refused(folder.path()),
            "it is a directory, not a regular file"
        );
        assert_eq!(
            refused(Path::new("/dev/zero")),
            "it is a device, not a regular file"
        );
        let missing = open(&at("none")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
