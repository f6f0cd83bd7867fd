//! Handshake messages: Noise_NKpsk0_25519_ChaChaPoly_BLAKE2s between members, cookie, reset.
//!
//! ```text
//!  mesh header   64   flags handshake, priority 7, destination, origin; session_id is the
//!                     receiver's (0 in an initiation, a cookie reply's is the initiator's)
//!  type           1   1 initiation, 2 response, 3 cookie reply, 4 reset
//!  suite          1   1
//!  generation     2   of the network's pre-shared key
//!  sender         8   node id
//!  session        8   the sender's session_id (in a reset: the one it no longer knows)
//!  body           …   8 time and 48 Noise message · 48 Noise message · nothing · 16 reset token
//!  cookie        16   zero if none
//!  tag           16   keyed BLAKE2s over everything before it
//! ```
//!
//! The tag's key comes from the network's pre-shared key and the receiver's node id; it is checked
//! before any DH. The prologue binds network id, version, suites, the clear prefix and the time: when
//! the initiation was made, in nanoseconds of Unix time on its maker's clock.

use crate::{
    keys::{Epoch, Role, first_16, same},
    random::{Generator, SeededResolver},
    reason::DropReason,
};
use core::ops::Range;
use snow::{Builder, HandshakeState};
use virga_ebpf::{
    hash::keyed,
    header::{Flags, Header, NodeId, OriginHash, PRIORITY_CONTROL, SessionId, Subnet, VERSION},
    limits::HEADER_BYTES,
};
use zeroize::{Zeroize, Zeroizing};

const NOISE: &str = "Noise_NKpsk0_25519_ChaChaPoly_BLAKE2s";
/// The suites that this version offers, in order of preference; bound by the prologue.
pub(crate) const SUITES: [u8; 1] = [1];

const PREFIX_BYTES: usize = 20;
const NOISE_BYTES: usize = 48;
const TIME_BYTES: usize = 8;
const TOKEN_BYTES: usize = 16;
const FOOT_BYTES: usize = 32;
/// Where the sender's node id is, in the clear.
pub(crate) const SENDER_AT: usize = HEADER_BYTES + 4;
const BODY_AT: usize = HEADER_BYTES + PREFIX_BYTES;

const _: () = assert!(
    BODY_AT + TIME_BYTES + NOISE_BYTES + FOOT_BYTES <= crate::limits::DATAGRAM_BYTES_MIN,
    "a handshake fits the smallest path"
);
const _: () = assert!(
    NOISE_BYTES > TOKEN_BYTES,
    "a cookie reply is smaller than its cause"
);

/// A whole reset.
pub(crate) const RESET_BYTES: usize = BODY_AT + TOKEN_BYTES + FOOT_BYTES;

/// What a handshake message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Initiation,
    Response,
    Cookie,
    Reset,
}

impl Kind {
    const fn number(self) -> u8 {
        match self {
            Self::Initiation => 1,
            Self::Response => 2,
            Self::Cookie => 3,
            Self::Reset => 4,
        }
    }

    const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Initiation),
            2 => Some(Self::Response),
            3 => Some(Self::Cookie),
            4 => Some(Self::Reset),
            _ => None,
        }
    }

    const fn body_bytes(self) -> usize {
        match self {
            Self::Initiation => TIME_BYTES + NOISE_BYTES,
            Self::Response => NOISE_BYTES,
            Self::Cookie => 0,
            Self::Reset => TOKEN_BYTES,
        }
    }
}

/// What the network's members share; wiped on drop.
pub(crate) struct Network {
    pub(crate) id: String,
    pub(crate) psk: [u8; 32],
    pub(crate) psk_generation: u16,
}

impl Drop for Network {
    fn drop(&mut self) {
        self.psk.zeroize();
    }
}

impl Network {
    /// Key of the tags on messages to `receiver`.
    pub(crate) fn tag_key(&self, receiver: NodeId) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(keyed(
            &self.psk,
            &[b"virga handshake tag v1", &receiver.0.to_be_bytes()],
        ))
    }

    /// What both ends must agree on before the first DH.
    fn prologue(&self, prefix: &[u8; PREFIX_BYTES], made_ns: u64) -> Vec<u8> {
        let mut prologue = b"virga handshake v1".to_vec();
        let id_bytes = u8::try_from(self.id.len()).unwrap_or(u8::MAX);
        prologue.push(id_bytes);
        prologue.extend_from_slice(self.id.as_bytes());
        prologue.push(VERSION);
        prologue.extend_from_slice(&SUITES);
        prologue.extend_from_slice(prefix);
        prologue.extend_from_slice(&made_ns.to_be_bytes());
        prologue
    }
}

