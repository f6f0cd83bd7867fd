//! Handshake messages: the published Noise vector, and every check before the first DH.

use super::*;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use x25519_dalek::{PublicKey, StaticSecret};

fn hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
        .collect()
}

fn key(text: &str) -> [u8; 32] {
    hex(text).try_into().unwrap()
}

/// The vector of the Cacophony set, as snow publishes it; our packet keys start from this split.
#[test]
fn noise_nkpsk0_vector() {
    let psk = key("54686973206973206d7920417573747269616e20706572737065637469766521");
    let resp_static = key("4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893");
    let resp_public = key("31e0303fd6418d2f8c0e78b91f22e8caed0fbe48656dcf4767e4834f701b8f62");
    let init_e = key("893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a");
    let resp_e = key("bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b");
    let network = Network {
        id: String::new(),
        psk,
        psk_generation: 0,
    };
    let prologue = hex("4a6f686e2047616c74");
    let mut generator = Generator::new(&[0; 32], b"");
    let mut a = builder(&network, &mut generator, &prologue)
        .and_then(|b| b.remote_public_key(&resp_public))
        .and_then(|b| {
            b.fixed_ephemeral_key_for_testing_only(&init_e)
                .build_initiator()
        })
        .unwrap();
    let mut b = builder(&network, &mut generator, &prologue)
        .and_then(|b| b.local_private_key(&resp_static))
        .and_then(|b| {
            b.fixed_ephemeral_key_for_testing_only(&resp_e)
                .build_responder()
        })
        .unwrap();
    let (mut first, mut second, mut clear) = (vec![0; 64], vec![0; 63], [0; 64]);
    a.write_message(&hex("4c756477696720766f6e204d69736573"), &mut first)
        .unwrap();
    assert_eq!(
        first,
        hex(
            "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c7944\
             27635ede06947b2d3acd77a36788aaaf17e9f5a8ac252e560fb421ba161a2cf8"
        )
    );
    b.read_message(&first, &mut clear).unwrap();
    b.write_message(&hex("4d757272617920526f746862617264"), &mut second)
        .unwrap();
    assert_eq!(
        second,
        hex(
            "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843\
             d682eb9cf4fee6816c8c8cfd34c15774321e234e3a426d7cfd3f13e5e84d04"
        )
    );
    a.read_message(&second, &mut clear).unwrap();
    let split = a.dangerously_get_raw_split();
    assert_eq!(split, b.dangerously_get_raw_split());
    assert_eq!(
        a.get_handshake_hash(),
        hex("6bd69bd4066f41f32e47134976f5bf01606f7a4a0e04369fe61158b06f3a144e")
    );
    let from_initiator = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &split.0).unwrap());
    let mut third = hex("b6645684db57679aa08f0b3352d58f32ec7f1e1a02083d5bd54277");
    let nonce = Nonce::assume_unique_for_key([0; 12]);
    let opened = from_initiator
        .open_in_place(nonce, Aad::empty(), &mut third)
        .unwrap();
    assert_eq!(opened, b"F. A. Hayek");
}

struct Ends {
    network: Network,
    generator: Generator,
    responder_key: [u8; 32],
    responder_public: [u8; 32],
    route: Route,
}

fn ends() -> Ends {
    let responder_key = [7; 32];
    let responder_public = PublicKey::from(&StaticSecret::from(responder_key)).to_bytes();
    let receiver = virga_ebpf::hash::node_id(&responder_public);
    let route = Route {
        sender: NodeId(5),
        origin: OriginHash(6),
        subnet: Subnet(1 << 24),
        receiver,
    };
    let network = Network {
        id: "demo".into(),
        psk: [9; 32],
        psk_generation: 3,
    };
    let generator = Generator::new(&[1; 32], b"test");
    Ends {
        network,
        generator,
        responder_key,
        responder_public,
        route,
    }
}

