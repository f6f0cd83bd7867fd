//! Handshake messages: Noise NKpsk0, IKpsk1 or XXpsk3 over 25519, ChaChaPoly and BLAKE2s; cookie, reset,
//! refusal.
//!
//! ```text
//!  mesh header   64   flags handshake, priority 7, destination, origin; session_id is the
//!                     receiver's (0 in an initiation, a cookie reply's is the initiator's)
//!  type           1   1 initiation, 2 response, 3 cookie reply, 4 reset, 5 completion, 6 refusal,
//!                     7 introduction
//!  suite          1   1 NKpsk0, 2 IKpsk1, 3 XXpsk3
//!  generation     2   of the network's pre-shared key
//!  sender         8   node id
//!  session        8   the sender's session_id (in a reset: the one it no longer knows)
//!  body           …   initiation: 8 time, Noise message · response, completion: Noise message ·
//!                     cookie: nothing · reset: 16 token · refusal: 1 offer · introduction: 1 to 640
//!  cookie        16   zero if none
//!  tag           16   keyed BLAKE2s over everything before it
//! ```
//!
//! The tag's key comes from the network's pre-shared key and the receiver's node id; it is checked
//! before any DH. The prologue binds network id, version, suites, the clear prefix and the time: when
//! the initiation was made, in nanoseconds of Unix time on its maker's clock. The Noise payload of an
//! initiation and of a response is the sender's offer (`policy`); that of an XX initiation is filled up with
//! zeros, so that no response is larger than what asked for it. Only XX has a completion: its third message.
//!
//! A refusal says why there is no session, for people: any member could have made it, so nothing follows from it.
//! An introduction says who the sender is to whoever does not have it among its peers; it is answered by nothing.

use crate::{
    keys::{Epoch, Role, first_16, same},
    policy::{Conflict, HandshakePolicy, Offer, Pattern},
    random::{Generator, SeededResolver},
    reason::DropReason,
};
use core::ops::{Range, RangeInclusive};
use snow::{Builder, HandshakeState};
use virga_ebpf::{
    hash::keyed,
    header::{Flags, Header, NodeId, OriginHash, PRIORITY_CONTROL, SessionId, Subnet, VERSION},
    limits::HEADER_BYTES,
};
use zeroize::{Zeroize, Zeroizing};

const PREFIX_BYTES: usize = 20;
const TIME_BYTES: usize = 8;
const TOKEN_BYTES: usize = 16;
const OFFER_BYTES: usize = 1;
/// A public key in the clear, one that is sealed, and what seals a payload.
const DH_BYTES: usize = 32;
const SEALED_KEY_BYTES: usize = 48;
const SEAL_BYTES: usize = 16;
/// Largest Noise message.
const NOISE_BYTES_MAX: usize = DH_BYTES + SEALED_KEY_BYTES + OFFER_BYTES + SEAL_BYTES;
const FOOT_BYTES: usize = 32;
/// Bytes of the longest introduction.
pub const INTRODUCTION_BYTES_MAX: usize = 640;
/// Where the sender's node id is, in the clear.
pub(crate) const SENDER_AT: usize = HEADER_BYTES + 4;
const BODY_AT: usize = HEADER_BYTES + PREFIX_BYTES;

const _: () = assert!(
    BODY_AT + TIME_BYTES + NOISE_BYTES_MAX + FOOT_BYTES <= crate::limits::DATAGRAM_BYTES_MIN
        && BODY_AT + INTRODUCTION_BYTES_MAX + FOOT_BYTES <= crate::limits::DATAGRAM_BYTES_MIN,
    "a handshake fits the smallest path"
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
    Completion,
    Refusal,
    Introduction,
}

impl Kind {
    const fn number(self) -> u8 {
        match self {
            Self::Initiation => 1,
            Self::Response => 2,
            Self::Cookie => 3,
            Self::Reset => 4,
            Self::Completion => 5,
            Self::Refusal => 6,
            Self::Introduction => 7,
        }
    }

