//! From the file as written to a [`Config`], rule by rule; every broken one is noted.

use super::{
    Config, DETECT_MULTIPLIER, Entity, ForwardingMode, ForwardingSection, KEEPALIVE_MS, LINK_KEY_S,
    LINK_KEY_S_MIN, LinkTags, NamedEntity, NodeSection, SOCKET_DIRECTORY, STATE_DIRECTORY, Workers,
    ZeroCopy, authorities, channels, discovery, evidence, fallback, file, handshake, metrics,
    peers,
    problem::{Report, Section, suggest},
    routing, scopes, secrets, subnets,
    values::{self, Fault},
};
use crate::cause;
use crate::identity;
use crate::keys::{self, EntityKey, KeyKind, Keys, NodeKey, Secret};
use crate::{
    capability::Statements,
    membership::Memberships,
    rights::{Authentic, file as rights_file, identity::Claim},
};
use std::{
    ops::Range,
    path::{Path, PathBuf},
};
use toml::Spanned;
use virga_ebpf::{header::Subnet, limits};
use virga_transport::{
    Congestion,
    io::driver::{Batching, Choice, DriverConfig},
    share::WORKERS_MAX,
};

/// More destinations than this do not fit the memory of any router that we know.
const DESTINATIONS_MAX: i64 = 1 << 24;
/// Highest core number that `sched_setaffinity`'s set holds.
const CORE_MAX: i64 = 1_023;
/// Beyond a hundredth of a second a core that polls does nothing else.
const BUSY_POLL_US_MAX: i64 = 10_000;
/// Completions that end a wait at most: half of the receive buffers of io_uring.
const WAKE_COMPLETIONS_MAX: i64 = 32;
/// How long such a wait goes on.
const WAKE_WITHIN_US: u32 = 200;
const MODES: [(&str, ForwardingMode); 4] = [
    ("auto", ForwardingMode::Auto),
    ("native", ForwardingMode::Native),
    ("generic", ForwardingMode::Generic),
    ("userspace", ForwardingMode::Userspace),
];

/// Where the secrets come from.
pub(super) enum KeySource {
    /// The files that `[node]` names.
    Files,
    /// The caller.
    Given(Keys),
}

/// Applies every rule; `None` when one is broken, or [`Report`] already holds a problem.
pub(super) fn resolve(
    path: &Path,
    file: file::File,
    source: KeySource,
    report: &mut Report<'_>,
) -> Option<Config> {
    let Some(node) = file.node else {
        if !report.is_mistyped("node") {
            report.add(0..0, "node", "is missing", file::NODE_FIX);
        }
        return None;
    };
    let node_span = node.span();
    let directory = path.parent().unwrap_or(Path::new(""));
    let (node, keys, kept) = resolve_node(
        Section::new("node", node_span.clone()),
        node.into_inner(),
        directory,
        source,
        report,
    );
    let own = peers::Own {
        name: node.name.as_deref(),
        listen: node.listen,
        node: keys.as_ref().map(|keys| &keys.node),
        entity: keys.as_ref().map(|keys| &keys.entity),
        is_moved_here: keys
            .as_ref()
            .is_some_and(|keys| identity::is_placed(&kept, &keys.entity.public, &keys.node.public)),
        routing: routing::resolve(file.routing, (file.nat, file.forwarding.as_ref()), report),
        handshake: handshake::resolve(file.handshake, report),
    };
    let (routing, handshake) = (own.routing, own.handshake);
    let roster = peers::resolve(file.peers, &own, report);
    let forwarding = resolve_forwarding(file.forwarding, roster.peers.len(), report);
    let (subnet_issuers, filter_life_s) = subnets::resolve(file.subnets, &roster, report);
    let subnet_gateways = subnets::gateways(file.subnet_gateways, &roster, report);
    let name = node.name.as_deref();
    let scopes = scopes::resolve(file.scopes, name, &roster, report);
    let (channels, replicated) = channels::resolve(file.channels, &scopes, (name, &roster), report);
    let blocks = file.channel_authorities;
    let channel_authorities = authorities::resolve(blocks, name, &roster, report);
    let metrics = metrics::resolve(file.metrics, report);
    let discovery = discovery::resolve(file.discovery, directory, node.listen, report);
    let fallback = fallback::resolve(file.fallback, (directory, node.listen), report);
    if !report.is_clean() {
        return None;
    }
    let keys = keys?;
    let node = node.complete(&keys)?;
    let own = NamedEntity {
        name: node.name.clone(),
        entity: Entity::from_key(keys.entity.public),
    };
    let entities = [own].into_iter().chain(roster.entities).collect();
    let (path, forwarding) = (path.to_path_buf(), forwarding?);
    let config = Config {
        path,
        node,
        forwarding,
        routing,
        discovery,
        handshake,
        peers: roster.peers,
        entities,
        channels,
        replicated,
        scopes,
        subnet_issuers,
        subnet_gateways,
        filter_life_s,
        channel_authorities,
        metrics,
        fallback,
        keys,
        absence: None,
        punched: std::collections::BTreeMap::new(),
    };
    check_link_tags(&config, report);
    subnets::check_own(&config, report);
    report.is_clean().then_some(config)
}

