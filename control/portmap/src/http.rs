//! One request to a router: so many bytes, so much time, and no other place than that which was asked.

use crate::{
    Failure,
    limits::{BODY_BYTES_MAX, HEAD_BYTES_MAX, HTTP},
    url::Url,
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

/// What is sent beside the address.
#[derive(Debug, Default)]
pub struct Content {
    /// The action, where one is called for.
    pub action: Option<String>,
    /// Its arguments.
    pub body: String,
}

/// Asks, and reads the answer; one that leads elsewhere is not followed.
///
/// # Errors
/// [`Failure`].
pub async fn exchange(url: &Url, content: Content) -> Result<(StatusCode, String), Failure> {
    let done = timeout(HTTP, exchange_at_leisure(url, content)).await;
    done.map_err(|_| Failure::Silent)?
}

async fn exchange_at_leisure(url: &Url, content: Content) -> Result<(StatusCode, String), Failure> {
    let stream = TcpStream::connect(url.host).await?;
    let mut http = http1::Builder::new();
    http.max_buf_size(HEAD_BYTES_MAX);
    let (mut sender, connection) = http.handshake(TokioIo::new(stream)).await.map_err(unread)?;
    // Ends with the exchange.
    let mut tasks = JoinSet::new();
    tasks.spawn(connection);
    let request = Request::builder()
        .uri(&url.path)
        .header(header::HOST, url.host.to_string())
        .header(header::CONNECTION, "close");
    let request = match &content.action {
        Some(action) => request
            .method("POST")
            .header(header::CONTENT_TYPE, "text/xml; charset=\"utf-8\"")
            .header("SOAPAction", format!("\"{action}\"")),
        None => request.method("GET"),
    };
    let request = request.body(Full::new(Bytes::from(content.body)));
    let request = request.map_err(|_| Failure::Malformed("no request leads there".into()))?;
    let answer = sender.send_request(request).await.map_err(unread)?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), BODY_BYTES_MAX)
        .collect()
        .await;
    let body = body.map_err(|error| {
        let is_long = error.is::<LengthLimitError>();
        let why = if is_long {
            "it is longer than the limit"
        } else {
            "it breaks off"
        };
        Failure::Malformed(why.into())
    })?;
    // What a router calls itself may be in any character set.
    Ok((
        status,
        String::from_utf8_lossy(&body.to_bytes()).into_owned(),
    ))
}

/// In words of this node's own: the other end's are nothing for a log or a terminal.
fn unread(error: hyper::Error) -> Failure {
    if error.is_parse() {
        Failure::Malformed("it is no HTTP".into())
    } else {
        Failure::Silent
    }
}
