//! What nodes say of evidence, byte by byte.

use super::*;

#[test]
fn published_vectors() {
    let id = EvidenceId([7; 16]);
    let encode = |publication: Publication| Message::Publication(publication).encode();
    for (kind, piece) in [
        (1, Piece::Token(vec![8, 9])),
        (2, Piece::Statement(vec![8, 9])),
    ] {
        assert_eq!(encode(Publication::Evidence(piece)), [1, 12, kind, 8, 9]);
    }
    let mut digest = Digest::default();
    digest.0[1] = [5; 8];
    let bytes = encode(Publication::Digest(Box::new(digest)));
    assert_eq!(bytes.len(), 2 + 8 * BUCKETS);
    assert_eq!(bytes[..19], [&[1, 13][..], &[0; 8], &[5; 8], &[0]].concat());
    let ids = vec![id];
    assert_eq!(
        encode(Publication::Have { bucket: 3, ids }),
        [&[1, 14, 3][..], &[7; 16]].concat()
    );
    let verdict = Verdict::Revoked;
    assert_eq!(
        encode(Publication::Confirm { id, verdict }),
        [&[1, 15][..], &[7; 16], &[9]].concat()
    );
    let codes = Verdict::ALL.iter().map(|v| usize::from(*v as u8));
    assert!(codes.eq(0..Verdict::ALL.len()));
    // BLAKE2s-MAC by Python's hashlib: blake2s(b"abc", key=b"virga evidence v1").
    let id = EvidenceId::of(b"abc");
    assert_eq!(crate::hex::encode_bytes(&id.0), ABC_ID);
}

const ABC_ID: &str = "464ebb89cd194243a869a66e7588e7a9";

#[test]
fn what_is_said_about_evidence_is_read_back_and_nothing_else() {
    let ids: Vec<_> = (1..4).map(|n| EvidenceId([n; 16])).collect();
    let all = [
        Publication::Evidence(Piece::Token(vec![8, 9])),
        Publication::Evidence(Piece::Statement(vec![8, 9])),
        Publication::Statements,
        Publication::Digest(Box::new(store().digest(KINDS))),
        Publication::Have {
            bucket: 63,
            ids: ids.clone(),
        },
        Publication::Confirm {
            id: ids[0],
            verdict: Verdict::Full,
        },
    ];
    for said in all {
        let bytes = Message::Publication(said.clone()).encode();
        assert_eq!(Message::parse(&bytes), Ok(Message::Publication(said)));
        for at in 0..bytes.len() {
            for value in 0..=u8::MAX {
                let mut changed = bytes.clone();
                changed[at] = value;
                if let Ok(message) = Message::parse(&changed) {
                    assert_eq!(message.encode(), changed);
                }
            }
        }
        let cut = Message::parse(&bytes[..bytes.len() - 1]);
        assert!(bytes[1] == 12 || cut.is_err());
    }
    for wrong in [
        vec![1, 12, 3, 0],
        vec![1, 12, 2],
        vec![1, 21, 1],
        vec![1, 14, 64],
        [&[1, 14, 0][..], &[2; 16], &[1; 16]].concat(),
        [&[1, 15][..], &[0; 16], &[11]].concat(),
    ] {
        assert_eq!(Message::parse(&wrong), Err(MessageError::Publication));
    }
}