/// Link tags are checked by the address that a packet comes from.
fn check_link_tags(config: &Config, report: &mut Report<'_>) {
    let required = config.peers.iter();
    for peer in required.filter(|peer| config.link_tags(peer) == LinkTags::Require) {
        if let Some(other) = config.shares_address(peer) {
            let what = format!(
                "cannot be \"require\" for {:?}: {other:?} has the same IP address",
                peer.name
            );
            let fix =
                "give both an IP address of their own, or write link_tags = \"auto\" for them";
            report.add(0..0, "link_tags", what, fix);
        }
    }
}

/// `[node]` while some of it may be wrong.
struct PartialNode {
    name: Option<String>,
    network: Option<String>,
    psk_generation: u16,
    files: [Option<PathBuf>; 3],
    listen: Option<std::net::SocketAddr>,
    subnet: Subnet,
    socket: Option<PathBuf>,
    socket_group: Option<String>,
    congestion: Congestion,
    workers: Workers,
    driver: DriverConfig,
    zero_copy: ZeroCopy,
    tokens: Vec<Authentic>,
    statements: Statements,
    memberships: Memberships,
    state: Option<PathBuf>,
    logs: Option<PathBuf>,
}

impl PartialNode {
    /// The folder of what the node keeps.
    fn state(&self) -> Option<PathBuf> {
        let default = || Some(Path::new(STATE_DIRECTORY).join(self.name.as_ref()?));
        self.state.clone().or_else(default)
    }

    /// Who has moved or has another key, as the node has kept it; a folder that cannot be read is
    /// reported by the node when it starts.
    fn kept(&self) -> Vec<Claim> {
        let kept = self
            .state()
            .map(|state| rights_file::kept_identities(&state));
        kept.and_then(Result::ok).unwrap_or_default()
    }

    fn complete(self, keys: &Keys) -> Option<NodeSection> {
        let state = self.state()?;
        let name = self.name?;
        let [node_key_file, entity_key_file, psk_file] = self.files;
        let default_socket = || Path::new(SOCKET_DIRECTORY).join(format!("{name}.sock"));
        Some(NodeSection {
            network: self.network?,
            id: keys.node.id,
            origin: keys.entity.origin,
            psk_generation: self.psk_generation,
            node_key_file: node_key_file?,
            entity_key_file: entity_key_file?,
            psk_file: psk_file?,
            listen: self.listen?,
            subnet: self.subnet,
            socket: self.socket.unwrap_or_else(default_socket),
            socket_group: self.socket_group,
            congestion: self.congestion,
            workers: self.workers,
            driver: self.driver,
            zero_copy: self.zero_copy,
            tokens: self.tokens,
            statements: self.statements,
            memberships: self.memberships,
            logs: self.logs.unwrap_or_else(|| state.join("logs")),
            state,
            name,
        })
    }
}

