//! Panics, addresses that change, and addresses that are no use.

use super::*;
use crate::{
    is_private,
    limits::{PANIC_AGAIN, PANIC_AGAIN_MAX, PANIC_FORGOTTEN, PANICS_MAX},
    shown::{Shown, Wish},
};
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::watch;

/// Which hosts have a mapping.
fn hosts(router: &Mutex<Router>) -> Vec<Ipv4Addr> {
    let router = router.lock().unwrap();
    router.mappings.keys().map(|(host, _)| *host).collect()
}

#[tokio::test]
async fn a_panic_of_what_keeps_a_mapping_is_counted_said_and_gone_on_from_after_a_pause() {
    let (router, route, _tasks) = start(11, Router::default()).await;
    let left = Arc::new(AtomicU32::new(2));
    let shared = Arc::clone(&left);
    let read = move || {
        let take = |left: u32| left.checked_sub(1);
        let taken = shared.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        assert!(taken.is_err(), "a defect\u{1b}[2J");
        Ok(route.clone())
    };
    let keeper = keeper(Instant::now());
    let mut shown = keeper.subscribe();
    let (wish, wished) = watch::channel(Wish::On);
    let began = Instant::now();
    let task = tokio::spawn(keeper.run(wished, read));
    let first = shown.wait_for(|shown| shown.broken.is_some());
    let first = first.await.unwrap().clone();
    let words = first.broken.unwrap();
    assert!(
        words.contains("a defect") && !words.contains('\u{1b}'),
        "{words}"
    );
    assert_eq!(first.counts.panics, 1);
    let is_held = |shown: &Shown| shown.broken.is_none() && shown.announced().is_some();
    let held = shown.wait_for(is_held).await.unwrap().clone();
    assert_eq!(held.counts.panics, 2);
    assert!(
        began.elapsed() >= 3 * PANIC_AGAIN,
        "the second pause is twice the first"
    );
    // What is mapped is so all the while.
    left.store(1, Ordering::Relaxed);
    let third = shown
        .wait_for(|shown| shown.counts.panics == 3)
        .await
        .unwrap()
        .clone();
    assert!(third.announced().is_some() && third.broken.is_some());
    shown.wait_for(is_held).await.unwrap();
    assert_eq!(hosts(&router).len(), 1);
    wish.send_replace(Wish::End);
    task.await.unwrap();
    assert_eq!(hosts(&router).len(), 0);
}

#[tokio::test]
async fn a_mapping_that_is_panicked_over_again_and_again_is_left_and_made_anew() {
    let (router, route, _tasks) = start(12, Router::default()).await;
    let (now, mut keeper) = (Instant::now(), keeper(Instant::now()));
    keeper.turn(now, true, Ok(route.clone())).await;
    for n in 0..PANICS_MAX {
        assert_held(&keeper, Protocol::Pcp);
        assert_eq!(keeper.panicked(now, "a defect"), PANIC_AGAIN * (1 << n));
    }
    assert_eq!(keeper.shown().announced(), None);
    for _ in 0..100 {
        keeper.panicked(now, "a defect");
    }
    assert_eq!(keeper.panicked(now, "a defect"), PANIC_AGAIN_MAX);
    keeper.turn(now, true, Ok(route.clone())).await;
    assert_held(&keeper, Protocol::Pcp);
    let later = now + PANIC_FORGOTTEN;
    assert_eq!(keeper.panicked(later, "a defect"), PANIC_AGAIN);
    keeper.turn(later, false, Ok(route)).await;
    assert_eq!(hosts(&router).len(), 0);
}

#[tokio::test]
async fn a_panic_now_and_then_with_good_turns_in_between_costs_no_mapping() {
    let (router, route, _tasks) = start(26, Router::default()).await;
    let (began, mut keeper) = (Instant::now(), keeper(Instant::now()));
    keeper.turn(began, true, Ok(route.clone())).await;
    for n in 1..=2 * u64::from(PANICS_MAX) {
        let now = began + Duration::from_secs(1_200 * n);
        assert_eq!(keeper.panicked(now, "a defect"), PANIC_AGAIN, "{n}");
        assert_held(&keeper, Protocol::Pcp);
        router.lock().unwrap().epoch = 1_000 + u32::try_from(1_200 * n).unwrap();
        keeper.turn(now, true, Ok(route.clone())).await;
    }
    assert_held(&keeper, Protocol::Pcp);
}

/// A router by UPnP that takes its time for each answer, and maps nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_is_waited_for_keeps_nobody_from_seeing_that_there_is_another_one() {
    let (igd, _tasks) = serve(|request| {
        std::thread::sleep(Duration::from_secs(3));
        match request.contains("#GetExternalIPAddress\"") {
            true => address(),
            false => fault(718),
        }
    })
    .await;
    let now = Instant::now() - LEASE / 2;
    let made = Made {
        external: SocketAddrV4::new(OUTER, PORT),
        lease: Some(LEASE),
        epoch: None,
    };
    let route = |last| Route {
        gateway: Ipv4Addr::new(127, 53, 51, last),
        own: Ipv4Addr::LOCALHOST,
    };
    let keeper = Keeper::holding(setup(), now, route(27), igd, made);
    let (mut shown, began) = (keeper.subscribe(), Instant::now());
    let read = move || {
        let is_moved = began.elapsed() > Duration::from_secs(1);
        Ok(route(if is_moved { 28 } else { 27 }))
    };
    let (wish, wished) = watch::channel(Wish::On);
    let task = tokio::spawn(keeper.run(wished, read));
    shown
        .wait_for(|shown| shown.state == State::Searching)
        .await
        .unwrap();
    let failed = shown.borrow().counts.failed;
    assert_eq!(failed, [0; 3], "the old router was waited for");
    wish.send_replace(Wish::End);
    task.await.unwrap();
}

