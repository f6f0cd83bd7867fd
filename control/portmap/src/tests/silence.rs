//! Routers that do not answer for a while, that are elsewhere afterwards, or that come and go.

use super::*;

fn at(now: Instant, seconds: u64) -> Instant {
    now + Duration::from_secs(seconds)
}

/// One that answers again, by its own time so many seconds later, with what it had.
async fn again(
    last: u8,
    router: &Mutex<Router>,
    seconds: u32,
) -> (Arc<Mutex<Router>>, JoinSet<()>) {
    let mut router = router.lock().unwrap().clone();
    router.epoch += seconds;
    let (router, _, tasks) = start(last, router).await;
    (router, tasks)
}

#[tokio::test]
async fn a_router_that_does_not_answer_has_its_mapping_told_of_while_the_lease_runs_and_renewed_after()
 {
    let (router, route, tasks) = start(50, Router::default()).await;
    let (now, mut keeper) = (Instant::now(), keeper(Instant::now()));
    keeper.turn(now, true, Ok(route.clone())).await;
    drop(tasks);
    for seconds in [20, 40, 60, 80, 1_200, 2_300] {
        keeper.turn(at(now, seconds), true, Ok(route.clone())).await;
        assert!(keeper.shown().announced().is_some(), "{seconds}");
    }
    let (router, _tasks) = again(50, &router, 2_400).await;
    let before = keeper.shown().counts.renewed[0];
    for seconds in (2_400..2_520).step_by(5) {
        router.lock().unwrap().epoch = 1_000 + u32::try_from(seconds).unwrap();
        keeper.turn(at(now, seconds), true, Ok(route.clone())).await;
    }
    assert_held(&keeper, Protocol::Pcp);
    let counts = keeper.shown().counts;
    assert_eq!((counts.renewed[0], counts.made[0]), (before + 1, 1));
}

#[tokio::test]
async fn a_router_that_has_mapped_a_port_before_is_asked_again_soon_after_an_outage_of_any_length()
{
    let (router, route, tasks) = start(51, Router::default()).await;
    let (now, mut keeper) = (Instant::now(), keeper(Instant::now()));
    keeper.turn(now, true, Ok(route.clone())).await;
    drop(tasks);
    let hour = LEASE.as_secs();
    for seconds in [20, 40, 60, 80, hour - 10] {
        keeper.turn(at(now, seconds), true, Ok(route.clone())).await;
        assert!(keeper.shown().announced().is_some(), "{seconds}");
    }
    // Nobody counts on it longer than the router said.
    let mut time = hour + 20;
    for _ in 0..3 {
        keeper.turn(at(now, time), true, Ok(route.clone())).await;
        assert_eq!(keeper.shown().announced(), None);
        let State::Failed(_) = keeper.shown().state else {
            panic!("{:?}", keeper.shown());
        };
        time += SEARCH_AGAIN_HELD.as_secs() + 30;
    }
    let (_router, _tasks) = again(51, &router, 9_000).await;
    keeper.turn(at(now, time), true, Ok(route)).await;
    assert_held(&keeper, Protocol::Pcp);
}

/// By UPnP: it is found by another protocol here, as it would be by its answer to a search.
#[tokio::test]
async fn a_router_whose_service_has_another_port_by_now_is_found_anew_at_the_next_check() {
    let (_router, route, _tasks) = start(52, Router::default()).await;
    let closed = {
        let listener = TcpListener::bind((route.gateway, 0)).await.unwrap();
        listener.local_addr().unwrap()
    };
    let SocketAddr::V4(closed) = closed else {
        panic!("it listens by IPv4");
    };
    let (mut keeper, _, now) = held(Igd::at(closed), 52);
    keeper.turn(at(now, 70), true, Ok(route)).await;
    assert_held(&keeper, Protocol::Pcp);
    assert!(keeper.shown().announced().is_some());
}

#[tokio::test]
async fn a_renewal_that_is_answered_with_a_mapping_of_no_use_is_the_end_of_the_one_before() {
    let (router, route, _tasks) = start(53, Router::default()).await;
    let (now, mut keeper) = (Instant::now(), keeper(Instant::now()));
    keeper.turn(now, true, Ok(route.clone())).await;
    let half = LEASE / 2;
    {
        let mut router = router.lock().unwrap();
        router.lease_max = 1;
        router.epoch += u32::try_from(half.as_secs()).unwrap();
    }
    keeper.turn(now + half, true, Ok(route)).await;
    assert_eq!(keeper.shown().announced(), None);
    assert!(router.lock().unwrap().mappings.is_empty());
}

#[tokio::test]
async fn a_way_out_that_comes_and_goes_has_a_router_that_maps_nothing_asked_no_more_often() {
    let useless = Router {
        lease_max: 1,
        ..Router::default()
    };
    let (_router, route, _tasks) = start(54, useless).await;
    let (now, mut keeper) = (Instant::now(), keeper(Instant::now()));
    for turn in 0..22 {
        let found = match turn % 2 {
            0 => Ok(route.clone()),
            _ => Err("no default route".to_owned()),
        };
        keeper.turn(at(now, 5 * turn), true, found).await;
    }
    // At once, and after 15, 30 and 60 s or somewhat less.
    let failed = keeper.shown().counts.failed[0];
    assert!((2..=4).contains(&failed), "{failed}");
}
