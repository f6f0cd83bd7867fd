//! UPnP's Internet Gateway Device: the service of a router that maps ports, and what it is told.

use crate::{
    Ask, Failure, Made, Route,
    http::{self, Content},
    limits::{ENTRIES, ENTRIES_MAX, LEASE, PORTS_MAX, SERVICES_MAX},
    ssdp,
    url::Url,
    xml,
};
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4},
    num::NonZeroU16,
    time::Duration,
};
use tokio::time::timeout;

/// Services that map ports, the best first.
const SERVICES: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];
/// What the mapping is called in the router's list.
const DESCRIPTION: &str = "virga";

const CONFLICT: u16 = 718;
const NO_SUCH_ENTRY: u16 = 714;
const PERMANENT_ONLY: u16 = 725;

/// Why an action was not done.
#[derive(Debug)]
enum Not {
    /// The router's own number for it.
    Fault(u16),
    Failure(Failure),
}

impl From<Not> for Failure {
    fn from(not: Not) -> Self {
        match not {
            Not::Fault(code) => Self::Refused(format!("{} (error {code})", words(code))),
            Not::Failure(failure) => failure,
        }
    }
}

/// A router's numbers, in words (UPnP Device Architecture, 3.2.2; WANIPConnection, 2.4).
const fn words(code: u16) -> &'static str {
    match code {
        401 => "it does not have this action",
        402 => "it does not like an argument",
        501 => "it could not do it",
        600..=605 => "an argument is out of bounds, or it has no room",
        606 => "this host is not allowed to",
        NO_SUCH_ENTRY => "there is no such mapping",
        715 | 726 => "the other end cannot be left open",
        716 | 727 => "the outer port cannot be left open",
        CONFLICT => "another host has that port",
        724 => "it maps a port to the same port alone",
        PERMANENT_ONLY => "it gives mappings without an end alone",
        728 => "it has no more room for mappings",
        729 => "that port is in use otherwise",
        732 => "the inner port cannot be left open",
        _ => "it does not say why in known words",
    }
}

/// A router's service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Igd {
    control: Url,
    service: &'static str,
    /// Its list names another host where this node has just been given a port.
    is_wrong: bool,
}

/// What a router's list has at a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// This node.
    Own,
    /// Nobody.
    Nothing,
    /// Another host, or another port of this one.
    Other,
}

/// Of each address that the router describes itself at, the best service.
///
/// # Errors
/// There is none, or it does not have such a service.
pub async fn find(route: &Route) -> Result<Vec<Igd>, Failure> {
    let (mut all, mut failure) = (Vec::new(), None);
    for url in ssdp::search(route).await? {
        match http::exchange(&url, Content::default()).await {
            Ok((status, text)) if status.is_success() => match services(&url, &text) {
                Ok(found) => all.extend(found.into_iter().next()),
                Err(error) => failure = Some(error),
            },
            Ok((status, _)) => failure = Some(Failure::Malformed(format!("status {status}"))),
            Err(error) => failure = Some(error),
        }
    }
    match all.is_empty() {
        true => Err(failure.unwrap_or(Failure::Absent)),
        false => Ok(all),
    }
}

/// The services that a router's description names.
///
/// # Errors
/// It cannot be read.
pub fn services(url: &Url, description: &str) -> Result<Vec<Igd>, Failure> {
    let (mut all, mut kind, mut control) = (Vec::<(usize, Igd)>::new(), None, None);
    xml::read(description, |names, text| {
        match names.last().map(String::as_str) {
            Some("serviceType") => kind = SERVICES.iter().position(|known| *known == text),
            Some("controlURL") => control = url.join(text),
            Some("service") => {
                if let (Some(kind), Some(control)) = (kind.take(), control.take())
                    && all.len() < SERVICES_MAX
                {
                    let service = SERVICES[kind];
                    all.push((kind, Igd::new(control, service)));
                }
            }
            _ => {}
        }
    })?;
    all.sort_by_key(|(kind, _)| *kind);
    Ok(all.into_iter().map(|(_, igd)| igd).collect())
}

/// What an answer says, by name; a fault's number.
fn said(is_well: bool, answer: &str) -> Result<BTreeMap<String, String>, Not> {
    let mut all = BTreeMap::new();
    let read = xml::read(answer, |names, text| {
        if let Some(name) = names.last() {
            all.insert(name.clone(), text.to_owned());
        }
    });
    read.map_err(Not::Failure)?;
    let fault = all.get("errorCode").and_then(|code| code.parse().ok());
    match fault {
        Some(code) => Err(Not::Fault(code)),
        None if is_well => Ok(all),
        None => Err(Not::Failure(Failure::Malformed(
            "an error without a number".into(),
        ))),
    }
}

