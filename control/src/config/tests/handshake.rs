//! `[handshake]`

use super::*;
use virga_transport::{HandshakePolicy, Pattern, Pq};

#[test]
fn sessions_begin_as_the_section_says_and_with_a_peer_as_its_block_says() {
    let ours = |pattern, pq| HandshakePolicy { pattern, pq };
    assert_eq!(parse(NODE).unwrap().handshake, ours(None, Pq::Preferred));
    let one = |lines: &str| peer("one", 10, &format!("address = \"10.0.0.2:4783\"\n{lines}"));
    let with = |lines: &str, of_one: &str| format!("{NODE}\n[handshake]\n{lines}\n{}", one(of_one));
    let config = parse(&with("pattern = \"nk\"\npq = \"off\"", "")).unwrap();
    assert_eq!(config.handshake, ours(Some(Pattern::Nk), Pq::Off));
    assert_eq!(config.peers[0].handshake, None);
    let config = parse(&with("pattern = \"xx\"", "pq = \"required\"")).unwrap();
    assert_eq!(config.handshake, ours(Some(Pattern::Xx), Pq::Preferred));
    let of_one = Some(ours(Some(Pattern::Xx), Pq::Required));
    assert_eq!(config.peers[0].handshake, of_one);
    let config = parse(&with("pattern = \"xx\"", "pattern = \"auto\"")).unwrap();
    assert_eq!(config.peers[0].handshake, Some(ours(None, Pq::Preferred)));

    refused(
        &with("pattern = \"ix\"", ""),
        "handshake.pattern",
        "did you mean",
    );
    refused(&with("pq = \"always\"", ""), "handshake.pq", "preferred");
    refused(&with("", "pattern = \"IK\""), "peers[0].pattern", "ik");
    refused(&with("", "pq = \"requierd\""), "peers[0].pq", "required");
    refused(&with("kem = 1", ""), "handshake.kem", "unknown key");
}
