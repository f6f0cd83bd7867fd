//! The committed object is what its source gives with the compiler that it names.

use std::{fs, path::Path, process::Command};

#[test]
fn the_committed_object_is_the_one_that_its_source_gives() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let rebuilt = folder.path().join("virga.bpf.o");
    let output = Command::new(root.join("scripts/build-ebpf"))
        .arg(&rebuilt)
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
            "skipped: the committed object was built by\n{}and this machine has\n{}",
            compiler(&committed),
            compiler(folder.path())
        );
        return;
    }
    assert!(
        fs::read(&rebuilt).unwrap() == fs::read(committed.join("virga.bpf.o")).unwrap(),
        "ebpf/prebuilt/virga.bpf.o is not what the source gives: run scripts/build-ebpf and commit it"
    );
}
