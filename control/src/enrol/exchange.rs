//! The exchange: four messages between who invites and who joins, each read within a deadline.

use super::line::Invitation;
use crate::{
    hex,
    keys::{NodeKey, Secret},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use snow::{Builder, HandshakeState, TransportState};
use std::{io, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use zeroize::{Zeroize, Zeroizing};

const PATTERN: &str = "Noise_IKpsk1_25519_ChaChaPoly_BLAKE2s";
/// What the hash of the exchange begins with, before the line's bytes.
const PROLOGUE: &[u8] = b"virga enrol v1";
/// Where `IKpsk1` mixes the PSK in: at the end of the first message's tokens, before what it carries.
const PSK_PLACE: u8 = 1;
/// Bytes of the longest message, many times what any needs.
const MESSAGE_BYTES_MAX: usize = 4096;
/// Of why something failed, no more goes into a message.
const WHY_CHARACTERS_MAX: usize = 1000;
/// How long each message may take.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Why an exchange ended early.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The connection failed, or was closed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The other end was silent.
    #[error("the other end was silent for {} s", PATIENCE.as_secs())]
    Silent,
    /// Not sealed as the line says: another line's secret, or not this program at all.
    #[error("what came was not sealed with this invitation's secret")]
    Sealed,
    /// Sealed as it should be, and not understood: another version of this program.
    #[error("what came is not understood ({what}): do both ends run the same version of Virga?")]
    Content {
        /// What of it.
        what: String,
    },
    /// Who was let in could not write its files.
    #[error("it could not write its files: {why}")]
    Unwritten {
        /// What it said.
        why: String,
    },
    /// The other end does not want it.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// What who invites says when it does not let somebody join.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the inviting node refuses: {0}")]
pub struct Refusal(pub String);

/// Who wants to join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Joiner {
    /// Its node's name.
    pub name: String,
    /// Its entity's public key.
    #[serde(with = "key")]
    pub entity_key: [u8; 32],
    /// Where it is reached, where it was told.
    pub address: Option<SocketAddr>,
    /// What its own end of the connection is: another address there than here tells of a translation between.
    pub seen_here: SocketAddr,
    /// Its UDP port.
    pub port: u16,
}

/// What a node needs to know of the network, and of the node that invites it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Welcome {
    /// The network's id.
    pub network: String,
    /// Its pre-shared key, in hex.
    pub psk: String,
    /// Which generation of it.
    pub psk_generation: u16,
    /// The inviting node's name.
    pub name: String,
    /// Its entity's public key; the line has its address and node key.
    #[serde(with = "key")]
    pub entity_key: [u8; 32],
    /// The subnet of both.
    pub subnet: String,
    /// Whether neighbours tell each other who leads where, and other subnets as one.
    pub routing: Option<ByEach>,
}

/// What neighbours tell of other subnets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ByEach {
    /// Each of their nodes.
    Node,
    /// That they are there.
    Subnet,
}

impl Drop for Welcome {
    fn drop(&mut self) {
        self.psk.zeroize();
    }
}