impl Ends {
    fn initiation(&mut self) -> (Initiator, Vec<u8>) {
        let session = SessionId(0x1100);
        let started = Initiator::start(
            &self.network,
            &mut self.generator,
            self.route.sender,
            session,
            &self.responder_public,
            5,
        );
        let started = started.unwrap();
        let (kind, none) = (Kind::Initiation, [0; 16]);
        let body = started.body().to_vec();
        let bytes = build(
            &self.network,
            kind,
            &self.route,
            SessionId(0),
            session,
            &body,
            &none,
        );
        (started, bytes)
    }

    fn parse(&self, bytes: &[u8]) -> Result<Message, DropReason> {
        let header = Header::decode(&array(bytes, 0));
        parse(
            &self.network,
            &self.network.tag_key(self.route.receiver),
            &header,
            bytes,
        )
    }

    fn answer(&mut self, bytes: &[u8], message: &Message) -> Result<(Agreed, Vec<u8>), DropReason> {
        let own = (self.route.receiver, SessionId(0x2200));
        let body = &bytes[message.body.clone()];
        respond(
            &self.network,
            &mut self.generator,
            &self.responder_key,
            own,
            message,
            body,
        )
    }
}

#[test]
fn both_ends_agree() {
    let mut ends = ends();
    let (mut initiator, bytes) = ends.initiation();
    let message = ends.parse(&bytes).unwrap();
    assert_eq!(
        (message.kind, message.sender),
        (Kind::Initiation, NodeId(5))
    );
    let (there, body) = ends.answer(&bytes, &message).unwrap();
    let response = Message {
        kind: Kind::Response,
        sender: ends.route.receiver,
        origin: message.origin,
        session: SessionId(0x2200),
        body: 0..0,
        cookie: [0; 16],
    };
    let mut forged = body.clone();
    forged[40] ^= 1;
    let refused = initiator.finish(&ends.network, &response, &forged).err();
    assert_eq!(refused, Some(DropReason::HandshakeNoise));
    let here = initiator.finish(&ends.network, &response, &body).unwrap();
    assert_eq!(here.hash, there.hash);
    let mut packet = [&Header::default().encode()[..], &[1; 4], &[0; 16]].concat();
    here.epoch.sealing.seal(0, &mut packet);
    let header = array(&packet, 0);
    assert_eq!(
        there.epoch.opening.open(&header, 0, &mut packet[64..]),
        Ok(&[1; 4][..])
    );
}

#[test]
fn every_byte_is_bound_before_any_dh() {
    let mut ends = ends();
    let (_, bytes) = ends.initiation();
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 0x80;
        let in_flight = matches!(at, 5 | 6 | 56..=63);
        assert_eq!(ends.parse(&changed).is_ok(), in_flight, "byte {at}");
    }
    for length in 64..bytes.len() {
        assert_eq!(
            ends.parse(&bytes[..length]).err(),
            Some(DropReason::HandshakeMalformed)
        );
    }
}

#[test]
fn a_wrong_network_key_fails_at_the_tag_and_a_wrong_network_in_noise() {
    let mut ends = ends();
    let (_, bytes) = ends.initiation();
    ends.network.psk = [8; 32];
    assert_eq!(ends.parse(&bytes).err(), Some(DropReason::HandshakeTag));
    ends.network.psk = [9; 32];
    ends.network.psk_generation = 4;
    assert_eq!(
        ends.parse(&bytes).err(),
        Some(DropReason::HandshakePskGeneration)
    );
    ends.network.psk_generation = 3;
    ends.network.id = "other".into();
    let message = ends.parse(&bytes).unwrap();
    assert_eq!(
        ends.answer(&bytes, &message).err(),
        Some(DropReason::HandshakeNoise)
    );
}

#[test]
fn a_cookie_reply_is_smaller_than_its_cause() {
    let mut ends = ends();
    let (_, bytes) = ends.initiation();
    let (session, cookie) = (SessionId(0x1100), [4; 16]);
    let reply = build(
        &ends.network,
        Kind::Cookie,
        &ends.route,
        session,
        SessionId(0),
        &[],
        &cookie,
    );
    assert!(reply.len() < bytes.len());
    let message = ends.parse(&reply).unwrap();
    assert_eq!((message.kind, message.cookie), (Kind::Cookie, cookie));
}
