use super::*;
use crate::keys::Secret;
use virga_state::batch::Batch;

fn entity() -> EntityKey {
    EntityKey::from(Secret::new([3; 32]))
}

fn channel() -> ChannelName {
    ChannelName::parse("a/b").unwrap()
}

async fn sign(signing: &Signing, events: &[&[u8]]) -> Vec<Verified> {
    let events = events.iter().map(|event| Bytes::copy_from_slice(event));
    signing.looked(None).await;
    let signed = signing.sign(&channel(), events.collect(), None).await;
    let (messages, too_large, _turn) = signed.unwrap();
    assert_eq!(too_large, 0);
    messages.iter().map(verified).collect()
}

fn verified(message: &Bytes) -> Verified {
    let (batch, payloads): (Batch, _) = bundle::parse(message).unwrap();
    let payloads: Vec<&[u8]> = payloads.into_iter().map(|range| &message[range]).collect();
    batch.verify(payloads.into_iter()).unwrap()
}

#[tokio::test]
async fn a_feed_goes_on_where_it_was_over_restarts() {
    let state = tempfile::tempdir().unwrap();
    let signing = Signing::new(state.path(), &entity());
    let one = sign(&signing, &[b"a", b"b"]).await;
    let two = sign(&signing, &[b"c"]).await;
    drop(signing);
    let signing = Signing::new(state.path(), &entity());
    let three = sign(&signing, &[b"d"]).await;
    let all = [&one[0], &two[0], &three[0]].map(Verified::statement);
    assert_eq!(all.map(|statement| statement.first), [1, 3, 4]);
    assert_eq!(all[1].parent, all[0].head);
    assert_eq!(all[2].parent, all[1].head);
}

#[tokio::test]
async fn many_events_are_signed_in_batches_and_what_is_too_large_is_counted() {
    let state = tempfile::tempdir().unwrap();
    let signing = Signing::new(state.path(), &entity());
    let mut events = vec![Bytes::from_static(b"x"); BATCH_EVENTS_MAX + 1];
    events.push(vec![0; SIGNED_PAYLOADS_MAX].into());
    events.push(vec![0; SIGNED_PAYLOADS_MAX + 1].into());
    let (messages, too_large, _turn) = signing.sign(&channel(), events, None).await.unwrap();
    let counts = messages
        .iter()
        .map(|message| verified(message).statement().count);
    assert_eq!(counts.collect::<Vec<_>>(), [512, 1, 1]);
    assert_eq!(too_large, 1);
    let largest = messages.iter().map(Bytes::len).max().unwrap();
    assert!(
        largest <= virga_transport::limits::MESSAGE_BYTES_MAX,
        "{largest}"
    );
}

#[tokio::test]
async fn what_was_observed_is_signed_once_and_forks_are_noticed() {
    let state = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let signing = Signing::new(state.path(), &entity());
    let stranger = EntityKey::from(Secret::new([4; 32]));
    let theirs = Signing::new(other.path(), &stranger);
    let seen = sign(&theirs, &[b"x"]).await;
    assert_eq!(signing.observe(&seen[0], 1), None);
    let mine = sign(&signing, &[b"a"]).await;
    let head = mine[0].batch().frontier[0].head;
    assert_eq!(head, seen[0].statement().head);
    let mine = sign(&signing, &[b"b"]).await;
    assert_eq!(mine[0].batch().frontier, []);
    // The same entity elsewhere, without what it has signed here.
    let twin = Signing::new(&other.path().join("elsewhere"), &stranger);
    let twin = sign(&twin, &[b"y"]).await;
    let proof = signing.observe(&twin[0], 2).unwrap();
    assert!(proof.verify().is_ok());
}

#[tokio::test]
async fn an_end_that_cannot_be_read_or_kept_is_not_guessed() {
    let state = tempfile::tempdir().unwrap();
    let signing = Signing::new(state.path(), &entity());
    sign(&signing, &[b"a"]).await;
    let path = signing.0.folder.join("a+b");
    let mut bytes = fs::read(&path).unwrap();
    for at in 0..bytes.len() {
        bytes[at] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(read(&path).is_err(), "byte {at}");
        bytes[at] ^= 1;
    }
    fs::write(&path, &bytes[1..]).unwrap();
    let again = Signing::new(state.path(), &entity());
    let refused = again
        .sign(&channel(), vec![Bytes::from_static(b"b")], None)
        .await;
    let told = refused.err().unwrap().to_string();
    assert!(
        told.contains("put a copy back") && told.contains("a+b"),
        "{told}"
    );
}

