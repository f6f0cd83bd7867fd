//! `[fallback]`, and where neighbours are dialled.

use super::*;
use std::{path::Path, time::Duration};
use virga_carrier::tls::Trust;

#[test]
fn nothing_listens_unless_it_is_asked_for() {
    let with = |lines: &str| format!("{NODE}\n[fallback]\n{lines}\n");
    for text in [NODE, &with("")] {
        assert_eq!(parse(text).unwrap().fallback, FallbackSection::default());
    }
    let lines = "listen_tcp = \"[::]:1\"\nlisten_ws = \"0.0.0.0:2\"\ncertificate = \"c.pem\"\n\
                 certificate_key = \"/k.pem\"\ntrust = \"any\"\nafter_ms = 100\nprobe_s = 9";
    let said = parse(&with(lines)).unwrap().fallback;
    assert_eq!(said.listen_tcp, Some("[::]:1".parse().unwrap()));
    assert_eq!(said.listen_ws, Some("0.0.0.0:2".parse().unwrap()));
    let (certificate, key) = said.certificate.unwrap();
    assert!(certificate.ends_with("c.pem") && key == Path::new("/k.pem"));
    assert_eq!(said.trust, Trust::Any);
    assert_eq!(said.pace.after, Duration::from_millis(100));
    assert_eq!(said.pace.probe_every, Duration::from_secs(9));
    for (lines, key, fix) in [
        (
            "listen_tcp = \"here\"",
            "fallback.listen_tcp",
            "write an IP",
        ),
        (
            "listen_ws = \"[::]:4783\"",
            "fallback.listen_ws",
            "another port",
        ),
        (
            "listen_tcp = \"[::1]:1\"\nlisten_ws = \"[::1]:1\"",
            "fallback.listen_ws",
            "another port",
        ),
        ("after_ms = 9", "fallback.after_ms", ""),
        ("probe_s = 0", "fallback.probe_s", ""),
        (
            "listen_ws = \"[::1]:1\"\ncertificate = \"c.pem\"",
            "fallback.certificate_key",
            "both the certificate and its key",
        ),
        (
            "certificate = \"c.pem\"\ncertificate_key = \"k.pem\"",
            "fallback.certificate",
            "add `listen_ws`",
        ),
    ] {
        refused(&with(lines), key, fix);
    }
}

#[test]
fn a_neighbour_is_dialled_where_its_block_says_and_nobody_else_is() {
    let block = |how: &str| {
        format!(
            "{NODE}\n[routing]\nenabled = true\n[[peers]]\nname = \"far\"\nnode_key = \"{}\"\nentity_key = \"{}\"\n{how}\n",
            node_key(8),
            entity_key(9)
        )
    };
    let adjacent = "address = \"10.0.0.9:4783\"\n";
    let dialled = |list: &str| block(&format!("{adjacent}fallback = {list}"));
    let config = parse(&dialled("[\"tcp://a:1\", \"wss://b/c\"]")).unwrap();
    let told: Vec<String> = config.peers[0]
        .fallback
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(told, ["tcp://a:1", "wss://b:443/c"]);
    assert!(
        parse(&block(adjacent)).unwrap().peers[0]
            .fallback
            .is_empty()
    );
    let key = "peers[0].fallback";
    refused(&dialled("[\"http://a\"]"), key, "wss://edge.example/virga");
    refused(
        &dialled(&format!("{:?}", ["tcp://a:1"; 9])),
        key,
        "8 at most",
    );
    refused(
        &block("fallback = [\"tcp://a:1\"]"),
        key,
        "give it an `address`",
    );
}