#[tokio::test]
async fn another_address_of_this_machine_has_the_port_mapped_to_that_and_no_more_to_the_old_one() {
    let (router, route, _tasks) = start(13, Router::default()).await;
    let (now, mut keeper) = (Instant::now(), keeper(Instant::now()));
    let after = |seconds: u64| now + Duration::from_secs(seconds);
    keeper.turn(now, true, Ok(route.clone())).await;
    let moved = Route {
        own: Ipv4Addr::new(127, 0, 0, 2),
        ..route.clone()
    };
    keeper.turn(after(20), true, Ok(moved.clone())).await;
    assert_held(&keeper, Protocol::Pcp);
    assert_eq!(hosts(&router), [moved.own]);
    // That is none that this machine sends to the router from: nothing is deleted in the name of another one.
    keeper.turn(after(40), true, Ok(route.clone())).await;
    assert_eq!(hosts(&router), [route.own, moved.own]);
    let announced = keeper.shown().announced().map(|at| at.port());
    assert_eq!(announced, Some(PORT + 1), "the old one has that port still");
    keeper.turn(after(60), false, Ok(route)).await;
    assert_eq!(hosts(&router), [moved.own]);
}

#[tokio::test]
async fn another_router_is_not_waited_for_before_others_know_that_the_old_one_has_no_mapping() {
    let (router, route, _tasks) = start(14, Router::default()).await;
    let mute = Router {
        is_mute: true,
        ..Router::default()
    };
    let (other, elsewhere, _more) = start(15, mute).await;
    let (now, mut keeper) = (Instant::now(), keeper(Instant::now()));
    let later = now + Duration::from_secs(20);
    keeper.turn(now, true, Ok(route)).await;
    let mut shown = keeper.subscribe();
    tokio::select! {
        () = keeper.turn(later, true, Ok(elsewhere.clone())) => panic!("it waits for the router"),
        told = shown.wait_for(|shown| shown.announced().is_none()) => drop(told),
    }
    other.lock().unwrap().is_mute = false;
    let later = later + Duration::from_secs(1);
    keeper.turn(later, true, Ok(elsewhere)).await;
    assert_held(&keeper, Protocol::Pcp);
    assert_eq!(hosts(&other).len(), 1);
    assert_eq!(hosts(&router).len(), 0);
}

#[tokio::test]
async fn a_way_out_that_is_gone_for_a_moment_costs_no_port() {
    let (router, route, _tasks) = start(16, Router::default()).await;
    let (now, mut keeper) = (Instant::now(), keeper(Instant::now()));
    let after = |seconds: u64| now + Duration::from_secs(seconds);
    keeper.turn(now, true, Ok(route.clone())).await;
    keeper
        .turn(after(20), true, Err("no default route".into()))
        .await;
    assert_eq!(keeper.shown().announced(), None);
    keeper.turn(after(25), true, Ok(route.clone())).await;
    assert_held(&keeper, Protocol::Pcp);
    assert_eq!(hosts(&router).len(), 1);
    keeper
        .turn(after(30), true, Err("no default route".into()))
        .await;
    keeper.turn(after(35), false, Err(String::new())).await;
    assert_eq!(hosts(&router).len(), 0);
}

#[tokio::test]
async fn an_outer_address_that_nobody_can_send_to_is_told_nobody_and_the_reason_is_said() {
    for (n, (outer, why)) in (18..).zip([
        ("192.168.1.7", "RFC 1918"),
        ("100.127.0.1", "RFC 6598"),
        ("192.0.0.2", "DS-Lite"),
        ("169.254.3.4", "RFC 3927"),
        ("127.0.0.1", "loopback"),
        ("224.0.0.5", "multicast"),
    ]) {
        let router = Router {
            outer: outer.parse().unwrap(),
            ..Router::default()
        };
        let (_router, route, _tasks) = start(n, router).await;
        let (now, mut keeper) = (Instant::now(), keeper(Instant::now()));
        keeper.turn(now, true, Ok(route)).await;
        assert_held(&keeper, Protocol::Pcp);
        assert_eq!(keeper.shown().announced(), None, "{outer}");
        let State::Held(held) = &keeper.shown().state else {
            panic!("{:?}", keeper.shown());
        };
        let said = held.useless().unwrap();
        assert!(said.contains(why), "{outer}: {said}");
    }
    assert!(!is_private(OUTER));
}

#[tokio::test]
async fn a_router_without_an_outer_address_is_asked_for_no_mapping_that_is_left_there() {
    let router = Router {
        outer: Ipv4Addr::UNSPECIFIED,
        ..Router::default()
    };
    let (router, route, _tasks) = start(25, router).await;
    for protocol in [Protocol::Pcp, Protocol::NatPmp] {
        let speaks_pcp = protocol == Protocol::Pcp;
        router.lock().unwrap().speaks_pcp = speaks_pcp;
        let (now, mut keeper) = (Instant::now(), keeper(Instant::now()));
        keeper.turn(now, true, Ok(route.clone())).await;
        let State::Failed(why) = &keeper.shown().state else {
            panic!("{:?}", keeper.shown());
        };
        assert!(why.contains("no outer address"), "{why}");
        assert_eq!(hosts(&router).len(), 0, "{protocol:?}");
    }
}
