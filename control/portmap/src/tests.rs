//! Routers that keep to the protocols and such that do not, at addresses of loopback; all listen at the same port.

mod keeping;
mod others;
mod silence;

use crate::{
    Ask, Failure, Keeper, Made, Protocol, Route, Setup, State, epoch,
    igd::Igd,
    limits::{BODY_BYTES_MAX, LEASE, SEARCH_AGAIN_HELD},
    pmp,
};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    num::NonZeroU16,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UdpSocket},
    task::JoinSet,
};

const OUTER: Ipv4Addr = Ipv4Addr::new(11, 0, 0, 1);
const PORT: u16 = 4_783;

/// What a router is, and has.
#[derive(Clone)]
struct Router {
    speaks_pcp: bool,
    outer: Ipv4Addr,
    epoch: u32,
    lease_max: u32,
    /// So many answers have another datagram before them that cannot be read.
    junk: u32,
    /// It does what it is asked for, and says nothing.
    is_mute: bool,
    /// Outer ports by hosts and inner ones.
    mappings: BTreeMap<(Ipv4Addr, u16), u16>,
    requests: u32,
}

impl Default for Router {
    fn default() -> Self {
        Self {
            speaks_pcp: true,
            outer: OUTER,
            epoch: 1_000,
            lease_max: u32::MAX,
            junk: 0,
            is_mute: false,
            mappings: BTreeMap::new(),
            requests: 0,
        }
    }
}

impl Router {
    /// Maps a port, or no more; one that another host has is not given.
    fn map(&mut self, inner: (Ipv4Addr, u16), outer: u16, lease: u32) -> (u16, u32) {
        if lease == 0 {
            self.mappings.remove(&inner);
            return (0, 0);
        }
        let mut free = outer;
        while self.mappings.values().any(|&port| port == free) {
            free += 1;
        }
        let outer = *self.mappings.entry(inner).or_insert(free);
        (outer, lease.min(self.lease_max))
    }

    fn answer(&mut self, request: &[u8], from: Ipv4Addr) -> Vec<u8> {
        self.requests += 1;
        let short = |at: usize| u16::from_be_bytes([request[at], request[at + 1]]);
        let long = |at: usize| u32::from_be_bytes(*request[at..].first_chunk().unwrap());
        let epoch = self.epoch.to_be_bytes();
        match request {
            [2, ..] if !self.speaks_pcp => [&[0, request[1] | 128, 0, 1], &epoch[..]].concat(),
            [2, 0, ..] => [&[2, 128, 0, 0, 0, 0, 0, 0], &epoch[..], &[0; 12]].concat(),
            [2, 1, ..] => {
                let client = Ipv4Addr::from(long(20));
                let (outer, lease) = self.map((client, short(40)), short(42), long(4));
                let mut out =
                    [&[2, 129, 0, 0], &lease.to_be_bytes()[..], &epoch, &[0; 12]].concat();
                out.extend(&request[24..42]);
                out.extend(outer.to_be_bytes());
                out.extend(self.outer.to_ipv6_mapped().octets());
                out
            }
            [0, 0] => [&[0, 128, 0, 0], &epoch[..], &self.outer.octets()].concat(),
            [0, 1, ..] => {
                let (outer, lease) = self.map((from, short(4)), short(6), long(8));
                let ports = [&request[4..6], &outer.to_be_bytes()].concat();
                [&[0, 129, 0, 0], &epoch[..], &ports, &lease.to_be_bytes()].concat()
            }
            _ => Vec::new(),
        }
    }
}

