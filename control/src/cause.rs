//! What lies beneath an error, and what to do where it is a lack of rights.

use std::{error::Error, io};

/// What setting up the NIC path takes.
pub(crate) const NIC_RIGHTS: &str = "run as root, or with CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON (`virga doctor` shows which there are)";

/// What a lack of file descriptors takes.
pub(crate) const FILES_LIMIT: &str =
    "raise the limit of open files: `ulimit -n`, or LimitNOFILE= in the service's unit";

/// An error and its causes, each once: many messages quote their cause already.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for cause in causes(error) {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
    }
    text
}

/// Whether this process, or the whole system, has as many files open as it may.
pub(crate) fn is_out_of_files(error: &(dyn Error + 'static)) -> bool {
    let refuses = |cause: &(dyn Error + 'static)| {
        let cause = cause.downcast_ref::<io::Error>();
        let number = cause.and_then(io::Error::raw_os_error);
        matches!(number, Some(libc::EMFILE | libc::ENFILE))
    };
    refuses(error) || causes(error).any(refuses)
}

/// Whether the operating system refused because of who this process runs as.
pub(crate) fn is_not_permitted(error: &(dyn Error + 'static)) -> bool {
    let refuses = |cause: &(dyn Error + 'static)| {
        let cause = cause.downcast_ref::<io::Error>();
        cause.is_some_and(|cause| cause.kind() == io::ErrorKind::PermissionDenied)
    };
    refuses(error) || causes(error).any(refuses)
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = error.source();
    std::iter::from_fn(move || {
        let cause = next?;
        next = cause.source();
        Some(cause)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot begin{}", if *.quotes { format!(": {}", .source) } else { String::new() })]
    struct Outer {
        quotes: bool,
        source: io::Error,
    }

    #[test]
    fn each_cause_is_told_once() {
        for quotes in [false, true] {
            let source = io::Error::other("no more room");
            assert_eq!(
                chain(&Outer { quotes, source }),
                "cannot begin: no more room"
            );
        }
    }

    #[test]
    fn a_lack_of_rights_is_found_beneath() {
        let error = |kind: io::ErrorKind| Outer {
            quotes: false,
            source: kind.into(),
        };
        assert!(is_not_permitted(&error(io::ErrorKind::PermissionDenied)));
        assert!(!is_not_permitted(&error(io::ErrorKind::NotFound)));
        assert!(is_not_permitted(&io::Error::from_raw_os_error(libc::EPERM)));
    }

    #[test]
    fn a_lack_of_files_is_found_beneath() {
        let error = |number| Outer {
            quotes: false,
            source: io::Error::from_raw_os_error(number),
        };
        assert!(is_out_of_files(&error(libc::EMFILE)));
        assert!(!is_out_of_files(&error(libc::EPERM)));
    }
}
