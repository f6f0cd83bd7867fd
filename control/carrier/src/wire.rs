//! One connection as frames, over TCP or WebSocket.
//!
//! | frame | bytes |
//! |---|---|
//! | nothing: the connection lives | 0 |
//! | a [`Command`] | 1 |
//! | a mesh packet, header and sealed payload unchanged | 64 to 65,507 |
//!
//! Over TCP two bytes of length, big-endian, come before each; over WebSocket each is a binary message.

use crate::limits::FRAME_BYTES_MAX;
use bytes::{Buf, Bytes, BytesMut};
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use std::io;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf},
    net::TcpStream,
};
use tokio_rustls::TlsStream;
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message, error::ProtocolError, protocol::WebSocketConfig},
};
use tokio_util::either::Either;
use virga_ebpf::{
    header::{Header, MAGIC, VERSION},
    limits::HEADER_BYTES,
};

/// Bytes of a length.
const LENGTH_BYTES: usize = 2;
/// Bytes of frames that go out in one write.
const WRITE_BYTES: usize = 64 * 1024;

/// The bytes below: with TLS or without.
pub type Bottom = Either<TcpStream, TlsStream<TcpStream>>;

/// What an end says of the connection itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// UDP works: the other end is to use it.
    Leave = 1,
    /// It does so; nothing follows.
    Bye = 2,
}

/// What came.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// The connection lives.
    Nothing,
    /// See there.
    Command(Command),
    /// A packet whose header's length is right.
    Packet(Bytes),
}

/// Why there is no next frame.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The connection ended.
    #[error("the connection was closed")]
    Closed,
    /// The system, or TLS.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// A frame that is none, or too large.
    #[error("what came is no frame of a carrier's")]
    Malformed,
    /// WebSocket's own rules.
    #[error("{0}")]
    WebSocket(Box<tungstenite::Error>),
}

impl From<tungstenite::Error> for WireError {
    fn from(error: tungstenite::Error) -> Self {
        match error {
            tungstenite::Error::ConnectionClosed
            | tungstenite::Error::AlreadyClosed
            | tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => {
                Self::Closed
            }
            tungstenite::Error::Io(error) => Self::Io(error),
            tungstenite::Error::Capacity(_) => Self::Malformed,
            other => Self::WebSocket(Box::new(other)),
        }
    }
}

/// A connection.
#[derive(Debug)]
pub enum Wire {
    /// Plain.
    Tcp(Box<Bottom>),
    /// After WebSocket's handshake.
    WebSocket(Box<WebSocketStream<Bottom>>),
}

/// Frames in.
#[derive(Debug)]
pub enum Reader {
    /// With what was read and is no whole frame yet.
    Tcp(ReadHalf<Bottom>, BytesMut),
    /// Messages.
    WebSocket(SplitStream<WebSocketStream<Bottom>>),
}

/// Frames out.
#[derive(Debug)]
pub enum Writer {
    /// With what is not written yet.
    Tcp(WriteHalf<Bottom>, BytesMut),
    /// Messages.
    WebSocket(SplitSink<WebSocketStream<Bottom>, Message>),
}

/// Bounds of WebSocket's own buffers: no message is larger than a frame.
#[must_use]
pub fn websocket_bounds() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(WRITE_BYTES)
        .write_buffer_size(WRITE_BYTES)
        .max_write_buffer_size(4 * WRITE_BYTES)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX))
}

impl Wire {
    /// Sends one message of the hello.
    ///
    /// # Errors
    /// [`WireError`].
    pub async fn say(&mut self, message: Bytes) -> Result<(), WireError> {
        match self {
            Self::Tcp(bottom) => {
                let mut bytes = BytesMut::new();
                let length = u16::try_from(message.len()).map_err(|_| WireError::Malformed)?;
                bytes.extend_from_slice(&length.to_be_bytes());
                bytes.extend_from_slice(&message);
                bottom.write_all_buf(&mut bytes).await?;
                bottom.flush().await?;
            }
            Self::WebSocket(socket) => socket.send(Message::Binary(message)).await?,
        }
        Ok(())
    }