impl Igd {
    const fn new(control: Url, service: &'static str) -> Self {
        Self {
            control,
            service,
            is_wrong: false,
        }
    }

    /// Whether what its list says of a port of this node's is to be believed.
    pub(crate) const fn is_truthful(&self) -> bool {
        !self.is_wrong
    }

    async fn act(
        &self,
        action: &str,
        arguments: &[(&str, String)],
    ) -> Result<BTreeMap<String, String>, Not> {
        let service = self.service;
        let arguments: String = arguments
            .iter()
            .map(|(name, value)| format!("<{name}>{value}</{name}>"))
            .collect();
        let body = format!(
            "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>\
             <u:{action} xmlns:u=\"{service}\">{arguments}</u:{action}></s:Body></s:Envelope>\r\n"
        );
        let content = Content {
            action: Some(format!("{service}#{action}")),
            body,
        };
        let answered = http::exchange(&self.control, content).await;
        let (status, text) = answered.map_err(Not::Failure)?;
        said(status.is_success(), &text)
    }

    /// The router's outer address.
    ///
    /// # Errors
    /// It says none.
    pub async fn external(&self) -> Result<Ipv4Addr, Failure> {
        let said = self.act("GetExternalIPAddress", &[]).await?;
        let ip = said
            .get("NewExternalIPAddress")
            .and_then(|ip| ip.parse().ok());
        let ip = ip.filter(|ip: &Ipv4Addr| !ip.is_unspecified());
        ip.ok_or_else(|| Failure::Refused("it has no outer address".into()))
    }

    /// Maps a port: the one that is asked for, or, where another host has it, that of a mapping that this node left
    /// behind, or one of `others`. A router may give the port to whoever asks last, so that it is asked first whose it is, unless
    /// its list is wrong, which shows once it has mapped one. Without an end, where the router gives no other. `note` is told of
    /// the port that the router may have mapped, however this ends.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn map(
        &mut self,
        ask: &Ask,
        own: Ipv4Addr,
        others: impl Iterator<Item = NonZeroU16>,
        mut note: impl FnMut(Option<NonZeroU16>),
    ) -> Result<Made, Failure> {
        let ip = self.external().await?;
        let (mut port, mut lease, mut tried) = (ask.external, Some(LEASE), 0);
        let mut others = others.take(PORTS_MAX);
        loop {
            let wanted = Ask {
                external: port,
                ..*ask
            };
            let done = match self.entry(&wanted, own).await {
                Ok(Entry::Other) if !self.is_wrong => Err(Not::Fault(CONFLICT)),
                Ok(_) | Err(_) => {
                    note(Some(port));
                    self.add(ask.port, port, own, lease).await
                }
            };
            if let Err(Not::Fault(_)) = done {
                note(None);
            }
            match done {
                Ok(()) => {
                    self.is_wrong = matches!(self.entry(&wanted, own).await, Ok(Entry::Other));
                    break;
                }
                Err(Not::Fault(PERMANENT_ONLY)) if lease.is_some() => lease = None,
                Err(Not::Fault(code @ (CONFLICT | 729))) => {
                    let left = match tried {
                        0 => self.left(ask.port, own).await,
                        _ => None,
                    };
                    tried += 1;
                    let next = left.or_else(|| others.next());
                    port = next.ok_or(Not::Fault(code))?;
                }
                Err(not) => return Err(not.into()),
            }
        }
        Ok(Made {
            external: SocketAddrV4::new(ip, port.get()),
            lease,
            epoch: None,
        })
    }

    async fn add(
        &self,
        port: NonZeroU16,
        external: NonZeroU16,
        own: Ipv4Addr,
        lease: Option<Duration>,
    ) -> Result<(), Not> {
        let arguments = [
            ("NewRemoteHost", String::new()),
            ("NewExternalPort", external.to_string()),
            ("NewProtocol", "UDP".into()),
            ("NewInternalPort", port.to_string()),
            ("NewInternalClient", own.to_string()),
            ("NewEnabled", "1".into()),
            ("NewPortMappingDescription", DESCRIPTION.into()),
            (
                "NewLeaseDuration",
                lease.map_or(0, |lease| lease.as_secs()).to_string(),
            ),
        ];
        self.act("AddPortMapping", &arguments).await.map(drop)
    }

    /// The outer port of a mapping that a node at this address left behind.
    pub(crate) async fn left(&self, port: NonZeroU16, own: Ipv4Addr) -> Option<NonZeroU16> {
        let left = timeout(ENTRIES, self.left_at_leisure(port, own)).await;
        left.ok().flatten()
    }

    async fn left_at_leisure(&self, port: NonZeroU16, own: Ipv4Addr) -> Option<NonZeroU16> {
        for index in 0..ENTRIES_MAX {
            let index = [("NewPortMappingIndex", index.to_string())];
            let entry = self.act("GetGenericPortMappingEntry", &index).await.ok()?;
            let is = |name: &str, value: &str| entry.get(name).is_some_and(|said| said == value);
            if is("NewInternalClient", &own.to_string())
                && is("NewInternalPort", &port.to_string())
                && is("NewProtocol", "UDP")
            {
                return entry.get("NewExternalPort")?.parse().ok();
            }
        }
        None
    }

    /// Whose a port is.
    ///
    /// # Errors
    /// It does not say.
    pub async fn entry(&self, ask: &Ask, own: Ipv4Addr) -> Result<Entry, Failure> {
        let arguments = [
            ("NewRemoteHost", String::new()),
            ("NewExternalPort", ask.external.to_string()),
            ("NewProtocol", "UDP".into()),
        ];
        match self.act("GetSpecificPortMappingEntry", &arguments).await {
            Ok(entry) => {
                let client = entry.get("NewInternalClient");
                let client = client.and_then(|said| said.parse::<Ipv4Addr>().ok());
                let port = entry.get("NewInternalPort");
                let port = port.and_then(|said| said.parse::<u16>().ok());
                match (client, port) {
                    (Some(Ipv4Addr::UNSPECIFIED), Some(_)) => Ok(Entry::Nothing),
                    (Some(client), Some(port)) if (client, port) == (own, ask.port.get()) => {
                        Ok(Entry::Own)
                    }
                    (Some(_), Some(_)) => Ok(Entry::Other),
                    _ => Err(Failure::Malformed(
                        "it does not say whose the port is".into(),
                    )),
                }
            }
            Err(Not::Fault(NO_SUCH_ENTRY)) => Ok(Entry::Nothing),
            Err(not) => Err(not.into()),
        }
    }

    /// Takes a mapping back.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn delete(&self, ask: &Ask) -> Result<(), Failure> {
        let arguments = [
            ("NewRemoteHost", String::new()),
            ("NewExternalPort", ask.external.to_string()),
            ("NewProtocol", "UDP".into()),
        ];
        match self.act("DeletePortMapping", &arguments).await {
            Ok(_) | Err(Not::Fault(NO_SUCH_ENTRY)) => Ok(()),
            Err(not) => Err(not.into()),
        }
    }
}