/// Who sends, and to whom.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    pub(crate) sender: NodeId,
    pub(crate) origin: OriginHash,
    pub(crate) subnet: Subnet,
    pub(crate) receiver: NodeId,
}

/// The clear part of a message, checked by [`parse`].
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) kind: Kind,
    pub(crate) sender: NodeId,
    /// The entity that the sender claims to be.
    pub(crate) origin: OriginHash,
    /// The sender's session id, or the one that a reset is about.
    pub(crate) session: SessionId,
    pub(crate) body: Range<usize>,
    pub(crate) cookie: [u8; 16],
}

/// Checks everything that costs no DH. `bytes` start with `header`.
pub(crate) fn parse(
    network: &Network,
    tag_key: &[u8; 32],
    header: &Header,
    bytes: &[u8],
) -> Result<Message, DropReason> {
    let malformed = DropReason::HandshakeMalformed;
    if bytes.len() < BODY_AT + FOOT_BYTES {
        return Err(malformed);
    }
    let kind = Kind::from_number(bytes[HEADER_BYTES]).ok_or(malformed)?;
    let header_fits = header.flags == Flags::HANDSHAKE
        && header.priority == PRIORITY_CONTROL
        && (header.channel_hash.0, header.stream_id.0, header.sequence) == (0, 0, 0)
        && (header.key_phase, header.subprotocol, header.event_count) == (0, 0, 0)
        && (header.session_id.0 == 0) == matches!(kind, Kind::Initiation | Kind::Reset);
    if !header_fits || bytes.len() != BODY_AT + kind.body_bytes() + FOOT_BYTES {
        return Err(malformed);
    }
    if !SUITES.contains(&bytes[HEADER_BYTES + 1]) {
        return Err(DropReason::HandshakeSuite);
    }
    if bytes[HEADER_BYTES + 2..HEADER_BYTES + 4] != network.psk_generation.to_be_bytes() {
        return Err(DropReason::HandshakePskGeneration);
    }
    let foot = BODY_AT + kind.body_bytes();
    if !same(&tag(tag_key, &bytes[..foot + 16]), &array(bytes, foot + 16)) {
        return Err(DropReason::HandshakeTag);
    }
    Ok(Message {
        kind,
        sender: NodeId(u64::from_be_bytes(array(bytes, HEADER_BYTES + 4))),
        origin: header.origin_hash,
        session: SessionId(u64::from_be_bytes(array(bytes, HEADER_BYTES + 12))),
        body: BODY_AT..foot,
        cookie: array(bytes, foot),
    })
}

/// A message from `route.sender`; `session_id` is the receiver's, `session` the sender's.
pub(crate) fn build(
    network: &Network,
    kind: Kind,
    route: &Route,
    session_id: SessionId,
    session: SessionId,
    body: &[u8],
    cookie: &[u8; 16],
) -> Vec<u8> {
    let total = BODY_AT + body.len() + FOOT_BYTES;
    let header = Header {
        flags: Flags::HANDSHAKE,
        priority: PRIORITY_CONTROL,
        subnet: route.subnet,
        destination: route.receiver,
        origin_hash: route.origin,
        session_id,
        payload_len: u16::try_from(total - HEADER_BYTES).unwrap_or(u16::MAX),
        ..Header::default()
    };
    let mut out = Vec::with_capacity(total);
    out.extend_from_slice(&header.encode());
    out.extend_from_slice(&prefix(network, kind, route.sender, session));
    out.extend_from_slice(body);
    out.extend_from_slice(cookie);
    let made = tag(&network.tag_key(route.receiver), &out);
    out.extend_from_slice(&made);
    out
}

fn prefix(network: &Network, kind: Kind, sender: NodeId, session: SessionId) -> [u8; PREFIX_BYTES] {
    let mut prefix = [0; PREFIX_BYTES];
    prefix[0] = kind.number();
    prefix[1] = SUITES[0];
    prefix[2..4].copy_from_slice(&network.psk_generation.to_be_bytes());
    prefix[4..12].copy_from_slice(&sender.0.to_be_bytes());
    prefix[12..20].copy_from_slice(&session.0.to_be_bytes());
    prefix
}

/// Over the header without what changes in flight, and everything up to the tag.
fn tag(key: &[u8; 32], bytes: &[u8]) -> [u8; 16] {
    let header = Header::associated_data(&array(bytes, 0));
    first_16(&keyed(key, &[&header, &bytes[HEADER_BYTES..]]))
}

