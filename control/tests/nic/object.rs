//! The committed objects are what their source gives with the compiler that it names.

use std::{fs, path::Path, process::Command};

const OBJECTS: [&str; 2] = ["virga.bpf.o", "traffic.bpf.o"];

#[test]
fn the_committed_objects_are_what_their_source_gives() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(root.join("scripts/build-ebpf"))
        .arg(folder.path())
        .output()
        .unwrap();
    let messages = String::from_utf8_lossy(&output.stderr);
    // 3: the toolchain is not there. Any other failure is the source's.
    if output.status.code() == Some(3) {
        println!("skipped: {}", messages.trim());
        return;
    }
    assert!(output.status.success(), "{messages}");
    let committed = root.join("ebpf/prebuilt");
    let compiler = |folder: &Path| fs::read_to_string(folder.join("virga.bpf.compiler")).unwrap();
    if compiler(folder.path()) != compiler(&committed) {
        println!(
            "skipped: the committed objects were built by\n{}and this machine has\n{}",
            compiler(&committed),
            compiler(folder.path())
        );
        return;
    }
    for object in OBJECTS {
        let read = |folder: &Path| fs::read(folder.join(object)).unwrap();
        assert!(
            read(folder.path()) == read(&committed),
            "ebpf/prebuilt/{object} is not what the source gives: run scripts/build-ebpf and commit it"
        );
    }
    let built = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(built, OBJECTS.len() + 1, "every object is compared");
}