/// A router that answers until the set is dropped; each test has one of its own.
async fn start(last: u8, router: Router) -> (Arc<Mutex<Router>>, Route, JoinSet<()>) {
    let gateway = Ipv4Addr::new(127, 53, 51, last);
    let socket = UdpSocket::bind((gateway, crab_nat::GATEWAY_PORT))
        .await
        .unwrap();
    let stranger = UdpSocket::bind((gateway, 0)).await.unwrap();
    let router = Arc::new(Mutex::new(router));
    let (shared, mut tasks) = (Arc::clone(&router), JoinSet::new());
    tasks.spawn(async move {
        let mut bytes = [0; 1_100];
        loop {
            let (count, from) = socket.recv_from(&mut bytes).await.unwrap();
            let (answer, is_junk) = {
                let mut router = shared.lock().unwrap();
                let is_junk = router.junk > 0;
                router.junk = router.junk.saturating_sub(1);
                let SocketAddr::V4(client) = from else {
                    continue;
                };
                let answer = router.answer(&bytes[..count], *client.ip());
                if router.is_mute {
                    continue;
                }
                (answer, is_junk)
            };
            // Another source's word is nothing, whatever it says.
            let mut wrong = answer.clone();
            wrong.iter_mut().skip(3).for_each(|byte| *byte = 9);
            stranger.send_to(&wrong, from).await.unwrap();
            if is_junk {
                // An error is no more another host's to give than a yes.
                let no: &[u8] = &[answer[0], answer[1], 0, 1];
                let cut = &answer[..answer.len() - 1];
                let is_map = answer[1] == 129;
                let junk = if is_map { no } else { cut };
                socket.send_to(junk, from).await.unwrap();
            }
            socket.send_to(&answer, from).await.unwrap();
        }
    });
    let route = Route {
        gateway,
        own: Ipv4Addr::LOCALHOST,
    };
    (router, route, tasks)
}

fn port(number: u16) -> NonZeroU16 {
    NonZeroU16::new(number).unwrap()
}

fn setup() -> Setup {
    Setup {
        listen: Ipv4Addr::UNSPECIFIED,
        port: port(PORT),
        nonce: [1, 2, 3],
        seed: 7,
    }
}

fn keeper(now: Instant) -> Keeper {
    Keeper::new(setup(), now)
}

fn ask() -> Ask {
    Ask {
        port: port(PORT),
        external: port(PORT),
        nonce: [1, 2, 3],
    }
}

#[track_caller]
fn assert_held(keeper: &Keeper, protocol: Protocol) {
    let State::Held(held) = &keeper.shown().state else {
        panic!("{:?}", keeper.shown());
    };
    assert_eq!((held.protocol, held.external.port()), (protocol, PORT));
}

#[tokio::test]
async fn a_mapping_is_checked_renewed_at_half_its_lease_made_again_and_given_back() {
    let (router, route, _tasks) = start(1, Router::default()).await;
    let (now, mut keeper) = (Instant::now(), keeper(Instant::now()));
    let after = |seconds: u64| now + Duration::from_secs(seconds);
    keeper.turn(now, true, Ok(route.clone())).await;
    assert_held(&keeper, Protocol::Pcp);
    let announced = keeper.shown().announced();
    assert_eq!(announced, Some(SocketAddrV4::new(OUTER, PORT)));
    // It goes on; nothing is asked for before it is time.
    router.lock().unwrap().epoch = 1_020;
    keeper.turn(after(20), true, Ok(route.clone())).await;
    let requests = router.lock().unwrap().requests;
    keeper.turn(after(21), true, Ok(route.clone())).await;
    assert_eq!(router.lock().unwrap().requests, requests);
    assert_eq!(keeper.shown().counts.made, [1, 0, 0]);
    // It has restarted, and forgotten all.
    *router.lock().unwrap() = Router {
        epoch: 2,
        ..Router::default()
    };
    keeper.turn(after(40), true, Ok(route.clone())).await;
    assert_eq!(keeper.shown().counts.made, [2, 0, 0]);
    assert_eq!(router.lock().unwrap().mappings.len(), 1);
    router.lock().unwrap().epoch = 2 + u32::try_from(LEASE.as_secs() / 2).unwrap();
    keeper
        .turn(after(40 + LEASE.as_secs() / 2), true, Ok(route.clone()))
        .await;
    assert_eq!(keeper.shown().counts.renewed, [1, 0, 0]);
    assert_eq!(router.lock().unwrap().mappings.len(), 1);
    // Another default route: the mapping is given back, and one is made there.
    let (other, elsewhere, _more) = start(2, Router::default()).await;
    keeper.turn(after(3_000), true, Ok(elsewhere.clone())).await;
    assert_held(&keeper, Protocol::Pcp);
    let count = |router: &Mutex<Router>| router.lock().unwrap().mappings.len();
    assert_eq!((count(&router), count(&other)), (0, 1));
    keeper.turn(after(3_001), false, Ok(elsewhere)).await;
    assert_eq!(
        (keeper.shown().state.clone(), count(&other)),
        (State::Off, 0)
    );
}