fn resolve_node(
    section: Section,
    node: file::Node,
    directory: &Path,
    source: KeySource,
    report: &mut Report<'_>,
) -> (PartialNode, Option<Keys>, Vec<Claim>) {
    let mut key_path = |key, value: Option<Spanned<String>>, kind: KeyKind| {
        let example = format!("\"{}/{}\"", keys::DIRECTORY, kind.file_name());
        let value = report.required(&section, key, value, &example)?;
        let mut check = Checker {
            section: &section,
            report,
        };
        let span = value.span();
        let named = check.text(key, Some(value), |text| secrets::file(directory, text))?;
        Some((section.key(key), span, named))
    };
    let files = [
        key_path("node_key_file", node.node_key_file, KeyKind::Node),
        key_path("entity_key_file", node.entity_key_file, KeyKind::Entity),
        key_path("psk_file", node.psk_file, KeyKind::Psk),
    ];
    let keys = match source {
        KeySource::Given(keys) => Some(keys),
        KeySource::Files => read_keys(&files, report),
    };
    let entity = keys.as_ref().map(|keys| keys.entity.public);
    let name = report.required(&section, "name", node.name, "\"edge-a\"");
    let network = report.required(&section, "network", node.network, "\"demo\"");
    let listen = report.required(&section, "listen", node.listen, "\"10.77.1.2:4783\"");
    let mut check = Checker {
        section: &section,
        report,
    };
    let folder = |folder: &str| match folder {
        "" => values::fault("is empty", "name a folder, or leave the key out"),
        _ => Ok(directory.join(folder)),
    };
    let mut partial = PartialNode {
        name: check.text("name", name, values::name),
        network: check.text("network", network, values::network),
        psk_generation: check
            .number(
                "psk_generation",
                node.psk_generation,
                0,
                i64::from(u16::MAX),
            )
            .unwrap_or_default(),
        files: files.map(|file| file.map(|(_, _, named)| named.path)),
        listen: check.text("listen", listen, values::listen),
        subnet: check
            .text("subnet", node.subnet, values::subnet)
            .unwrap_or_default(),
        socket: check.text("socket", node.socket, values::socket),
        socket_group: check.text("socket_group", node.socket_group, |group| match group {
            "" => values::fault("is empty", "write a group's name, or leave the key out"),
            _ => Ok(group.to_owned()),
        }),
        congestion: check
            .text("congestion", node.congestion, congestion)
            .unwrap_or_default(),
        workers: resolve_workers(&mut check, node.workers, node.worker_cores),
        driver: DriverConfig {
            choice: check
                .text("driver", node.driver, driver)
                .unwrap_or_default(),
            busy_poll_us: check.number("busy_poll_us", node.busy_poll_us, 1, BUSY_POLL_US_MAX),
            batching: check
                .number(
                    "wake_completions",
                    node.wake_completions,
                    2,
                    WAKE_COMPLETIONS_MAX,
                )
                .map(|completions| Batching {
                    completions,
                    within_us: WAKE_WITHIN_US,
                }),
        },
        zero_copy: match node.zero_copy.map(Spanned::into_inner) {
            Some(true) => ZeroCopy::Listed,
            Some(false) | None => ZeroCopy::Off,
        },
        tokens: Vec::new(),
        statements: Statements::default(),
        memberships: Memberships::default(),
        state: check.text("state", node.state, folder),
        logs: check.text("logs", node.logs, folder),
    };
    let kept = partial.kept();
    let own = (entity, &kept[..]);
    partial.tokens = evidence::tokens(&section, node.tokens, directory, own, report);
    partial.statements = evidence::statements(&section, node.capabilities, directory, own, report);
    partial.memberships = evidence::memberships(&section, node.memberships, directory, own, report);
    (partial, keys, kept)
}

fn congestion(text: &str) -> Result<Congestion, Fault> {
    match text {
        "cubic" => Ok(Congestion::Cubic),
        "bbr" => Ok(Congestion::Bbr),
        _ => values::fault(
            format!("{text:?} is no congestion control"),
            "write \"cubic\" or \"bbr\"",
        ),
    }
}

