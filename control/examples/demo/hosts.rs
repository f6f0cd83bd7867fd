//! Hosts made of network namespaces, joined by veth pairs, each running a node: the stage of the
//! demonstration and of the namespaces tests. Whatever happens, dropping it ends its processes by id
//! and removes its namespaces, pins and files.

#![allow(unreachable_pub)]
#![allow(
    dead_code,
    reason = "the demonstration and the tests each use their part"
)]

use std::{
    fs, io,
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use virga::keys::{self, EntityKey, Existing, KeyKind, NodeKey, Secret};

/// What a packet moves on its way through a kernel's stack: table and field of /proc/net/snmp, name in
/// /proc/net/snmp6.
const STACK: [(&str, &str, &str); 4] = [
    ("Udp", "InDatagrams", "Udp6InDatagrams"),
    ("Udp", "NoPorts", "Udp6NoPorts"),
    ("Udp", "InErrors", "Udp6InErrors"),
    ("Ip", "ForwDatagrams", "Ip6OutForwDatagrams"),
];

/// How long a node may take to start or stop.
const PATIENCE: Duration = Duration::from_secs(90);

/// One host.
pub struct Host {
    /// Its name; node, files and configuration go by it.
    pub name: String,
    /// Its namespace; `None` is this machine's own.
    pub namespace: Option<String>,
    /// Its node's public key and id.
    pub node: NodeKey,
    /// Its entity.
    pub entity: EntityKey,
    child: Option<Child>,
}

/// All hosts of one stage.
pub struct Hosts {
    /// Keys, configurations, sockets and logs.
    pub folder: PathBuf,
    prefix: String,
    psk: Secret,
    virga: PathBuf,
    hosts: Vec<Host>,
}

impl Hosts {
    /// An empty stage; `virga` is the binary that nodes run. Removes what a killed run of the same
    /// prefix left.
    pub fn new(prefix: &str, virga: &Path) -> io::Result<Self> {
        sweep(prefix, virga);
        // A process may have several at a time.
        static STAGES: AtomicU32 = AtomicU32::new(0);
        let stage = STAGES.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{prefix}-{}-{stage}", std::process::id());
        let folder = std::env::temp_dir().join(&prefix);
        fs::create_dir_all(&folder)?;
        let (virga, psk) = (virga.to_path_buf(), Secret::generate()?);
        Ok(Self {
            folder,
            prefix,
            psk,
            virga,
            hosts: Vec::new(),
        })
    }

    /// Adds a host in a namespace of its own.
    pub fn add(&mut self, name: &str) -> io::Result<()> {
        let namespace = format!("{}-{name}", self.prefix);
        ip(&["netns", "add", &namespace])?;
        self.push(name, Some(namespace))?;
        self.ip(name, &["link", "set", "lo", "up"])
    }

    /// Adds a host in this machine's own namespace.
    pub fn add_here(&mut self, name: &str) -> io::Result<()> {
        self.push(name, None)
    }

    fn push(&mut self, name: &str, namespace: Option<String>) -> io::Result<()> {
        let node = NodeKey::from(Secret::generate()?);
        let entity = EntityKey::from(Secret::generate()?);
        let host = Host {
            name: name.to_owned(),
            namespace,
            node,
            entity,
            child: None,
        };
        let folder = self.folder.join(name);
        fs::create_dir_all(&folder)?;
        for (kind, secret) in [
            (KeyKind::Node, &host.node.secret),
            (KeyKind::Entity, &host.entity.seed),
            (KeyKind::Psk, &self.psk),
        ] {
            keys::write(
                kind,
                &folder.join(kind.file_name()),
                secret,
                Existing::Replace,
            )
            .map_err(io::Error::other)?;
        }
        self.hosts.push(host);
        Ok(())
    }

    /// A host by name.
    pub fn host(&self, name: &str) -> &Host {
        self.hosts
            .iter()
            .find(|h| h.name == name)
            .expect("the stage has this host")
    }

    /// Joins two hosts by a veth pair. Ends are (host, interface, address with prefix length).
    pub fn join(&self, a: (&str, &str, &str), b: (&str, &str, &str)) -> io::Result<()> {
        let (left, right) = (self.namespace(a.0), self.namespace(b.0));
        let args = [
            "link", "add", a.1, "netns", left, "type", "veth", "peer", "name", b.1, "netns",
        ];
        ip(&[&args[..], &[right]].concat())?;
        for (host, interface, address) in [a, b] {
            self.ip(
                host,
                &["address", "add", address, "dev", interface, "nodad"],
            )?;
            self.ip(host, &["link", "set", "dev", interface, "up"])?;
            // veth leaves checksums to hardware that it does not have; what is redirected needs them.
            self.run(host, "ethtool", &["-K", interface, "tx", "off"])?;
        }
        Ok(())
    }

    fn namespace(&self, host: &str) -> &str {
        self.host(host)
            .namespace
            .as_deref()
            .expect("the host has a namespace")
    }

    /// The binary that nodes run.
    pub fn virga(&self) -> &Path {
        &self.virga
    }

    /// `ip` in a host's namespace.
    pub fn ip(&self, host: &str, args: &[&str]) -> io::Result<()> {
        self.run(host, "ip", args).map(drop)
    }

    /// A program in a host's namespace; its failure is an error.
    pub fn run(&self, host: &str, program: &str, args: &[&str]) -> io::Result<Output> {
        let output = self.command(host, program).args(args).output()?;
        if output.status.success() {
            return Ok(output);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!(
            "{program} {}: {}",
            args.join(" "),
            said.trim()
        )))
    }

    /// A program to be run in a host's namespace. `nsenter` leaves /sys alone, `ip netns exec` would
    /// mount another over the pins.
    pub fn command(&self, host: &str, program: &str) -> Command {
        // Ends with this process, even if that is killed.
        let mut command = Command::new("setpriv");
        // An interrupt at the terminal is for whoever runs the hosts.
        command.process_group(0);
        command.args(["--pdeathsig", "KILL", "--"]);
        if let Some(namespace) = &self.host(host).namespace {
            command
                .arg("nsenter")
                .arg(format!("--net=/run/netns/{namespace}"));
        }
        command.arg(program);
        command
    }

    /// A program run as `ip netns exec` does: with another /sys over the pins.
    pub fn netns_exec(&self, host: &str, program: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.process_group(0);
        let namespace = self.namespace(host);
        command.args([
            "--pdeathsig",
            "KILL",
            "--",
            "ip",
            "netns",
            "exec",
            namespace,
        ]);
        command.arg(program);
        command
    }

    /// Runs in a host's network namespace, on a thread of its own.
    pub fn inside<T: Send>(&self, host: &str, run: impl FnOnce() -> T + Send) -> io::Result<T> {
        let file = fs::File::open(Path::new("/run/netns").join(self.namespace(host)))?;
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let network = rustix::thread::LinkNameSpaceType::Network;
                rustix::thread::move_into_link_name_space(file.as_fd(), Some(network))?;
                Ok(run())
            });
            thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Link-layer address of a host's interface.
    pub fn mac(&self, host: &str, interface: &str) -> io::Result<[u8; 6]> {
        let shown = self.run(host, "ip", &["-json", "link", "show", "dev", interface])?;
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout)?;
        let text = shown[0]["address"].as_str().unwrap_or_default();
        let bytes: Result<Vec<u8>, _> =
            text.split(':').map(|b| u8::from_str_radix(b, 16)).collect();
        let mac = bytes.ok().and_then(|b| b.try_into().ok());
        mac.ok_or_else(|| io::Error::other(format!("{interface} has no MAC address: {text}")))
    }

    /// Where a host's node has its socket.
    pub fn socket(&self, host: &str) -> PathBuf {
        self.folder.join(format!("{host}.sock"))
    }

    /// The node's name: unique on the machine, as pins go by it.
    pub fn node_name(&self, host: &str) -> String {
        format!("{}-{host}", self.prefix)
    }

    /// A host's log.
    pub fn log(&self, host: &str) -> String {
        fs::read_to_string(self.folder.join(host).join("log")).unwrap_or_default()
    }

    /// Writes a host's configuration: `[node]` from what is known of it, then `rest`, in which
    /// `{HOST.node}` and `{HOST.entity}` stand for the public keys of any host.
    pub fn configure(&self, host: &str, listen: &str, rest: &str) -> io::Result<PathBuf> {
        let folder = self.folder.join(host);
        let mut text = format!(
            "[node]\nname = \"{}\"\nnetwork = \"demo\"\nlisten = \"{listen}\"\nsocket = \"{}\"\n\
             state = \"{}\"\n",
            self.node_name(host),
            self.socket(host).display(),
            folder.join("state").display()
        );
        for (key, kind) in [("node", KeyKind::Node), ("entity", KeyKind::Entity)]
            .map(|(k, v)| (format!("{k}_key"), v))
        {
            let path = folder.join(kind.file_name());
            text += &format!("{key}_file = \"{}\"\n", path.display());
        }
        text += &format!(
            "psk_file = \"{}\"\n",
            folder.join(KeyKind::Psk.file_name()).display()
        );
        text += rest;
        for other in &self.hosts {
            let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
            text = text.replace(
                &format!("{{{}.node}}", other.name),
                &hex(&other.node.public),
            );
            text = text.replace(
                &format!("{{{}.entity}}", other.name),
                &hex(&other.entity.public),
            );
            text = text.replace(
                &format!("{{{}.name}}", other.name),
                &self.node_name(&other.name),
            );
        }
        let path = folder.join("node.toml");
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Starts a host's node and waits until its socket answers.
    pub fn start(&mut self, host: &str) -> io::Result<()> {
        self.start_by(host, Self::command)
    }

    /// The same with `ip netns exec`.
    pub fn start_by_netns_exec(&mut self, host: &str) -> io::Result<()> {
        self.start_by(host, Self::netns_exec)
    }

    /// The same under a program that runs it, such as `setpriv`, with its arguments.
    pub fn start_under(&mut self, host: &str, program: &str, args: &[&str]) -> io::Result<()> {
        self.start_by(host, |hosts, host, virga| {
            let mut command = hosts.command(host, program);
            command.args(args).arg(virga);
            command
        })
    }

    fn start_by(
        &mut self,
        host: &str,
        command: impl Fn(&Self, &str, &str) -> Command,
    ) -> io::Result<()> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.join(host).join("log"))?;
        let config = self.folder.join(host).join("node.toml");
        let virga = self.virga.to_string_lossy().into_owned();
        let child = command(self, host, &virga)
            .args(["node", "run", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.host_mut(host).child = Some(child);
        self.await_socket(host)
    }

    fn await_socket(&mut self, host: &str) -> io::Result<()> {
        let start = Instant::now();
        loop {
            if self.status(host).is_ok() {
                return Ok(());
            }
            let child = self.host_mut(host).child.as_mut();
            let ended = child.is_none_or(|c| c.try_wait().is_ok_and(|status| status.is_some()));
            if ended || start.elapsed() > PATIENCE {
                let log = self.log(host);
                return Err(io::Error::other(format!(
                    "node {host} did not start:\n{log}"
                )));
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn host_mut(&mut self, name: &str) -> &mut Host {
        self.hosts
            .iter_mut()
            .find(|h| h.name == name)
            .expect("the stage has this host")
    }

    /// The process of a host's node; it is `setpriv` and `nsenter` only until they have become the node.
    pub fn pid(&self, host: &str) -> Option<u32> {
        self.host(host).child.as_ref().map(Child::id)
    }

    /// Asks a host's node to stop and waits for it. True if it ended well.
    pub fn stop(&mut self, host: &str) -> io::Result<bool> {
        self.end(host, "-TERM")
    }

    /// Ends a host's node without asking.
    pub fn kill(&mut self, host: &str) -> io::Result<bool> {
        self.end(host, "-KILL")
    }

    fn end(&mut self, host: &str, signal: &str) -> io::Result<bool> {
        let Some(mut child) = self.host_mut(host).child.take() else {
            return Ok(true);
        };
        // One that has ended by itself is told by its status, not by kill.
        Command::new("kill")
            .args([signal, &child.id().to_string()])
            .output()?;
        let start = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status.success());
            }
            if start.elapsed() > PATIENCE {
                child.kill()?;
                child.wait()?;
                return Ok(false);
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// What `virga status --json` says of a host's node.
    pub fn status(&self, host: &str) -> io::Result<serde_json::Value> {
        let socket = self.socket(host);
        let virga = self.virga.to_string_lossy();
        let output = self.run(
            host,
            &virga,
            &["status", "--json", "--socket", &socket.to_string_lossy()],
        )?;
        serde_json::from_slice(&output.stdout).map_err(io::Error::other)
    }

    /// UDP packets that a host's kernel stack has seen, whatever it did with them, and IP packets that it
    /// has routed; IPv4 and IPv6 together. A packet that leaves in the NIC's driver moves none of it.
    pub fn stack_packets(&self, host: &str) -> io::Result<u64> {
        let read = |path: &str| -> io::Result<String> {
            let output = self.run(host, "cat", &[path])?;
            String::from_utf8(output.stdout).map_err(io::Error::other)
        };
        let (v4, v6) = (read("/proc/net/snmp")?, read("/proc/net/snmp6")?);
        let mut packets = 0;
        for (table, field, name_v6) in STACK {
            let missing = |name: &str| io::Error::other(format!("the kernel counts no {name}"));
            // A line of names, then one of values.
            let mut rows = v4
                .lines()
                .filter_map(|l| l.strip_prefix(table)?.strip_prefix(':'))
                .map(str::split_whitespace);
            let place = rows.next().and_then(|mut r| r.position(|f| f == field));
            let value = place.and_then(|at| rows.next()?.nth(at)?.parse::<u64>().ok());
            packets += value.ok_or_else(|| missing(&format!("{table}.{field}")))?;
            let mut rows = v6.lines().map(str::split_whitespace);
            let value = rows
                .find_map(|mut r| (r.next()? == name_v6).then(|| r.next())?)
                .and_then(|v| v.parse::<u64>().ok());
            packets += value.ok_or_else(|| missing(name_v6))?;
        }
        Ok(packets)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        let names: Vec<String> = self.hosts.iter().map(|h| h.name.clone()).collect();
        for name in &names {
            // A node that does not stop is killed; there is nobody left to tell of a failure.
            let _ended = self.stop(name);
            let _detached = Command::new(&self.virga)
                .args(["node", "detach", &self.node_name(name)])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            if let Some(namespace) = &self.host(name).namespace {
                let _removed = ip(&["netns", "delete", namespace]);
            }
        }
        let _removed = fs::remove_dir_all(&self.folder);
    }
}

/// Removes namespaces, pins and folders of runs whose process is no more.
fn sweep(prefix: &str, virga: &Path) {
    for namespace in left_in(Path::new("/run/netns"), prefix) {
        let detach = ["node", "detach", &namespace];
        let _detached = Command::new(virga)
            .args(detach)
            .stdout(Stdio::null())
            .status();
        let _removed = ip(&["netns", "delete", &namespace]);
    }
    let folders = std::env::temp_dir();
    for folder in left_in(&folders, prefix) {
        let _removed = fs::remove_dir_all(folders.join(folder));
    }
}

/// The names in a folder that are a prefix and the number of a process that is no more.
fn left_in(folder: &Path, prefix: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names
        .filter(|name| {
            let pid = name
                .strip_prefix(&format!("{prefix}-"))
                .and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
            pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
        })
        .collect()
}

fn ip(args: &[&str]) -> io::Result<()> {
    let output = Command::new("ip").args(args).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!(
        "ip {}: {}",
        args.join(" "),
        said.trim()
    )))
}

/// Polls until `condition` holds; false when patience is over.
pub fn eventually(mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if condition() {
            return true;
        }
        thread::sleep(Duration::from_millis(50));
    }
    false
}
