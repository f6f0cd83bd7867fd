//! Other hosts that ask the same router for the same port.

use super::*;
use crate::{
    left::{Left, Leftovers},
    limits::TAKEN_MAX,
};

const OTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// What a router has, by UPnP: whoever asks for a port last has it.
#[derive(Default)]
struct List {
    entries: BTreeMap<u16, (Ipv4Addr, u16)>,
    adds: u32,
    /// What it says whose each port is, where it says that wrong.
    said: Option<Ipv4Addr>,
}

/// What stands in an element of a request.
fn value(request: &str, name: &str) -> String {
    let open = format!("<{name}>");
    let behind = request.split(&open).nth(1).unwrap_or_default();
    behind.split('<').next().unwrap_or_default().to_owned()
}

async fn overwriting(list: &Arc<Mutex<List>>) -> (Igd, JoinSet<()>) {
    let list = Arc::clone(list);
    serve(move |request| {
        let is = |action: &str| request.contains(&format!("#{action}\""));
        let mut list = list.lock().unwrap();
        let outer = value(request, "NewExternalPort").parse().unwrap_or(0);
        match () {
            () if is("GetExternalIPAddress") => address(),
            () if is("AddPortMapping") => {
                let client = value(request, "NewInternalClient").parse().unwrap();
                let inner = value(request, "NewInternalPort").parse().unwrap();
                list.entries.insert(outer, (client, inner));
                list.adds += 1;
                answered("200 OK", "")
            }
            () if is("DeletePortMapping") => match list.entries.remove(&outer) {
                Some(_) => answered("200 OK", ""),
                None => fault(714),
            },
            () if is("GetSpecificPortMappingEntry") => match list.entries.get(&outer) {
                Some((client, inner)) => {
                    let client = list.said.unwrap_or(*client);
                    answered(
                        "200 OK",
                        &format!(
                            "<NewInternalPort>{inner}</NewInternalPort><NewInternalClient>{client}</NewInternalClient>"
                        ),
                    )
                }
                None => fault(714),
            },
            () if is("GetGenericPortMappingEntry") => {
                let index = value(request, "NewPortMappingIndex").parse().unwrap();
                match list.entries.iter().nth(index) {
                    Some((outer, (client, inner))) => answered(
                        "200 OK",
                        &format!(
                            "<NewExternalPort>{outer}</NewExternalPort><NewProtocol>UDP</NewProtocol>\
                             <NewInternalPort>{inner}</NewInternalPort><NewInternalClient>{client}</NewInternalClient>"
                        ),
                    ),
                    None => fault(713),
                }
            }
            () => fault(401),
        }
    })
    .await
}

fn held_by(igd: &Igd, own: Ipv4Addr, now: Instant) -> (Keeper, Route) {
    let route = Route {
        gateway: Ipv4Addr::new(127, 53, 51, 40),
        own,
    };
    let made = Made {
        external: SocketAddrV4::new(OUTER, PORT),
        lease: Some(LEASE),
        epoch: None,
    };
    let keeper = Keeper::holding(setup(), now, route.clone(), igd.clone(), made);
    (keeper, route)
}

fn outer_port(keeper: &Keeper) -> Option<u16> {
    keeper.shown().announced().map(|at| at.port())
}