impl Welcome {
    /// The network's pre-shared key.
    ///
    /// # Errors
    /// When it is none.
    pub fn psk(&self) -> Result<Secret, EnrolError> {
        let key = hex::decode(&self.psk).ok().filter(|key| *key != [0; 32]);
        key.map(Secret::new).ok_or_else(|| EnrolError::Content {
            what: "the network's key".into(),
        })
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Reply {
    Welcome(Welcome),
    Refused(String),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    /// The files are written.
    Written,
    /// They could not be.
    Failed(String),
}

fn shortened(why: &str) -> String {
    why.chars().take(WHY_CHARACTERS_MAX).collect()
}

/// A public key in hex.
mod key {
    use crate::hex;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(key: &[u8; 32], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&hex::encode(key))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
        hex::decode(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// Which end of the exchange.
#[derive(Clone, Copy)]
enum End {
    Inviter,
    Joiner,
}

/// One end while both are not known to each other yet.
fn begin(invitation: &Invitation, own: &NodeKey, end: End) -> HandshakeState {
    let prologue = Zeroizing::new([PROLOGUE, &invitation.bytes()[..]].concat());
    let pattern = PATTERN.parse().expect("the pattern is one of snow's");
    let builder = Builder::new(pattern)
        .prologue(&prologue)
        .and_then(|builder| builder.psk(PSK_PLACE, invitation.secret.expose()))
        .and_then(|builder| builder.local_private_key(own.secret.expose()));
    let state = match end {
        End::Inviter => builder.and_then(Builder::build_responder),
        End::Joiner => builder
            .and_then(|builder| builder.remote_public_key(&invitation.node_key))
            .and_then(Builder::build_initiator),
    };
    state.expect("every key that the pattern needs was given once")
}

fn unsealed(_: snow::Error) -> EnrolError {
    EnrolError::Sealed
}

/// A JSON text, erased when it was used.
fn text(message: &impl Serialize) -> Zeroizing<Vec<u8>> {
    // Large enough never to move, which would leave a copy behind.
    let mut text = Zeroizing::new(Vec::with_capacity(MESSAGE_BYTES_MAX));
    serde_json::to_writer(&mut *text, message).expect("a vector takes any JSON");
    text
}

fn understood<T: DeserializeOwned>(text: &[u8]) -> Result<T, EnrolError> {
    serde_json::from_slice(text).map_err(|error| EnrolError::Content {
        // Its words may quote what came, which may be secret: the place is enough.
        what: format!("column {}", error.column()),
    })
}

async fn in_time<T>(work: impl Future<Output = io::Result<T>>) -> Result<T, EnrolError> {
    let result = timeout(PATIENCE, work).await;
    Ok(result.map_err(|_| EnrolError::Silent)??)
}

async fn write(stream: &mut TcpStream, sealed: &[u8]) -> Result<(), EnrolError> {
    let too_long = |_| io::Error::other("a message is longer than any should be");
    let bytes = u16::try_from(sealed.len()).map_err(too_long)?;
    let framed = [&bytes.to_be_bytes()[..], sealed].concat();
    in_time(stream.write_all(&framed)).await
}

async fn read(stream: &mut TcpStream) -> Result<Vec<u8>, EnrolError> {
    in_time(async {
        let bytes = usize::from(stream.read_u16().await?);
        // Whoever can connect can say any length.
        if bytes > MESSAGE_BYTES_MAX {
            return Err(io::Error::other(format!("a message of {bytes} bytes")));
        }
        let mut sealed = vec![0; bytes];
        stream.read_exact(&mut sealed).await?;
        Ok(sealed)
    })
    .await
}

/// Either end once both are known to each other.
#[derive(Debug)]
struct Line {
    stream: TcpStream,
    noise: TransportState,
}

impl Line {
    async fn write(&mut self, message: &impl Serialize) -> Result<(), EnrolError> {
        let mut sealed = vec![0; MESSAGE_BYTES_MAX];
        let bytes = self.noise.write_message(&text(message), &mut sealed);
        let bytes = bytes.map_err(unsealed)?;
        write(&mut self.stream, &sealed[..bytes]).await
    }

    async fn read<T: DeserializeOwned>(&mut self) -> Result<T, EnrolError> {
        let sealed = read(&mut self.stream).await?;
        let mut opened = Zeroizing::new(vec![0; MESSAGE_BYTES_MAX]);
        let bytes = self.noise.read_message(&sealed, &mut opened);
        understood(&opened[..bytes.map_err(unsealed)?])
    }
}

/// At who invites: somebody with the line's secret, who waits for an answer.
#[derive(Debug)]
pub struct Asking {
    /// Who it says it is.
    pub joiner: Joiner,
    /// The node key that it has proven to have.
    pub node_key: [u8; 32],
    /// Where it called from.
    pub from: SocketAddr,
    stream: TcpStream,
    noise: HandshakeState,
}

/// Reads the first message of somebody who has connected.
///
/// # Errors
/// [`EnrolError`]; whoever does not know the secret comes no further.
pub async fn hear(
    mut stream: TcpStream,
    from: SocketAddr,
    invitation: &Invitation,
    own: &NodeKey,
) -> Result<Asking, EnrolError> {
    let mut noise = begin(invitation, own, End::Inviter);
    let sealed = read(&mut stream).await?;
    let mut opened = vec![0; MESSAGE_BYTES_MAX];
    let bytes = noise.read_message(&sealed, &mut opened).map_err(unsealed)?;
    let joiner = understood(&opened[..bytes])?;
    let theirs = noise
        .get_remote_static()
        .and_then(|key| key.try_into().ok());
    Ok(Asking {
        joiner,
        node_key: theirs.ok_or(EnrolError::Sealed)?,
        from,
        stream,
        noise,
    })
}

impl Asking {
    async fn reply(mut self, reply: &Reply) -> Result<Line, EnrolError> {
        let mut sealed = vec![0; MESSAGE_BYTES_MAX];
        let bytes = self.noise.write_message(&text(reply), &mut sealed);
        let bytes = bytes.map_err(unsealed)?;
        write(&mut self.stream, &sealed[..bytes]).await?;
        let noise = self.noise.into_transport_mode().map_err(unsealed)?;
        Ok(Line {
            stream: self.stream,
            noise,
        })
    }

    /// Says why not. The invitation stays open.
    ///
    /// # Errors
    /// [`EnrolError`]
    pub async fn refuse(self, why: &str) -> Result<(), EnrolError> {
        self.reply(&Reply::Refused(shortened(why))).await.map(drop)
    }

    /// Lets it in, and waits until it has written its files.
    ///
    /// # Errors
    /// [`EnrolError`]: it has not.
    pub async fn welcome(self, welcome: Welcome) -> Result<Ready, EnrolError> {
        let mut line = self.reply(&Reply::Welcome(welcome)).await?;
        match line.read().await? {
            Word::Written => Ok(Ready(line)),
            Word::Failed(why) => Err(EnrolError::Unwritten { why }),
        }
    }
}

/// At who invites: somebody whose files are written, and who waits for ours.
#[derive(Debug)]
pub struct Ready(Line);

impl Ready {
    /// Says what became of this node's own file.
    ///
    /// # Errors
    /// [`EnrolError`]
    pub async fn tell(mut self, written: Result<(), &str>) -> Result<(), EnrolError> {
        let word = match written {
            Ok(()) => Word::Written,
            Err(why) => Word::Failed(shortened(why)),
        };
        self.0.write(&word).await
    }
}

/// At who joins: let in, with its files still to write.
#[derive(Debug)]
pub struct Welcomed {
    /// What it was told.
    pub welcome: Welcome,
    line: Line,
}

/// Asks who invites to be let in. `joiner` is told this end of the connection.
///
/// # Errors
/// [`EnrolError`]; nothing was written at either end.
pub async fn join(
    mut stream: TcpStream,
    invitation: &Invitation,
    own: &NodeKey,
    joiner: &Joiner,
) -> Result<Welcomed, EnrolError> {
    let mut noise = begin(invitation, own, End::Joiner);
    let mut sealed = vec![0; MESSAGE_BYTES_MAX];
    let bytes = noise.write_message(&text(joiner), &mut sealed);
    write(&mut stream, &sealed[..bytes.map_err(unsealed)?]).await?;
    let answer = read(&mut stream).await?;
    let mut opened = Zeroizing::new(vec![0; MESSAGE_BYTES_MAX]);
    let bytes = noise.read_message(&answer, &mut opened).map_err(unsealed)?;
    match understood(&opened[..bytes])? {
        Reply::Refused(why) => Err(Refusal(why).into()),
        Reply::Welcome(welcome) => {
            let noise = noise.into_transport_mode().map_err(unsealed)?;
            let line = Line { stream, noise };
            Ok(Welcomed { welcome, line })
        }
    }
}

impl Welcomed {
    /// Says that the files are written, and waits until the other end's is.
    ///
    /// # Errors
    /// [`EnrolError`]: it is not, or that is not known.
    pub async fn written(mut self) -> Result<(), EnrolError> {
        self.line.write(&Word::Written).await?;
        match self.line.read().await? {
            Word::Written => Ok(()),
            Word::Failed(why) => Err(Refusal(why).into()),
        }
    }

    /// Says that they could not be; the invitation stays open.
    ///
    /// # Errors
    /// [`EnrolError`]
    pub async fn failed(mut self, why: &str) -> Result<(), EnrolError> {
        self.line.write(&Word::Failed(shortened(why))).await
    }
}