#[tokio::test]
async fn a_router_without_pcp_is_asked_by_nat_pmp_and_a_private_outer_address_is_told_nobody() {
    let router = Router {
        speaks_pcp: false,
        outer: Ipv4Addr::new(100, 64, 0, 1),
        ..Router::default()
    };
    let (router, route, _tasks) = start(3, router).await;
    let (now, mut keeper) = (Instant::now(), keeper(Instant::now()));
    keeper.turn(now, true, Ok(route.clone())).await;
    assert_held(&keeper, Protocol::NatPmp);
    assert_eq!(keeper.shown().announced(), None);
    // Its address becomes another one.
    router.lock().unwrap().outer = OUTER;
    router.lock().unwrap().epoch = 1_020;
    keeper
        .turn(now + Duration::from_secs(20), true, Ok(route))
        .await;
    assert!(keeper.shown().announced().is_some());
}

#[tokio::test]
async fn datagrams_that_cannot_be_read_and_other_sources_cost_no_good_answer() {
    let (router, route, _tasks) = start(4, Router::default()).await;
    for protocol in [Protocol::Pcp, Protocol::NatPmp] {
        router.lock().unwrap().junk = 1;
        let made = pmp::map(protocol, &route, &ask()).await.unwrap();
        assert_eq!(made.external, SocketAddrV4::new(OUTER, PORT));
        router.lock().unwrap().junk = 1;
        let told = epoch::ask(protocol, &route).await.unwrap();
        assert_eq!(told.epoch, 1_000);
        router.lock().unwrap().junk = 1;
        pmp::delete(protocol, &route, &ask()).await.unwrap();
        assert!(router.lock().unwrap().mappings.is_empty());
    }
    // One that never says anything else is given up.
    router.lock().unwrap().junk = u32::MAX;
    let made = pmp::map(Protocol::Pcp, &route, &ask()).await;
    assert!(matches!(made, Err(Failure::Absent)), "{made:?}");
}

#[tokio::test]
async fn mappings_that_are_no_use_and_addresses_that_need_none_are_refused_in_words() {
    let router = Router {
        lease_max: 1,
        ..Router::default()
    };
    let (router, route, _tasks) = start(5, router).await;
    let (now, mut keeper) = (Instant::now(), keeper(Instant::now()));
    keeper.turn(now, true, Ok(route.clone())).await;
    let State::Failed(why) = keeper.shown().state.clone() else {
        panic!("{:?}", keeper.shown());
    };
    // Nor are they left there.
    assert_eq!(router.lock().unwrap().mappings.len(), 0);
    assert!(
        why.contains("PCP: the router refuses: its mapping would last 1 s"),
        "{why}"
    );
    assert!(why.contains("UPnP: "), "{why}");
    assert_eq!(keeper.shown().counts.failed, [1, 1, 1]);
    // Not again before its time.
    keeper
        .turn(now + Duration::from_secs(1), true, Ok(route.clone()))
        .await;
    assert_eq!(keeper.shown().counts.failed, [1, 1, 1]);
    let public = Route {
        own: OUTER,
        ..route
    };
    keeper.turn(now, true, Ok(public)).await;
    let is_public = |state: &State| matches!(state, State::Failed(why) if why.contains("public"));
    assert!(is_public(&keeper.shown().state), "{:?}", keeper.shown());
}

/// A router's HTTP: what each request is answered with, by the action that is called for and its text.
async fn serve(answer: impl Fn(&str) -> String + Send + 'static) -> (Igd, JoinSet<()>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else {
        panic!("it listens by IPv4");
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut text, mut bytes) = (String::new(), [0; 4_096]);
            while !text.contains("</s:Envelope>") {
                let count = stream.read(&mut bytes).await.unwrap();
                text += str::from_utf8(&bytes[..count]).unwrap();
                if count == 0 {
                    break;
                }
            }
            // The other end may have heard enough.
            let _sent = stream.write_all(answer(&text).as_bytes()).await;
        }
    });
    (Igd::at(address), tasks)
}