/// `N` bytes at `at`, which the caller has checked to be there.
fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    core::array::from_fn(|i| bytes[at + i])
}

/// What a finished handshake gives: epoch 0, and the hash that proofs sign.
pub(crate) struct Agreed {
    pub(crate) epoch: Epoch,
    pub(crate) hash: [u8; 32],
}

/// When an initiation was made, by its body, whose length [`parse`] has checked.
pub(crate) fn made_ns(body: &[u8]) -> u64 {
    body.first_chunk().copied().map_or(0, u64::from_be_bytes)
}

/// The initiator's half, waiting for the response.
pub(crate) struct Initiator {
    state: HandshakeState,
    body: Vec<u8>,
}

impl Initiator {
    /// Starts at `made_ns` towards the node whose X25519 public key is `peer_key`. `None` only if the Noise
    /// library refuses its own parameters, which no peer can bring about.
    pub(crate) fn start(
        network: &Network,
        generator: &mut Generator,
        sender: NodeId,
        session: SessionId,
        peer_key: &[u8; 32],
        made_ns: u64,
    ) -> Option<Self> {
        let prefix = prefix(network, Kind::Initiation, sender, session);
        let prologue = network.prologue(&prefix, made_ns);
        let builder = builder(network, generator, &prologue).ok()?;
        let mut state = builder
            .remote_public_key(peer_key)
            .ok()?
            .build_initiator()
            .ok()?;
        let mut body = vec![0; TIME_BYTES + NOISE_BYTES];
        body[..TIME_BYTES].copy_from_slice(&made_ns.to_be_bytes());
        let written = state.write_message(&[], &mut body[TIME_BYTES..]).ok()?;
        (written == NOISE_BYTES).then_some(Self { state, body })
    }

    /// The initiation's body: its time and the Noise message; the same each time it is sent.
    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }

    /// Takes the response. A forged one leaves the state as it was.
    pub(crate) fn finish(
        &mut self,
        network: &Network,
        response: &Message,
        body: &[u8],
    ) -> Result<Agreed, DropReason> {
        let context = prefix(network, Kind::Response, response.sender, response.session);
        match self.state.read_message(body, &mut [0; NOISE_BYTES]) {
            Ok(0) => Ok(agreed(&mut self.state, &context, Role::Initiator)),
            _ => Err(DropReason::HandshakeNoise),
        }
    }
}

/// Answers an initiation as node `own.0` with session `own.1`: what was agreed, and the response's
/// Noise message.
pub(crate) fn respond(
    network: &Network,
    generator: &mut Generator,
    node_key: &[u8; 32],
    own: (NodeId, SessionId),
    message: &Message,
    body: &[u8],
) -> Result<(Agreed, Vec<u8>), DropReason> {
    let noise = body
        .get(TIME_BYTES..)
        .ok_or(DropReason::HandshakeMalformed)?;
    let prefix_there = prefix(network, Kind::Initiation, message.sender, message.session);
    let prologue = network.prologue(&prefix_there, made_ns(body));
    let context = prefix(network, Kind::Response, own.0, own.1);
    let mut answer = || -> Result<(Agreed, Vec<u8>), snow::Error> {
        let builder = builder(network, generator, &prologue)?;
        let mut state = builder.local_private_key(node_key)?.build_responder()?;
        state.read_message(noise, &mut [0; NOISE_BYTES])?;
        let mut response = vec![0; NOISE_BYTES];
        let written = state.write_message(&[], &mut response)?;
        response.truncate(written);
        Ok((agreed(&mut state, &context, Role::Responder), response))
    };
    answer().map_err(|_| DropReason::HandshakeNoise)
}

fn builder<'a>(
    network: &'a Network,
    generator: &mut Generator,
    prologue: &'a [u8],
) -> Result<Builder<'a>, snow::Error> {
    let resolver = Box::new(SeededResolver::new(generator));
    Builder::with_resolver(NOISE.parse()?, resolver)
        .prologue(prologue)?
        .psk(0, &network.psk)
}

/// The response's prefix comes after the prologue, so it is bound by the keys instead.
fn agreed(state: &mut HandshakeState, context: &[u8], role: Role) -> Agreed {
    let mut split = state.dangerously_get_raw_split();
    let epoch = Epoch::first(&split, context, role);
    split.0.zeroize();
    split.1.zeroize();
    Agreed {
        epoch,
        hash: array(state.get_handshake_hash(), 0),
    }
}

#[cfg(test)]
#[path = "tests/handshake.rs"]
mod tests;