fn resolve_workers(
    check: &mut Checker<'_, '_>,
    workers: Option<Spanned<file::Workers>>,
    cores: Option<Spanned<Vec<Spanned<i64>>>>,
) -> Workers {
    const AUTO: &str = "auto";
    let span = workers.as_ref().map(Spanned::span);
    let workers = workers.and_then(|workers| {
        let rule = match workers.get_ref() {
            file::Workers::Word(word) if word == AUTO => Ok(Workers::Auto),
            file::Workers::Word(word) => values::fault(
                format!("{word:?} is no number of workers"),
                format!("use 1 to {WORKERS_MAX}, or {AUTO:?}"),
            ),
            file::Workers::Number(number) => {
                values::number(*number, 1, i64::from(WORKERS_MAX)).map(Workers::Number)
            }
        };
        check.keep("workers", workers.span(), rule)
    });
    let Some(cores) = cores else {
        return workers.unwrap_or(Workers::Number(1));
    };
    let (cores_span, given) = (cores.span(), cores.get_ref().len());
    let mut places = Vec::new();
    for core in cores.into_inner() {
        let span = core.span();
        let Some(core) = check.number("worker_cores", Some(core), 0, CORE_MAX) else {
            continue;
        };
        if places.contains(&core) {
            let twice = values::fault(format!("core {core} is named twice"), "leave one out");
            check.keep::<()>("worker_cores", span, twice);
        }
        places.push(core);
    }
    let most = usize::from(WORKERS_MAX);
    let fault = match (given, &workers, span) {
        (0, ..) => values::fault("names no core", "name at least one, or leave the key out"),
        (1.., ..) if given > most => {
            values::fault(format!("names more than {most} cores"), "leave some out")
        }
        (count, Some(workers), Some(_)) if *workers != Workers::Number(count) => values::fault(
            format!("names {count} cores, and `workers` says otherwise"),
            "leave `workers` out: there is one for each core",
        ),
        _ => Ok(()),
    };
    check.keep("worker_cores", cores_span, fault);
    Workers::Cores(places)
}

type KeyPath = Option<(String, Range<usize>, secrets::Named)>;

/// Reads all three files, so that all three can be complained about.
fn read_keys(files: &[KeyPath; 3], report: &mut Report<'_>) -> Option<Keys> {
    let mut read = |kind: KeyKind, file: &KeyPath| -> Option<Secret> {
        let (key, span, named) = file.as_ref()?;
        let secret = match named.is_credential {
            true => keys::read_credential(kind, &named.path),
            false => keys::read(kind, &named.path),
        };
        match secret {
            Ok(secret) => Some(secret),
            Err(error) => {
                let fix = match cause::is_not_permitted(&error) {
                    true => "run as root, or as the user whose file it is",
                    false => "",
                };
                report.add(span.clone(), key, cause::chain(&error), fix);
                None
            }
        }
    };
    let node = read(KeyKind::Node, &files[0]);
    let entity = read(KeyKind::Entity, &files[1]);
    let psk = read(KeyKind::Psk, &files[2]);
    Some(Keys {
        node: NodeKey::from(node?),
        entity: EntityKey::from(entity?),
        psk: psk?,
    })
}

/// Turns single values into types and notes what is wrong with them.
pub(super) struct Checker<'c, 'r> {
    pub(super) section: &'c Section,
    pub(super) report: &'c mut Report<'r>,
}

impl Checker<'_, '_> {
    /// Applies `rule` to a text.
    pub(super) fn text<T>(
        &mut self,
        key: &str,
        value: Option<Spanned<String>>,
        rule: impl Fn(&str) -> Result<T, Fault>,
    ) -> Option<T> {
        let value = value?;
        self.keep(key, value.span(), rule(value.get_ref()))
    }

    /// A whole number of at least `min` and at most `max`.
    pub(super) fn number<T: TryFrom<i64>>(
        &mut self,
        key: &str,
        value: Option<Spanned<i64>>,
        min: i64,
        max: i64,
    ) -> Option<T> {
        let value = value?;
        self.keep(
            key,
            value.span(),
            values::number(*value.get_ref(), min, max),
        )
    }

    pub(super) fn keep<T>(
        &mut self,
        key: &str,
        span: Range<usize>,
        result: Result<T, Fault>,
    ) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(Fault { what, fix }) => {
                self.report.add(span, self.section.key(key), what, fix);
                None
            }
        }
    }
}