fn answered(status: &str, inside: &str) -> String {
    let body = format!("<s:Envelope><s:Body>{inside}</s:Body></s:Envelope>");
    let length = body.len();
    format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}")
}

fn fault(code: u16) -> String {
    answered(
        "500 Error",
        &format!("<s:Fault><errorCode>{code}</errorCode></s:Fault>"),
    )
}

fn address() -> String {
    answered(
        "200 OK",
        &format!("<NewExternalIPAddress>{OUTER}</NewExternalIPAddress>"),
    )
}

fn others() -> impl Iterator<Item = NonZeroU16> {
    (50_000..).map(port)
}

#[tokio::test]
async fn a_port_that_another_host_has_is_not_taken_and_a_mapping_left_behind_is() {
    for (is_left, external) in [(true, 50_123), (false, 50_000)] {
        let (mut igd, _tasks) = serve(move |request| {
            let is = |action: &str| request.contains(&format!("#{action}\""));
            match () {
                () if is("GetExternalIPAddress") => address(),
                () if is("AddPortMapping") && request.contains(">4783</NewExternalPort>") => fault(718),
                () if is("AddPortMapping") => answered("200 OK", ""),
                () if is("GetGenericPortMappingEntry") && is_left && request.contains(">2<") => answered(
                    "200 OK",
                    "<NewExternalPort>50123</NewExternalPort><NewProtocol>UDP</NewProtocol><NewInternalPort>4783</NewInternalPort>\
                     <NewInternalClient>127.0.0.1</NewInternalClient>",
                ),
                () if is("GetGenericPortMappingEntry") && request.contains(">3<") => fault(713),
                () => answered("200 OK", "<NewExternalPort>1</NewExternalPort>"),
            }
        })
        .await;
        let made = igd
            .map(&ask(), Ipv4Addr::LOCALHOST, others(), drop)
            .await
            .unwrap();
        assert_eq!(made.external, SocketAddrV4::new(OUTER, external));
        assert_eq!(made.lease, Some(LEASE));
    }
}

#[tokio::test]
async fn a_router_that_gives_mappings_without_an_end_alone_is_given_its_way_and_told_at_the_end() {
    let (mut igd, _tasks) = serve(|request| {
        let is = |text: &str| request.contains(text);
        match () {
            () if is("#GetExternalIPAddress\"") => address(),
            () if is("#AddPortMapping\"") && is("<NewLeaseDuration>0<") => answered("200 OK", ""),
            () if is("#AddPortMapping\"") => fault(725),
            () if is("#DeletePortMapping\"") => fault(714),
            () => fault(606),
        }
    })
    .await;
    let made = igd
        .map(&ask(), Ipv4Addr::LOCALHOST, others(), drop)
        .await
        .unwrap();
    assert_eq!(made.lease, None);
    // Gone is gone.
    igd.delete(&ask()).await.unwrap();
    let entry = igd.entry(&ask(), Ipv4Addr::LOCALHOST).await;
    let told = entry.unwrap_err().to_string();
    assert!(
        told.contains("this host is not allowed to (error 606)"),
        "{told}"
    );
}

#[tokio::test]
async fn an_answer_that_is_too_long_leads_elsewhere_or_breaks_off_is_none() {
    let long = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n<a>{}",
        " ".repeat(BODY_BYTES_MAX)
    );
    let head = format!(
        "HTTP/1.1 200 OK\r\nA: {}\r\n\r\n",
        "a".repeat(BODY_BYTES_MAX)
    );
    let bomb = answered("200 OK", "").replace("<s:Env", "<!DOCTYPE a [<!ENTITY b \"c\">]><s:Env");
    for (answer, why) in [
        (long, "limit"),
        (head, ""),
        (
            "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
                .into(),
            "number",
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n<a>".into(),
            "",
        ),
        ("no HTTP at all\r\n\r\n".into(), ""),
        (bomb, "document type"),
        (
            answered(
                "200 OK",
                "<NewExternalIPAddress>0.0.0.0</NewExternalIPAddress>",
            ),
            "no outer address",
        ),
    ] {
        let said = answer.clone();
        let (igd, _tasks) = serve(move |_| answer.clone()).await;
        let failure = igd.external().await.unwrap_err().to_string();
        assert!(failure.contains(why), "{said:.100}: {failure}");
    }
}

