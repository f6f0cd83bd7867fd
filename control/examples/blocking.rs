//! The same without `async`: asks on one channel, and waits for the answer on another:
//! `cargo run --example blocking -- /run/virga/edge-a.sock ask answers "how much?"`

use std::{error::Error, path::Path, time::Duration};
use virga::mesh::blocking::Mesh;

/// How long subscribers, and the answer, are waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Publishes `question` on one channel and gives the next event of another.
pub(crate) fn ask(
    socket: &Path,
    (questions, answers): (&str, &str),
    question: &str,
) -> Result<Vec<u8>, Box<dyn Error>> {
    let mesh = Mesh::open(socket)?;
    let mut answers = mesh.subscribe(answers)?;
    let subscribers = mesh.wait_for_subscribers(questions, 1, PATIENCE)?;
    subscribers.ok_or("nobody listens to questions")?;
    mesh.publish(questions, question.as_bytes())?;
    let answer = answers.next_within(PATIENCE).ok_or("no answer came")?;
    let answer = answer.ok_or("the node has stopped")??;
    Ok(answer.payload.to_vec())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, questions, answers, question] = &arguments[..] else {
        return Err("usage: blocking SOCKET QUESTIONS ANSWERS QUESTION".into());
    };
    let answer = ask(socket.as_ref(), (questions, answers), question)?;
    println!("{}", String::from_utf8_lossy(&answer));
    Ok(())
}