fn resolve_forwarding(
    file: Option<Spanned<file::Forwarding>>,
    peers: usize,
    report: &mut Report<'_>,
) -> Option<ForwardingSection> {
    let span = file.as_ref().map_or(0..0, Spanned::span);
    let section = Section::new("forwarding", span.clone());
    let file = file.map(Spanned::into_inner).unwrap_or_default();
    let mode_span = file.mode.as_ref().map_or(span, Spanned::span);
    let mut check = Checker {
        section: &section,
        report,
    };
    let is_given = file.mode.is_some();
    let mode = check.text("mode", file.mode, mode);
    let destinations_min = i64::try_from(peers).unwrap_or(i64::MAX).max(1);
    let destinations_max = check
        .number(
            "destinations_max",
            file.destinations_max,
            destinations_min,
            DESTINATIONS_MAX,
        )
        .unwrap_or(limits::DESTINATIONS_MAX);
    let link_tags = check.text("link_tags", file.link_tags, values::link_tags);
    let [least, most] = [LINK_KEY_S_MIN, u32::MAX].map(i64::from);
    let link_key_s = check.number("link_key_s", file.link_key_s, least, most);
    let keepalive_ms = check.number("keepalive_ms", file.keepalive_ms, 0, 10_000);
    let detect_multiplier = check.number("detect_multiplier", file.detect_multiplier, 2, 255);
    let is_empty = file
        .interfaces
        .as_ref()
        .is_none_or(|names| names.get_ref().is_empty());
    if let (Some(name @ ("native" | "generic")), true) = (mode.map(label), is_empty) {
        let what = format!("mode {name:?} needs interfaces to attach to");
        let fix = "add a line such as: interfaces = [\"eth0\"]";
        report.add(mode_span, section.key("interfaces"), what, fix);
    }
    let interfaces = resolve_interfaces(&section, file.interfaces, report);
    let mode = if is_given {
        mode?
    } else {
        ForwardingMode::default()
    };
    Some(ForwardingSection {
        mode,
        interfaces,
        destinations_max,
        link_tags: link_tags.unwrap_or_default(),
        link_key_s: link_key_s.unwrap_or(LINK_KEY_S),
        keepalive_ms: keepalive_ms.unwrap_or(KEEPALIVE_MS),
        detect_multiplier: detect_multiplier.unwrap_or(DETECT_MULTIPLIER),
    })
}

fn mode(text: &str) -> Result<ForwardingMode, Fault> {
    let names = MODES.iter().map(|(name, _)| *name);
    match MODES.iter().find(|(name, _)| *name == text) {
        Some((_, mode)) => Ok(*mode),
        None => values::fault(
            format!("{text:?} is not a forwarding mode"),
            suggest(text, names),
        ),
    }
}

fn driver(text: &str) -> Result<Choice, Fault> {
    let all = Choice::ALL.iter();
    match all.clone().find(|choice| choice.name() == text) {
        Some(choice) => Ok(*choice),
        None => values::fault(
            format!("{text:?} is not a driver"),
            suggest(text, all.map(|choice| choice.name())),
        ),
    }
}

fn label(mode: ForwardingMode) -> &'static str {
    MODES
        .iter()
        .find(|(_, known)| *known == mode)
        .map_or("", |(name, _)| name)
}

impl std::fmt::Display for ForwardingMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(label(*self))
    }
}

fn resolve_interfaces(
    section: &Section,
    names: Option<Spanned<Vec<Spanned<String>>>>,
    report: &mut Report<'_>,
) -> Vec<String> {
    let Some(names) = names else {
        return Vec::new();
    };
    let ports_max = usize::try_from(limits::PORTS_MAX).unwrap_or(usize::MAX);
    if names.get_ref().len() > ports_max {
        let what = format!("names {} interfaces", names.get_ref().len());
        report.add(
            names.span(),
            section.key("interfaces"),
            what,
            format!("at most {ports_max} can be served"),
        );
    }
    let mut interfaces = Vec::new();
    for name in names.into_inner() {
        let span = name.span();
        let mut check = Checker { section, report };
        let Some(name) = check.text("interfaces", Some(name), values::interface) else {
            continue;
        };
        if interfaces.contains(&name) {
            report.add(
                span,
                section.key("interfaces"),
                format!("{name:?} is named twice"),
                "name it once",
            );
        } else {
            interfaces.push(name);
        }
    }
    interfaces
}