    const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Initiation),
            2 => Some(Self::Response),
            3 => Some(Self::Cookie),
            4 => Some(Self::Reset),
            5 => Some(Self::Completion),
            6 => Some(Self::Refusal),
            7 => Some(Self::Introduction),
            _ => None,
        }
    }

    /// Whether a body may have so many bytes.
    fn fits(self, pattern: Pattern, bytes: usize) -> bool {
        const INTRODUCTION: RangeInclusive<usize> = 1..=INTRODUCTION_BYTES_MAX;
        match self {
            Self::Introduction => INTRODUCTION.contains(&bytes),
            _ => self.body_bytes(pattern) == Some(bytes),
        }
    }

    /// Bytes of its body; none where the pattern has no such message, or they are not always the same.
    const fn body_bytes(self, pattern: Pattern) -> Option<usize> {
        let short = DH_BYTES + OFFER_BYTES + SEAL_BYTES;
        Some(match (self, pattern) {
            (Self::Initiation, Pattern::Nk) => TIME_BYTES + short,
            (Self::Initiation, Pattern::Ik | Pattern::Xx) => TIME_BYTES + NOISE_BYTES_MAX,
            (Self::Response, Pattern::Nk | Pattern::Ik) => short,
            (Self::Response, Pattern::Xx) => NOISE_BYTES_MAX,
            (Self::Completion, Pattern::Nk | Pattern::Ik) | (Self::Introduction, _) => return None,
            (Self::Completion, Pattern::Xx) => SEALED_KEY_BYTES + SEAL_BYTES,
            (Self::Cookie, _) => 0,
            (Self::Reset, _) => TOKEN_BYTES,
            (Self::Refusal, _) => OFFER_BYTES,
        })
    }
}