    /// Awaits one of so many bytes; nothing that follows is read.
    ///
    /// # Errors
    /// [`WireError`].
    pub async fn hear(&mut self, bytes: usize) -> Result<Bytes, WireError> {
        match self {
            Self::Tcp(bottom) => {
                let length = bottom.read_u16().await.map_err(ended)?;
                if usize::from(length) != bytes {
                    return Err(WireError::Malformed);
                }
                let mut message = vec![0; bytes];
                bottom.read_exact(&mut message).await.map_err(ended)?;
                Ok(message.into())
            }
            Self::WebSocket(socket) => loop {
                match socket.next().await.ok_or(WireError::Closed)?? {
                    Message::Binary(message) if message.len() == bytes => return Ok(message),
                    Message::Ping(_) | Message::Pong(_) => {}
                    Message::Close(_) => return Err(WireError::Closed),
                    Message::Binary(_) | Message::Text(_) | Message::Frame(_) => {
                        return Err(WireError::Malformed);
                    }
                }
            },
        }
    }

    /// Both directions, each by itself.
    #[must_use]
    pub fn split(self) -> (Reader, Writer) {
        match self {
            Self::Tcp(bottom) => {
                let (read, write) = tokio::io::split(*bottom);
                let write = Writer::Tcp(write, BytesMut::new());
                (Reader::Tcp(read, BytesMut::new()), write)
            }
            Self::WebSocket(socket) => {
                let (write, read) = (*socket).split();
                (Reader::WebSocket(read), Writer::WebSocket(write))
            }
        }
    }
}

/// An end in the middle is an end.
fn ended(error: io::Error) -> WireError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset => WireError::Closed,
        _ => WireError::Io(error),
    }
}

impl Reader {
    /// The bytes of the next frame; what was read of one is kept when the caller stops waiting.
    ///
    /// # Errors
    /// [`WireError`]; the connection is of no more use.
    async fn next(&mut self) -> Result<Bytes, WireError> {
        match self {
            Self::Tcp(read, buffer) => loop {
                if let Some(frame) = take(buffer)? {
                    return Ok(frame);
                }
                buffer.reserve(FRAME_BYTES_MAX + LENGTH_BYTES);
                if read.read_buf(buffer).await? == 0 {
                    return Err(WireError::Closed);
                }
            },
            Self::WebSocket(read) => loop {
                match read.next().await.ok_or(WireError::Closed)?? {
                    Message::Binary(bytes) => return Ok(bytes),
                    // The library answers them.
                    Message::Ping(_) | Message::Pong(_) => {}
                    Message::Close(_) => return Err(WireError::Closed),
                    Message::Text(_) | Message::Frame(_) => return Err(WireError::Malformed),
                }
            },
        }
    }

    /// The next frame.
    ///
    /// # Errors
    /// [`WireError`].
    pub async fn frame(&mut self) -> Result<Frame, WireError> {
        parse(self.next().await?)
    }
}

/// The first whole frame of what was read; none where more is to come.
///
/// # Errors
/// [`WireError::Malformed`] where its length is none of a frame's.
pub fn take(buffer: &mut BytesMut) -> Result<Option<Bytes>, WireError> {
    let Some(length) = buffer.first_chunk::<LENGTH_BYTES>() else {
        return Ok(None);
    };
    let bytes = usize::from(u16::from_be_bytes(*length));
    if bytes > FRAME_BYTES_MAX {
        return Err(WireError::Malformed);
    }
    if buffer.len() < LENGTH_BYTES + bytes {
        return Ok(None);
    }
    buffer.advance(LENGTH_BYTES);
    Ok(Some(buffer.split_to(bytes).freeze()))
}

