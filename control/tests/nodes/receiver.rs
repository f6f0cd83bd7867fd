//! A member that publishes where it has no right, past each check that comes before the last one: nothing of it gets to
//! a subscriber or a log of a real daemon.

use virga::mesh::{Cursor, Replayed};
use virga_ebpf::header::Flags;
use virga_transport::{ChannelName, Mode, StreamSpec};

use crate::{
    hostile::without_tags,
    liar::{HONEST, LIES, Liar},
    payloads,
    stage::{Stage, eventually, in_time},
};

impl Liar {
    /// Opens a stream of a channel as any member does, and sends an event on it.
    fn publish(&mut self, (name, salt, mode): (&ChannelName, u32, Mode), event: &[u8]) {
        let spec = StreamSpec {
            name: name.clone(),
            salt,
            priority: 3,
            mode,
        };
        let (now_ns, router) = (self.now_ns(), self.router);
        let stream = self.node.open_stream(now_ns, router, &spec).unwrap();
        self.node.send(now_ns, router, stream, event).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_without_the_right_to_publish_reaches_no_subscriber_and_no_log() {
    let mut stage = Stage::new(&[HONEST, LIES]);
    without_tags(&mut stage);
    let line = format!("name = \"{}\"\n", HONEST.name);
    stage.edit("router", &line, &format!("{line}persist = true\n"));
    for name in ["router", "a"] {
        stage.start(name).await;
    }
    let router = stage.mesh("router").await;
    let mut heard = router.subscribe(HONEST.name).await.unwrap();
    let mut lies = router.subscribe(LIES.name).await.unwrap();
    let mut liar = Liar::new(&stage);
    liar.connect();

    let honest = ChannelName::parse(HONEST.name).unwrap();
    let own = ChannelName::parse(LIES.name).unwrap();
    // What the guard lets it send on.
    let admitted = own.hash(0);
    let salt = (1..).find(|salt| honest.hash(*salt) == admitted).unwrap();
    let counted =
        async |what: &str, liar: &mut Liar, count: fn(&virga::api::status::Status) -> u64| {
            eventually(what, async || {
                liar.turn();
                let status = stage.status("router").await;
                let channels = status.channels.iter().filter(|c| c.name == HONEST.name);
                assert!(channels.into_iter().all(|c| c.received == 0), "{what}");
                (count(&status) > 0).then_some(())
            })
            .await;
        };
    liar.publish((&honest, 0, Mode::Ordered), b"as it is");
    counted("the guard drops it", &mut liar, |status| {
        status.userspace.drops["unauthorised"].packets
    })
    .await;
    liar.publish((&honest, salt, Mode::Ordered), b"under an admitted hash");
    counted("the stream is refused", &mut liar, |status| {
        status.channel_reasons["stream_salt"]
    })
    .await;
    let length = u8::try_from(HONEST.name.len()).unwrap();
    let open = [&[16, 0, 0, 0, 0, 1, length], HONEST.name.as_bytes()].concat();
    let stream = liar.stream();
    liar.say((Flags(0), stream.0, admitted.0, 0), &open);
    counted("the packet is dropped", &mut liar, |status| {
        status.transport.drops["channel_mismatch"]
    })
    .await;

    // The same program gets through where it may, and so does who may publish: as the first.
    liar.publish((&own, 0, Mode::Unreliable), b"allowed");
    let arrived = in_time("what is allowed", async {
        loop {
            liar.turn();
            let next =
                tokio::time::timeout(std::time::Duration::from_millis(20), lies.next_delivery());
            if let Ok(event) = next.await {
                return event.unwrap().unwrap().payload;
            }
        }
    });
    assert_eq!(arrived.await, "allowed");
    let a = stage.mesh("a").await;
    a.publish(HONEST.name, b"honest").await.unwrap();
    assert_eq!(payloads(&mut heard, 1).await, ["honest"]);
    let mut kept = router.replay(HONEST.name, Cursor::Start).await.unwrap();
    let first = in_time("the log's first event", kept.next_kept()).await;
    let Replayed::Event(first) = first.unwrap().unwrap() else {
        panic!("the log has a gap");
    };
    assert_eq!(&first.payload[..], b"honest");
    let log = &stage.status("router").await.logs[0];
    assert_eq!(log.readable, 1);
}
