//! Key files: made privately, read suspiciously.

use super::*;
use std::os::unix::fs::PermissionsExt as _;

fn file(content: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.key");
    std::fs::write(&path, content).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    (folder, path)
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn what_is_written_is_read_back_and_private() {
    let folder = tempfile::tempdir().unwrap();
    for kind in [KeyKind::Node, KeyKind::Entity, KeyKind::Psk] {
        let path = folder.path().join(kind.file_name());
        let secret = Secret::generate().unwrap();
        write(kind, &path, &secret, Existing::Keep).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(read(kind, &path).unwrap(), secret);
    }
}

#[test]
fn a_key_is_replaced_only_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.key");
    let (old, new) = (Secret::new([1; 32]), Secret::new([2; 32]));
    write(KeyKind::Node, &path, &old, Existing::Keep).unwrap();
    let refused = write(KeyKind::Node, &path, &new, Existing::Keep).unwrap_err();
    assert!(matches!(refused, KeyError::Exists { .. }));
    assert!(refused.to_string().contains("--force"));
    assert_eq!(read(KeyKind::Node, &path).unwrap(), old);
    write(KeyKind::Node, &path, &new, Existing::Replace).unwrap();
    assert_eq!(read(KeyKind::Node, &path).unwrap(), new);
    assert_eq!(mode(&path), 0o600);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_missing_file_names_the_line_that_makes_it() {
    let path = Path::new("/nowhere/my.key");
    let error = read(KeyKind::Entity, path).unwrap_err().to_string();
    assert_eq!(
        error,
        "/nowhere/my.key does not exist; create it: virga keygen --kind entity --out /nowhere/my.key"
    );
    let error = read(KeyKind::Psk, path).unwrap_err().to_string();
    assert!(error.contains("copy it from another node"), "{error}");
}

#[test]
fn a_file_that_others_may_read_is_refused() {
    let (_folder, path) = file(&format!("virga-node-key-v1 {}\n", "11".repeat(32)));
    for bits in [0o640, 0o604, 0o620, 0o602, 0o601] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(bits)).unwrap();
        let error = read(KeyKind::Node, &path).unwrap_err();
        assert!(
            matches!(error, KeyError::Exposed { mode, .. } if mode == bits),
            "{error}"
        );
        assert!(
            error
                .to_string()
                .ends_with(&format!("run: chmod 600 {}", path.display())),
            "{error}"
        );
    }
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
    assert!(read(KeyKind::Node, &path).is_ok());
}

#[test]
fn a_file_of_someone_else_is_refused() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can give a file away");
        return;
    }
    let (_folder, path) = file(&format!("virga-node-key-v1 {}\n", "11".repeat(32)));
    std::os::unix::fs::chown(&path, Some(1), None).unwrap();
    let error = read(KeyKind::Node, &path).unwrap_err();
    assert!(
        matches!(
            error,
            KeyError::Owner {
                owner: 1,
                us: 0,
                ..
            }
        ),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .ends_with(&format!("run: chown 0 {}", path.display())),
        "{error}"
    );
}

#[test]
fn content_that_is_no_key_is_refused_without_repeating_it() {
    let digits = "ab".repeat(32);
    for (content, say) in [
        (String::new(), "is not a key file"),
        (digits.clone(), "is not a key file"),
        (format!("something {digits}"), "is not a key file"),
        (
            format!("virga-entity-key-v1 {digits}\n"),
            "another kind (entity)",
        ),
        (
            format!("virga-node-key-v1 {}\n", &digits[1..]),
            "63 characters",
        ),
        (format!("virga-node-key-v1  {digits}\n"), "digit 1 is not"),
        (
            format!("virga-node-key-v1 {digits}\n\nmore"),
            "digit 65 is not",
        ),
        (format!("virga-node-key-v1 {}", "0".repeat(64)), "all zeros"),
        ("v".repeat(10_000), "is not a key file"),
    ] {
        let (_folder, path) = file(&content);
        let error = read(KeyKind::Node, &path).unwrap_err().to_string();
        assert!(error.contains(say), "{error}");
        assert!(!error.contains("abab"), "{error}");
    }
    let (folder, _) = file("");
    let error = read(KeyKind::Node, folder.path()).unwrap_err();
    assert!(matches!(error, KeyError::Io { .. }), "{error}");
    let why = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(why, "it is a directory, not a regular file");
}

#[test]
fn secrets_do_not_show() {
    assert_eq!(format!("{:?}", Secret::new([7; 32])), "Secret(..)");
    let key = NodeKey::from(Secret::new([7; 32]));
    assert!(!format!("{key:?}").contains("7, 7, 7"));
}

/// RFC 8032, section 7.1, test 1.
#[test]
fn an_entity_key_is_plain_ed25519() {
    let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
    let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    let key = EntityKey::from(Secret::new(hex::decode(seed).unwrap()));
    assert_eq!(hex::encode(&key.public), public);
}

/// The public half was made by another implementation: `openssl pkey -pubout`.
#[test]
fn a_node_key_is_plain_x25519() {
    let public = "13be4feaeaf204c7fd3358fc9c00721881d174278128227ec674f37f7fe97b6d";
    let key = NodeKey::from(Secret::new([7; 32]));
    assert_eq!(hex::encode(&key.public), public);
}