/// Reads a frame.
///
/// # Errors
/// [`WireError::Malformed`].
pub fn parse(bytes: Bytes) -> Result<Frame, WireError> {
    match *bytes {
        [] => return Ok(Frame::Nothing),
        [1] => return Ok(Frame::Command(Command::Leave)),
        [2] => return Ok(Frame::Command(Command::Bye)),
        _ => {}
    }
    let header = bytes.first_chunk::<HEADER_BYTES>().map(Header::decode);
    let header = header.ok_or(WireError::Malformed)?;
    let is_ours = header.magic == MAGIC && header.version == VERSION;
    let length = HEADER_BYTES + usize::from(header.payload_len);
    match is_ours && length == bytes.len() {
        true => Ok(Frame::Packet(bytes)),
        false => Err(WireError::Malformed),
    }
}

impl Writer {
    /// Puts a frame behind those that wait to be written.
    ///
    /// # Errors
    /// [`WireError`].
    pub async fn put(&mut self, frame: Bytes) -> Result<(), WireError> {
        match self {
            Self::Tcp(_, buffer) => {
                let length = u16::try_from(frame.len()).map_err(|_| WireError::Malformed)?;
                buffer.extend_from_slice(&length.to_be_bytes());
                buffer.extend_from_slice(&frame);
                if buffer.len() >= WRITE_BYTES {
                    self.flush().await?;
                }
            }
            Self::WebSocket(write) => write.feed(Message::Binary(frame)).await?,
        }
        Ok(())
    }

    /// Writes all of them.
    ///
    /// # Errors
    /// [`WireError`].
    pub async fn flush(&mut self) -> Result<(), WireError> {
        match self {
            Self::Tcp(write, buffer) => {
                write.write_all_buf(buffer).await?;
                write.flush().await?;
            }
            Self::WebSocket(write) => write.flush().await?,
        }
        Ok(())
    }

    /// Says that nothing follows.
    ///
    /// # Errors
    /// [`WireError`].
    pub async fn finish(&mut self) -> Result<(), WireError> {
        self.flush().await?;
        match self {
            Self::Tcp(write, _) => write.shutdown().await?,
            Self::WebSocket(write) => write.close().await?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(payload: usize) -> Vec<u8> {
        let header = Header {
            payload_len: u16::try_from(payload).unwrap(),
            ..Header::default()
        };
        let mut bytes = header.encode().to_vec();
        bytes.resize(HEADER_BYTES + payload, 7);
        bytes
    }

    #[test]
    fn frames_are_what_they_say() {
        let parsed = |bytes: &[u8]| parse(Bytes::copy_from_slice(bytes)).ok();
        assert_eq!(parsed(&[]), Some(Frame::Nothing));
        assert_eq!(parsed(&[1]), Some(Frame::Command(Command::Leave)));
        assert_eq!(parsed(&[2]), Some(Frame::Command(Command::Bye)));
        let whole = packet(100);
        assert_eq!(parsed(&whole), Some(Frame::Packet(whole.clone().into())));
        let mut alien = whole.clone();
        alien[0] ^= 1;
        for wrong in [&[3][..], &[1, 1], &whole[..63], &whole[..163], &alien] {
            assert_eq!(parsed(wrong), None, "{} bytes", wrong.len());
        }
    }

    #[test]
    fn a_length_beyond_any_packet_is_refused_before_its_bytes_come() {
        let mut buffer = BytesMut::from(&[0xff, 0xff][..]);
        assert!(matches!(take(&mut buffer), Err(WireError::Malformed)));
        let mut buffer = BytesMut::from(&[0, 2, 9][..]);
        assert!(matches!(take(&mut buffer), Ok(None)));
        buffer.extend_from_slice(&[8, 0, 0]);
        assert_eq!(take(&mut buffer).unwrap().unwrap(), &[9, 8][..]);
        assert_eq!(take(&mut buffer).unwrap().unwrap(), &[][..]);
        assert!(buffer.is_empty());
    }
}