/// Bytes of zeros after the offer in an initiation's payload.
const fn fill_bytes(pattern: Pattern) -> usize {
    match pattern {
        Pattern::Nk | Pattern::Ik => 0,
        Pattern::Xx => SEALED_KEY_BYTES,
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
        prologue.extend_from_slice(&Pattern::ALL.map(Pattern::suite));
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
    pub(crate) pattern: Pattern,
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
        && (header.session_id.0 == 0)
            == matches!(kind, Kind::Initiation | Kind::Reset | Kind::Introduction);
    if !header_fits {
        return Err(malformed);
    }
    let pattern = Pattern::from_suite(bytes[HEADER_BYTES + 1]).ok_or(DropReason::HandshakeSuite)?;
    let body_bytes = bytes.len() - BODY_AT - FOOT_BYTES;
    if !kind.fits(pattern, body_bytes) {
        return Err(malformed);
    }
    if bytes[HEADER_BYTES + 2..HEADER_BYTES + 4] != network.psk_generation.to_be_bytes() {
        return Err(DropReason::HandshakePskGeneration);
    }
    let foot = BODY_AT + body_bytes;
    if !same(&tag(tag_key, &bytes[..foot + 16]), &array(bytes, foot + 16)) {
        return Err(DropReason::HandshakeTag);
    }
    Ok(Message {
        kind,
        pattern,
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
    (kind, pattern): (Kind, Pattern),
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
    out.extend_from_slice(&prefix(network, (kind, pattern), route.sender, session));
    out.extend_from_slice(body);
    out.extend_from_slice(cookie);
    let made = tag(&network.tag_key(route.receiver), &out);
    out.extend_from_slice(&made);
    out
}

fn prefix(
    network: &Network,
    (kind, pattern): (Kind, Pattern),
    sender: NodeId,
    session: SessionId,
) -> [u8; PREFIX_BYTES] {
    let mut prefix = [0; PREFIX_BYTES];
    prefix[0] = kind.number();
    prefix[1] = pattern.suite();
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
    pub(crate) pattern: Pattern,
    /// Whether ML-KEM is mixed in before the session is established.
    pub(crate) is_hybrid: bool,
    /// The peer's node key, where Noise proved one.
    pub(crate) peer_key: Option<[u8; 32]>,
}

/// Who the other end is, and what is known of it.
#[derive(Clone, Copy)]
pub(crate) struct Other {
    pub(crate) id: NodeId,
    pub(crate) key: Option<[u8; 32]>,
    pub(crate) policy: HandshakePolicy,
}

impl Other {
    /// The node key that Noise proved, if it is this node's.
    fn check(&self, state: &HandshakeState, pattern: Pattern) -> Result<Option<[u8; 32]>, Refused> {
        let proven = match (pattern, state.get_remote_static()) {
            (Pattern::Nk, _) | (_, None) => return Ok(None),
            (_, Some(key)) => array::<32>(key, 0),
        };
        let is_known = self.key.is_none_or(|key| key == proven);
        if !is_known || virga_ebpf::hash::node_id(&proven) != self.id {
            return Err(Refused::Dropped(DropReason::HandshakeNodeKey));
        }
        Ok(Some(proven))
    }
}

/// Why a handshake goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Nothing was believed; an initiator's state is as it was if the reason is [`DropReason::HandshakeNoise`].
    Dropped(DropReason),
    /// It is authentic, and the two policies contradict each other.
    Conflict(Conflict),
}

/// When an initiation was made, by its body, whose length [`parse`] has checked.
pub(crate) fn made_ns(body: &[u8]) -> u64 {
    body.first_chunk().copied().map_or(0, u64::from_be_bytes)
}

/// The offer at the start of a payload.
fn offer(payload: &[u8]) -> Result<Offer, Refused> {
    let read = payload.first().and_then(|&byte| Offer::from_byte(byte));
    read.ok_or(Refused::Dropped(DropReason::HandshakeMalformed))
}

/// The initiator's half, waiting for the response.
pub(crate) struct Initiator {
    state: HandshakeState,
    pattern: Pattern,
    body: Vec<u8>,
}

impl Initiator {
    /// Starts at `made_ns` towards `other`. `None` only if the Noise library refuses its own parameters, which
    /// no peer can bring about.
    pub(crate) fn start(
        network: &Network,
        generator: &mut Generator,
        node_key: &[u8; 32],
        (sender, session): (NodeId, SessionId),
        other: &Other,
        made_ns: u64,
    ) -> Option<Self> {
        let pattern = other.policy.begins_with(other.key.is_some());
        let prefix = prefix(network, (Kind::Initiation, pattern), sender, session);
        let prologue = network.prologue(&prefix, made_ns);
        let mut builder = builder(network, pattern, generator, &prologue).ok()?;
        if pattern != Pattern::Nk {
            builder = builder.local_private_key(node_key).ok()?;
        }
        if let (Pattern::Nk | Pattern::Ik, Some(key)) = (pattern, &other.key) {
            builder = builder.remote_public_key(key).ok()?;
        }
        let mut state = builder.build_initiator().ok()?;
        let mut payload = vec![other.policy.offer().byte()];
        payload.resize(OFFER_BYTES + fill_bytes(pattern), 0);
        let mut body = vec![0; Kind::Initiation.body_bytes(pattern)?];
        body[..TIME_BYTES].copy_from_slice(&made_ns.to_be_bytes());
        let written = state
            .write_message(&payload, &mut body[TIME_BYTES..])
            .ok()?;
        (TIME_BYTES + written == body.len()).then_some(Self {
            state,
            pattern,
            body,
        })
    }

    /// By which pattern.
    pub(crate) fn pattern(&self) -> Pattern {
        self.pattern
    }

    /// The initiation's body: its time and the Noise message; the same each time it is sent.
    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }

    /// Takes the response; gives what was agreed, and the body of the completion where there is one. A forged
    /// one leaves the state as it was.
    pub(crate) fn finish(
        &mut self,
        network: &Network,
        other: &Other,
        response: &Message,
        body: &[u8],
    ) -> Result<(Agreed, Option<Vec<u8>>), Refused> {
        let forged = Refused::Dropped(DropReason::HandshakeNoise);
        if response.pattern != self.pattern {
            return Err(forged);
        }
        let mut payload = [0; NOISE_BYTES_MAX];
        let read = self.state.read_message(body, &mut payload);
        let read = read.map_err(|_| forged)?;
        let peer_key = other.check(&self.state, self.pattern)?;
        let judged = other.policy.judge(self.pattern, offer(&payload[..read])?);
        let is_hybrid = judged.map_err(Refused::Conflict)?;
        let mut completion = None;
        if self.pattern == Pattern::Xx {
            let mut third = vec![0; SEALED_KEY_BYTES + SEAL_BYTES];
            let written = self.state.write_message(&[], &mut third);
            written.map_err(|_| forged)?;
            completion = Some(third);
        }
        let kind = (Kind::Response, self.pattern);
        let context = prefix(network, kind, response.sender, response.session);
        let mut agreed = agreed(&mut self.state, &context, Role::Initiator, self.pattern);
        (agreed.is_hybrid, agreed.peer_key) = (is_hybrid, peer_key);
        Ok((agreed, completion))
    }
}

/// The responder's half of XX, waiting for the completion.
pub(crate) struct Awaiting {
    state: HandshakeState,
    context: [u8; PREFIX_BYTES],
    is_hybrid: bool,
}

impl Awaiting {
    /// Takes the completion. One that is refused leaves nothing that another could be tried on: whoever makes
    /// one is a member and sees both session ids, and could as well lose the packets.
    pub(crate) fn finish(mut self, other: &Other, body: &[u8]) -> Result<Agreed, Refused> {
        let read = self.state.read_message(body, &mut [0; NOISE_BYTES_MAX]);
        read.map_err(|_| Refused::Dropped(DropReason::HandshakeNoise))?;
        let peer_key = other.check(&self.state, Pattern::Xx)?;
        let (state, context) = (&mut self.state, &self.context);
        let mut agreed = agreed(state, context, Role::Responder, Pattern::Xx);
        (agreed.is_hybrid, agreed.peer_key) = (self.is_hybrid, peer_key);
        Ok(agreed)
    }
}

/// What answering an initiation gives.
pub(crate) enum Answer {
    Agreed(Box<Agreed>),
    Awaiting(Box<Awaiting>),
}

/// Answers an initiation as node `own.0` with session `own.1`: how far that leads, and the response's
/// Noise message.
pub(crate) fn respond(
    network: &Network,
    generator: &mut Generator,
    node_key: &[u8; 32],
    own: (NodeId, SessionId),
    other: &Other,
    message: &Message,
    body: &[u8],
) -> Result<(Answer, Vec<u8>), Refused> {
    let noise = body.get(TIME_BYTES..);
    let noise = noise.ok_or(Refused::Dropped(DropReason::HandshakeMalformed))?;
    let pattern = message.pattern;
    let kind = (Kind::Initiation, pattern);
    let prefix_there = prefix(network, kind, message.sender, message.session);
    let prologue = network.prologue(&prefix_there, made_ns(body));
    let context = prefix(network, (Kind::Response, pattern), own.0, own.1);
    let mut payload = [0; NOISE_BYTES_MAX];
    let forged = |_: snow::Error| Refused::Dropped(DropReason::HandshakeNoise);
    let builder = builder(network, pattern, generator, &prologue).map_err(forged)?;
    let builder = builder.local_private_key(node_key).map_err(forged)?;
    let mut state = builder.build_responder().map_err(forged)?;
    let read = state.read_message(noise, &mut payload).map_err(forged)?;
    let peer_key = match pattern {
        Pattern::Ik => other.check(&state, pattern)?,
        Pattern::Nk | Pattern::Xx => None,
    };
    let judged = other.policy.judge(pattern, offer(&payload[..read])?);
    let is_hybrid = judged.map_err(Refused::Conflict)?;
    let mut response = vec![0; NOISE_BYTES_MAX];
    let answer = [other.policy.offer().byte()];
    let written = state
        .write_message(&answer, &mut response)
        .map_err(forged)?;
    response.truncate(written);
    if pattern == Pattern::Xx {
        let awaiting = Awaiting {
            state,
            context,
            is_hybrid,
        };
        return Ok((Answer::Awaiting(Box::new(awaiting)), response));
    }
    let mut agreed = agreed(&mut state, &context, Role::Responder, pattern);
    (agreed.is_hybrid, agreed.peer_key) = (is_hybrid, peer_key);
    Ok((Answer::Agreed(Box::new(agreed)), response))
}

fn builder<'a>(
    network: &'a Network,
    pattern: Pattern,
    generator: &mut Generator,
    prologue: &'a [u8],
) -> Result<Builder<'a>, snow::Error> {
    let resolver = Box::new(SeededResolver::new(generator));
    Builder::with_resolver(pattern.noise().parse()?, resolver)
        .prologue(prologue)?
        .psk(pattern.psk_at(), &network.psk)
}

/// The response's prefix comes after the prologue, so it is bound by the keys instead.
fn agreed(state: &mut HandshakeState, context: &[u8], role: Role, pattern: Pattern) -> Agreed {
    let mut split = state.dangerously_get_raw_split();
    let epoch = Epoch::first(&split, context, role);
    split.0.zeroize();
    split.1.zeroize();
    Agreed {
        epoch,
        hash: array(state.get_handshake_hash(), 0),
        pattern,
        is_hybrid: false,
        peer_key: None,
    }
}

#[cfg(test)]
#[path = "tests/handshake.rs"]
mod tests;