#[cfg(test)]
impl Igd {
    /// One at a known place.
    pub(crate) fn at(host: SocketAddrV4) -> Self {
        let path = "/ctl".to_owned();
        Self::new(Url { host, path }, SERVICES[1])
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    fn description(services: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\"><device><deviceList><device><serviceList>{services}\
             </serviceList></device></deviceList></device></root>"
        )
    }

    fn service(kind: &str, control: &str) -> String {
        format!(
            "<service><serviceType>{kind}</serviceType><controlURL>{control}</controlURL></service>"
        )
    }

    #[test]
    fn the_services_that_map_ports_are_found_and_stay_at_the_router() {
        let url = Url::parse("http://10.0.0.1:5000/root.xml").unwrap();
        let text = description(
            &(service(SERVICES[2], "/ppp")
                + &service("urn:schemas-upnp-org:service:Layer3Forwarding:1", "/l3")
                + &service(SERVICES[1], "http://10.0.0.9/elsewhere")
                + &service(SERVICES[0], "ctl")),
        );
        let found = services(&url, &text).unwrap();
        let found: Vec<_> = found
            .iter()
            .map(|igd| (igd.service, igd.control.path.as_str()))
            .collect();
        assert_eq!(found, [(SERVICES[0], "/ctl"), (SERVICES[2], "/ppp")]);
        let many = description(&service(SERVICES[1], "/a").repeat(100));
        assert_eq!(services(&url, &many).unwrap().len(), SERVICES_MAX);
        assert!(services(&url, &text[..300]).is_err());
    }

    #[test]
    fn faults_are_told_by_number_and_in_words() {
        let fault = "<s:Envelope xmlns:s=\"x\"><s:Body><s:Fault><detail><UPnPError><errorCode>718</errorCode></UPnPError></detail></s:Fault></s:Body></s:Envelope>";
        let Err(not) = said(false, fault) else {
            panic!("it is a fault");
        };
        assert_eq!(
            Failure::from(not).to_string(),
            "the router refuses: another host has that port (error 718)"
        );
        assert!(matches!(said(false, "<a></a>"), Err(Not::Failure(_))));
        let well = said(
            true,
            "<a><NewExternalIPAddress> 8.8.8.8 </NewExternalIPAddress></a>",
        );
        assert_eq!(well.unwrap()["NewExternalIPAddress"], "8.8.8.8");
    }
}