#[tokio::test]
async fn of_two_nodes_that_a_router_gave_one_port_each_has_one_of_its_own_in_the_end() {
    let list = Arc::new(Mutex::new(List::default()));
    let (igd, _tasks) = overwriting(&list).await;
    let now = Instant::now();
    // Both were told that they have it, and the second one does.
    list.lock().unwrap().entries.insert(PORT, (OTHER, PORT));
    let [mut one, mut other] = [Ipv4Addr::LOCALHOST, OTHER].map(|own| held_by(&igd, own, now));
    for minute in 1..=20 {
        let at = now + Duration::from_secs(70 * minute);
        for (keeper, route) in [&mut one, &mut other] {
            keeper.turn(at, true, Ok(route.clone())).await;
        }
    }
    assert_eq!(outer_port(&other.0), Some(PORT));
    let found = outer_port(&one.0).unwrap();
    assert!(found >= 49_152, "{found}");
    let taken = [&one, &other].map(|(keeper, _)| keeper.shown().counts.taken);
    assert_eq!(taken, [1, 0]);
    {
        let list = list.lock().unwrap();
        let clients: Vec<_> = list
            .entries
            .iter()
            .map(|(at, (who, _))| (*at, *who))
            .collect();
        assert_eq!(clients, [(PORT, OTHER), (found, Ipv4Addr::LOCALHOST)]);
        assert_eq!(list.adds, 1);
    }
    for (mut keeper, route) in [one, other] {
        keeper.turn(now + LEASE / 2, false, Ok(route)).await;
    }
    assert_eq!(list.lock().unwrap().entries.len(), 0);
}

#[tokio::test]
async fn a_port_that_is_another_hosts_is_not_asked_for() {
    let list = Arc::new(Mutex::new(List::default()));
    let (mut igd, _tasks) = overwriting(&list).await;
    list.lock().unwrap().entries.insert(PORT, (OTHER, PORT));
    let made = igd.map(&ask(), Ipv4Addr::LOCALHOST, others(), drop).await;
    assert_eq!(made.unwrap().external.port(), 50_000);
    assert_eq!(list.lock().unwrap().entries[&PORT], (OTHER, PORT));
}

#[tokio::test]
async fn a_node_that_was_killed_takes_over_what_it_has_though_the_port_it_would_ask_for_is_free() {
    let list = Arc::new(Mutex::new(List::default()));
    let (mut igd, _tasks) = overwriting(&list).await;
    let own = Ipv4Addr::LOCALHOST;
    let entries = [(1_000, (OTHER, PORT)), (50_123, (own, PORT))];
    list.lock().unwrap().entries = entries.into();
    let route = Route {
        gateway: Ipv4Addr::new(127, 53, 51, 42),
        own,
    };
    let mut keeper = keeper(Instant::now());
    let made = keeper.make_by(&mut igd, &ask(), &route).await.unwrap();
    assert_eq!(made.external.port(), 50_123);
    assert_eq!(list.lock().unwrap().entries.len(), 2);
}

#[tokio::test]
async fn who_takes_each_port_has_a_node_ask_for_others_a_few_times_and_no_port_of_its_own_deleted()
{
    let list = Arc::new(Mutex::new(List::default()));
    let (igd, _tasks) = overwriting(&list).await;
    let now = Instant::now();
    let (mut keeper, route) = held_by(&igd, Ipv4Addr::LOCALHOST, now);
    list.lock().unwrap().entries.insert(PORT, (OTHER, PORT));
    let mut at = now;
    for minute in 1..=u64::from(TAKEN_MAX) + 1 {
        assert!(outer_port(&keeper).is_some(), "{minute}");
        at = now + Duration::from_secs(70 * minute);
        keeper.turn(at, true, Ok(route.clone())).await;
        let mut list = list.lock().unwrap();
        list.entries
            .values_mut()
            .for_each(|entry| *entry = (OTHER, PORT));
    }
    assert_eq!(outer_port(&keeper), None);
    let State::Failed(why) = &keeper.shown().state else {
        panic!("{:?}", keeper.shown());
    };
    assert!(why.contains("to another host"), "{why}");
    for second in 1..100 {
        keeper
            .turn(at + Duration::from_secs(second), true, Ok(route.clone()))
            .await;
    }
    assert_eq!(list.lock().unwrap().adds, TAKEN_MAX);
    let before = list.lock().unwrap().entries.len();
    keeper.turn(at + LEASE / 2, false, Ok(route)).await;
    assert_eq!(list.lock().unwrap().entries.len(), before);
}