#[tokio::test]
async fn what_is_signed_names_what_the_logs_had_before_the_start() {
    let state = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let signing = Signing::new(state.path(), &entity());
    let theirs = Signing::new(other.path(), &EntityKey::from(Secret::new([4; 32])));
    let seen = sign(&theirs, &[b"x"]).await;
    signing.begin_looking();
    let early = signing.clone();
    let early = tokio::spawn(async move { sign(&early, &[b"a"]).await });
    // It has time to, and does not.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!early.is_finished());
    assert_eq!(signing.observe(&seen[0], 1), None);
    signing.looked_through(0);
    let early = early.await.unwrap();
    let head = early[0].batch().frontier[0].head;
    assert_eq!(head, seen[0].statement().head);
    // Nobody waits for ever.
    signing.begin_looking();
    signing.look_through([1]);
    be_late(&signing);
    assert_eq!(sign(&signing, &[b"b"]).await[0].statement().first, 2);
    assert!(!signing.is_looking(), "once is enough");
}

/// What is waited for took too long.
fn be_late(signing: &Signing) {
    let past = Instant::now().checked_sub(LOOKED_WITHIN).unwrap();
    signing.0.looking.send_modify(|looking| {
        looking.as_mut().unwrap().until = past;
    });
}

#[tokio::test]
async fn what_is_signed_waits_for_the_logs_that_are_waited_for_and_each_of_them_once() {
    let state = tempfile::tempdir().unwrap();
    let signing = Signing::new(state.path(), &entity());
    let until = || signing.0.looking.borrow().as_ref().map(|it| it.until);
    signing.begin_looking();
    let first = until();
    signing.look_through([0, 1]);
    // What is begun meanwhile has no more time than these.
    signing.begin_looking();
    signing.look_through([2]);
    assert_eq!(until(), first);
    for log in [0, 2] {
        signing.looked_through(log);
        assert_eq!(until(), first);
    }
    be_late(&signing);
    signing.looked(None).await;
    assert!(!signing.is_looking());
    // Those that took too long have no more time as they begin late, and another one has its own.
    signing.look_through([1]);
    assert!(!signing.is_looking());
    signing.begin_looking();
    signing.look_through([3]);
    signing.looked_through(1);
    assert!(signing.is_looking(), "it is not waited for the other one");
    signing.looked_through(3);
    assert!(!signing.is_looking());
    // Nothing is to be looked through.
    signing.begin_looking();
    signing.look_through([]);
    assert!(!signing.is_looking());
}

#[tokio::test]
async fn who_waited_too_long_for_logs_ends_no_wait_for_others() {
    let state = tempfile::tempdir().unwrap();
    let signing = Signing::new(state.path(), &entity());
    signing.begin_looking();
    signing.look_through([0]);
    let mut waits = std::pin::pin!(signing.looked(None));
    assert!(futures_util::poll!(&mut waits).is_pending());
    signing.looked_through(0);
    signing.begin_looking();
    signing.look_through([1]);
    waits.await;
    assert!(signing.is_looking());
}

#[tokio::test]
async fn what_is_late_is_not_signed() {
    let state = tempfile::tempdir().unwrap();
    let signing = Signing::new(state.path(), &entity());
    signing.begin_looking();
    let soon = Some(Instant::now() + Duration::from_millis(20));
    signing.looked(soon).await;
    assert!(signing.is_looking(), "others may have more time");
    let events = || vec![Bytes::from_static(b"a")];
    let late = signing.sign(&channel(), events(), soon).await;
    assert!(matches!(late, Err(SigningError::Late)));
    signing.looked_through(0);
    // Nor is what waits for another one's turn.
    let turn = signing.sign(&channel(), events(), None).await.unwrap().2;
    let soon = Some(Instant::now() + Duration::from_millis(20));
    let late = signing.sign(&channel(), events(), soon).await;
    assert!(matches!(late, Err(SigningError::Late)));
    drop(turn);
    assert_eq!(sign(&signing, &[b"b"]).await[0].statement().first, 2);
}
