//! What people write instead of what they mean.

use super::*;

#[test]
fn what_is_not_toml_or_of_the_wrong_shape() {
    let broken = refused(&format!("{NODE}subnet = = 1\n"), "", "not valid TOML");
    assert_eq!(broken.line, 9);
    refused("[forwarding]\n", "node", "is missing");
    refused("node = 1\n", "node", "invalid type");
    refused(
        &format!("{}{}", NODE, channel("a", "reliable = \"yes\"")),
        "channels[0].reliable",
        "boolean",
    );
    refused(
        &format!("{}{}", NODE, channel("a", "subscribe = [1]")),
        "channels[0].subscribe",
        "string",
    );
    refused(
        &format!("{}{}", NODE, channel("a", "subscribe = \"us\"")),
        "channels[0].subscribe",
        "sequence",
    );
}

#[test]
fn a_block_by_a_wrong_name_or_in_single_brackets_is_one_error_and_read_on() {
    let channel = channel("a", "subscribe = [\"one\", \"far\"]");
    for (wrong, key, say) in [
        ("[[peer]]", "peer", "did you mean `peers`?"),
        ("[[Peers]]", "Peers", "did you mean `peers`?"),
    ] {
        let text = mesh().replace("[[peers]]", wrong) + &channel;
        refused(&text, key, say);
        let text = mesh().replacen("[[peers]]", wrong, 1) + &channel;
        refused(&text, key, say);
    }
    let one = peer("one", 10, "address = \"10.0.0.2:4783\"").replace("[[peers]]", "[peers]");
    let text = format!("{NODE}{one}{}", channel.replace(", \"far\"", ""));
    refused(&text, "peers", "begin each block with a line [[peers]]");
    let text = mesh() + &channel.replace("[[channels]]", "[channels]");
    refused(
        &text,
        "channels",
        "begin each block with a line [[channels]]",
    );
    // What is wrong inside is not hidden by the name.
    let text = mesh()
        .replace("[[peers]]", "[[peer]]")
        .replace("10.0.0.3:4783", "here");
    let found: Vec<String> = problems(&text)
        .into_iter()
        .map(|problem| problem.key)
        .collect();
    assert_eq!(found, ["peer", "peers[1].address"]);
}

#[test]
fn a_text_without_quotes_is_shown_with_them() {
    let text = NODE
        .replace("\"us\"", "us # the first")
        .replace("\"10.0.0.1:4783\"", "10.0.0.1:4783");
    let found: Vec<String> = problems(&text).iter().map(Problem::to_string).collect();
    assert_eq!(
        found,
        [
            "not valid TOML: a text without quotes; write: name = \"us\"",
            "not valid TOML: a text without quotes; write: listen = \"10.0.0.1:4783\"",
        ]
    );
    let broken = refused(&NODE.replace("\"us\"", "\"us"), "", "not valid TOML");
    assert!(broken.fix.is_empty(), "{broken}");
}

#[test]
fn an_empty_file_and_one_of_another_kind() {
    for empty in ["", "\n", "# nothing yet\n"] {
        let problem = refused(empty, "", "the file is empty; write a [node] section");
        assert_eq!((problem.line, problem.column), (1, 1));
    }
    let script = "echo one two\n".repeat(100);
    let found = problems(&script);
    assert_eq!(found.len(), 9, "{found:#?}");
    assert_eq!(
        found[8].to_string(),
        "92 more lines are not TOML; is it the right file?"
    );
}

#[test]
fn bytes_that_are_no_text_are_named_with_their_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("us.toml");
    for (bytes, say) in [
        (
            &b"[node]\nname = \"\xff\"\n"[..],
            ":2: bytes that are not UTF-8",
        ),
        (b"\x7fELF\x02\x01\0\0", ":1: a zero byte"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = Config::load(&path).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "{}{say}: the configuration file is not text; is it the right file?",
                path.display()
            )
        );
    }
}