#[tokio::test]
async fn a_router_whose_list_is_wrong_of_each_port_is_not_asked_for_more_and_more_of_them() {
    let list = Arc::new(Mutex::new(List::default()));
    let (igd, _tasks) = overwriting(&list).await;
    {
        let mut list = list.lock().unwrap();
        list.entries.insert(PORT, (Ipv4Addr::LOCALHOST, PORT));
        list.said = Some(Ipv4Addr::new(127, 0, 0, 9));
    }
    let now = Instant::now();
    let (mut keeper, route) = held_by(&igd, Ipv4Addr::LOCALHOST, now);
    for minutes in (2..1_440).step_by(2) {
        let at = now + Duration::from_secs(60 * minutes);
        keeper.turn(at, true, Ok(route.clone())).await;
        assert!(outer_port(&keeper).is_some(), "{minutes}");
    }
    // That which it had before the list was known to be wrong, and that which it has.
    assert_eq!(list.lock().unwrap().entries.len(), 2);
    assert_eq!(keeper.shown().counts.taken, 1);
}

#[tokio::test]
async fn a_port_that_is_another_hosts_as_it_is_to_be_renewed_is_counted_as_taken() {
    let list = Arc::new(Mutex::new(List::default()));
    let (igd, _tasks) = overwriting(&list).await;
    let now = Instant::now();
    let (mut keeper, route) = held_by(&igd, Ipv4Addr::LOCALHOST, now);
    list.lock().unwrap().entries.insert(PORT, (OTHER, PORT));
    keeper.turn(now + LEASE / 2, true, Ok(route)).await;
    assert!(outer_port(&keeper).is_some_and(|port| port != PORT));
    let counts = keeper.shown().counts;
    assert_eq!(
        (counts.taken, counts.renewed, counts.made),
        (1, [0; 3], [0, 0, 1])
    );
}

/// The machine has another address by now, and the router does not say whose the port is.
#[tokio::test]
async fn what_may_be_another_hosts_is_not_deleted_in_the_name_of_an_address_that_is_gone() {
    for (own, count) in [(Ipv4Addr::LOCALHOST, 1), (OTHER, 0)] {
        let deleted = Arc::new(Mutex::new(0));
        let shared = Arc::clone(&deleted);
        let (igd, _tasks) = serve(move |request| {
            *shared.lock().unwrap() += u32::from(request.contains("#DeletePortMapping\""));
            fault(401)
        })
        .await;
        let mut left = Leftovers::default();
        left.push(Left {
            protocol: Protocol::Upnp,
            route: Route {
                gateway: Ipv4Addr::new(127, 53, 51, 43),
                own,
            },
            igd: Some(igd),
            port: port(PORT),
            until: None,
            is_sure: false,
        });
        left.give_back(Instant::now(), &ask(), |_| true).await;
        assert_eq!(*deleted.lock().unwrap(), count, "{own}");
    }
}

#[tokio::test]
async fn a_renewal_that_is_answered_with_another_port_is_followed_and_the_old_port_left_alone() {
    let (router, route, _tasks) = start(41, Router::default()).await;
    let beside = Route {
        own: OTHER,
        ..route.clone()
    };
    let (now, [mut one, mut other]) = (
        Instant::now(),
        [keeper(Instant::now()), keeper(Instant::now())],
    );
    one.turn(now, true, Ok(route.clone())).await;
    {
        // The router gives the port to the other one.
        let mut router = router.lock().unwrap();
        router.mappings = [((OTHER, PORT), PORT)].into();
    }
    other.turn(now, true, Ok(beside.clone())).await;
    for halves in 1..6 {
        let at = (LEASE / 2 + Duration::from_secs(5)) * halves;
        router.lock().unwrap().epoch = 1_000 + u32::try_from(at.as_secs()).unwrap();
        one.turn(now + at, true, Ok(route.clone())).await;
        other.turn(now + at, true, Ok(beside.clone())).await;
        let ports = [&one, &other].map(outer_port);
        assert_eq!(ports, [Some(PORT + 1), Some(PORT)], "{halves}");
    }
    assert_eq!(one.shown().counts.renewed[0], 5);
}
