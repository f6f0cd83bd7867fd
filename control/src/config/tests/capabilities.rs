//! What channels ask of capabilities, and what is said of this node's own entity.

use super::*;
use crate::{
    capability::{Capabilities, Capability, Filter, Statement, statement::Claim},
    keys::{EntityKey, Secret},
    rights::file,
};

#[test]
fn filters_and_whose_word_counts() {
    let with = |rest: &str| mesh() + &channel("a", rest);
    let rest = "publish_caps = [\"hardware.gpu\", 'software.cuda >= 12 or tier = \"x\"']\n\
                subscribe_caps = \"tier.production\"\ncapability_issuers = [\"one\"]";
    let config = parse(&with(rest)).unwrap();
    let rules = &config.channels[0].capabilities;
    let filter = |text| Some(Filter::parse(text).unwrap());
    let both = "hardware.gpu and (software.cuda >= 12 or tier = x)";
    assert_eq!(rules.publish, filter(both));
    assert_eq!(rules.subscribe, filter("tier.production"));
    assert_eq!(rules.issuers[0].key, config.peers[0].entity_key);
    // The list may be left out where capabilities are asked for, and only there.
    let open = with(rest).replace("publish = [\"us\"]\n", "");
    let open = &parse(&open).unwrap().channels[0];
    let anyone = (&Listed::Anyone, &Listed::Anyone);
    assert_eq!((&open.publish, &open.subscribe), anyone);
    let only_publish = "publish_caps = \"a\"\ncapability_issuers = [\"one\"]";
    let closed = parse(&with(only_publish)).unwrap();
    assert_eq!(closed.channels[0].subscribe, Listed::Only(Vec::new()));

    let issuers = "channels[0].capability_issuers";
    for (rest, key, say) in [
        ("publish_caps = \"a\"", issuers, "nobody's word"),
        (
            "subscribe_caps = \"a\"\ncapability_issuers = []",
            issuers,
            "nobody's word",
        ),
        (
            "capability_issuers = [\"one\"]",
            issuers,
            "add publish_caps",
        ),
        (
            "publish_caps = []\ncapability_issuers = [\"one\"]",
            "channels[0].publish_caps",
            "is empty",
        ),
        (
            "publish_caps = 12\ncapability_issuers = [\"one\"]",
            "channels[0].publish_caps",
            "a text or a list of texts",
        ),
    ] {
        let problems = problems(&with(rest));
        let found = problems.iter().find(|p| p.key == key);
        let found = found.unwrap_or_else(|| panic!("{problems:#?}"));
        assert!(found.to_string().contains(say), "{found}");
    }
}

#[test]
fn a_filter_that_does_not_parse_is_shown_where_it_goes_wrong() {
    let rest = "capability_issuers = [\"one\"]\npublish_caps = [\"a\", \"software.cuda >=\"]";
    let problem = refused(
        &(mesh() + &channel("a", rest)),
        "channels[0].publish_caps",
        "expected a value after `>=`, found the end\n    software.cuda >=\n                    ^",
    );
    let line = "publish_caps = [\"a\", \"software.cuda >=";
    assert_eq!(problem.column, line.len() + 1);
}

#[test]
fn files_of_statements_are_read_and_must_be_about_this_entity() {
    let folder = tempfile::tempdir().unwrap();
    let issuer = EntityKey::from(Secret::new([77; 32]));
    let write = |name: &str, subject: [u8; 32], version| {
        let claim = Claim {
            subject,
            version,
            not_before_s: 0,
            not_after_s: 1,
            capabilities: Capabilities::new(vec![Capability::parse("a=1").unwrap()]).unwrap(),
        };
        let statement = Statement::issue(claim, 0, &issuer);
        let path = folder.path().join(name);
        std::fs::write(&path, file::statement_line(&statement)).unwrap();
        path
    };
    let own = keys().entity.public;
    let (first, later) = (write("first", own, 1), write("later", own, 2));
    let others = write("others", [1; 32], 1);
    let with = |files: &[&Path]| format!("{NODE}capabilities = {files:?}\n");
    let config = parse(&with(&[&first, &later])).unwrap();
    assert_eq!(config.node.statements.len(), 1);
    let key = "node.capabilities";
    refused(&with(&[&others]), key, "is about another entity");
    refused(
        &with(&[&later, &first]),
        key,
        "says nothing that another does not",
    );
    let missing = folder.path().join("none");
    refused(&with(&[&missing]), key, "cannot open");
    std::fs::write(&missing, "virga-token-v1 AQ\n").unwrap();
    refused(
        &with(&[&missing]),
        key,
        "expected one line, `virga-capability-v1 <base64url>`",
    );
}
