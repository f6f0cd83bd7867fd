//! A panic, as something that is noticed and gone on from.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
};

/// Characters of a panic's words.
const WORDS_MAX: usize = 200;

/// Does it to its end, or to its panic, of which it gives the words. What it has borrowed is then as where it is dropped
/// half-way, and that has to be borne anyway.
pub(crate) async fn caught<T>(doing: impl Future<Output = T>) -> Result<T, String> {
    let mut doing = pin!(doing);
    std::future::poll_fn(|context| {
        // After a panic it is polled no more.
        match catch_unwind(AssertUnwindSafe(|| doing.as_mut().poll(context))) {
            Ok(polled) => polled.map(Ok),
            Err(panic) => Poll::Ready(Err(words(&*panic))),
        }
    })
    .await
}

fn words(panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<&str>().copied();
    let said = said.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let said = said.unwrap_or("in no words");
    said.chars()
        .take(WORDS_MAX)
        .flat_map(char::escape_debug)
        .collect()
}