fn held(igd: Igd, last: u8) -> (Keeper, Route, Instant) {
    let now = Instant::now();
    let route = Route {
        gateway: Ipv4Addr::new(127, 53, 51, last),
        own: Ipv4Addr::LOCALHOST,
    };
    let made = Made {
        external: SocketAddrV4::new(OUTER, PORT),
        lease: None,
        epoch: None,
    };
    let keeper = Keeper::holding(setup(), now, route.clone(), igd, made);
    (keeper, route, now)
}

#[tokio::test]
async fn a_mapping_without_an_end_is_held_for_a_while_out_of_sight_and_taken_back_in_the_end() {
    let state = Arc::new(Mutex::new((true, 0)));
    let shared = Arc::clone(&state);
    let (igd, _tasks) = serve(move |request| {
        let mut state = shared.lock().unwrap();
        match state.0 {
            true => String::new(),
            false if request.contains("#DeletePortMapping\"") => {
                state.1 += 1;
                answered("200 OK", "")
            }
            false => fault(401),
        }
    })
    .await;
    let (mut keeper, route, now) = held(igd, 8);
    let after = |minutes: u64| now + Duration::from_secs(60 * minutes);
    keeper.turn(after(1), true, Ok(route.clone())).await;
    assert_held(&keeper, Protocol::Upnp);
    for minute in [2, 3, 4, 59] {
        keeper.turn(after(minute), true, Ok(route.clone())).await;
        assert_held(&keeper, Protocol::Upnp);
    }
    keeper.turn(after(61), true, Ok(route.clone())).await;
    let State::Failed(_) = keeper.shown().state else {
        panic!("{:?}", keeper.shown());
    };
    state.lock().unwrap().0 = false;
    keeper.turn(after(62), false, Ok(route)).await;
    assert_eq!(state.lock().unwrap().1, 1);
}

#[tokio::test]
async fn a_router_that_says_nothing_of_its_mappings_is_not_asked_to_map_all_the_time() {
    let asked = Arc::new(Mutex::new([0, 0]));
    let shared = Arc::clone(&asked);
    let (igd, _tasks) = serve(move |request| {
        let is = |action: &str| request.contains(&format!("#{action}\""));
        shared.lock().unwrap()[0] += u32::from(is("AddPortMapping"));
        shared.lock().unwrap()[1] += u32::from(is("GetSpecificPortMappingEntry"));
        match () {
            () if is("GetExternalIPAddress") => address(),
            () if is("AddPortMapping") => answered("200 OK", ""),
            () => fault(401),
        }
    })
    .await;
    let (mut keeper, route, now) = held(igd, 9);
    for minute in 1..=10 {
        let at = now + Duration::from_secs(70 * minute);
        keeper.turn(at, true, Ok(route.clone())).await;
    }
    assert_held(&keeper, Protocol::Upnp);
    assert_eq!(*asked.lock().unwrap(), [0, 10]);
}

#[tokio::test]
async fn what_a_router_was_being_asked_for_when_a_node_had_enough_is_taken_back() {
    let mute = Router {
        is_mute: true,
        ..Router::default()
    };
    let (router, route, _tasks) = start(10, mute).await;
    let (now, mut keeper) = (Instant::now(), keeper(Instant::now()));
    let has_it = async {
        while router.lock().unwrap().mappings.is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        () = keeper.turn(now, true, Ok(route.clone())) => panic!("it waits for the router"),
        () = has_it => {}
    }
    router.lock().unwrap().is_mute = false;
    keeper.turn(now, false, Ok(route)).await;
    assert!(router.lock().unwrap().mappings.is_empty());
}
