//! Two hosts as network namespaces joined by a veth pair, and a nebula on each: a tunnel that plain sockets talk through.
//!
//! Settings by nebula's own example configuration: a static map instead of a lighthouse, large socket buffers
//! (`listen.read_buffer`), several packets a system call (`listen.batch`, its default), a long transmit queue (`tun.tx_queue`), jumbo
//! frames as the link carries them (`tun.mtu`), AES-GCM (its default).

use std::{
    fs,
    net::Ipv4Addr,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    end::Problem,
    stage::{Process, ending_with_us},
};

/// Addresses of the hosts over veth, and over nebula.
pub(crate) const OUTER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 78, 8, 1), Ipv4Addr::new(10, 78, 8, 2)];
pub(crate) const INNER: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 79, 8, 1), Ipv4Addr::new(10, 79, 8, 2)];
/// What a frame of the link carries, and what nebula asks for then.
const LINK_MTU: &str = "9001";
const TUNNEL_MTU: u32 = 8_800;
/// How long a tunnel may take to come up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Two hosts; they are removed when dropped.
pub(crate) struct Hosts {
    pub(crate) namespaces: [String; 2],
}

impl Hosts {
    pub(crate) fn join() -> Result<Self, Problem> {
        let own = std::process::id();
        // From here on dropping it takes away what has been made.
        let hosts = Self {
            namespaces: [0, 1].map(|n| format!("virga-peers-{own}-{n}")),
        };
        let [a, b] = &hosts.namespaces;
        for namespace in [a, b] {
            ip(&["netns", "add", namespace])?;
            ip(&["-n", namespace, "link", "set", "lo", "up"])?;
        }
        let (to_a, to_b) = (
            ["netns", a],
            ["type", "veth", "peer", "name", "m0", "netns", b],
        );
        ip(&[&["link", "add", "m0"], &to_a[..], &to_b[..]].concat())?;
        for (namespace, address) in hosts.namespaces.iter().zip(OUTER) {
            let address = format!("{address}/24");
            ip(&["-n", namespace, "address", "add", &address, "dev", "m0"])?;
            ip(&["-n", namespace, "link", "set", "m0", "mtu", LINK_MTU, "up"])?;
        }
        Ok(hosts)
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            // One that was not made cannot be removed.
            let _removed = ip(&["netns", "delete", namespace]);
        }
    }
}

/// A nebula on each host.
pub(crate) struct Nebula {
    _processes: Vec<Process>,
}

impl Nebula {
    /// Starts both, and waits until the tunnel carries packets.
    pub(crate) fn start(folder: &Path, hosts: &Hosts, cores: [usize; 2]) -> Result<Self, Problem> {
        let ca = folder.join("ca.crt");
        if !ca.exists() {
            let made = ["-out-crt", "ca.crt", "-out-key", "ca.key"];
            run_in(
                folder,
                "nebula-cert",
                &[&["ca", "-name", "bench"], &made[..]].concat(),
            )?;
        }
        let mut processes = Vec::new();
        for (host, namespace) in hosts.namespaces.iter().enumerate() {
            sign(folder, host)?;
            let config = folder.join(format!("host{host}.yml"));
            fs::write(&config, configuration(folder, host))?;
            let log = fs::File::create(folder.join(format!("host{host}.log")))?;
            let mut command = ending_with_us(Some(namespace));
            command
                .args([
                    "taskset",
                    "-c",
                    &cores[host].to_string(),
                    "nebula",
                    "-config",
                ])
                .arg(&config)
                .stdout(log.try_clone()?)
                .stderr(log);
            processes.push(Process::spawn(&mut command)?);
        }
        await_tunnel(folder, &hosts.namespaces[0])?;
        Ok(Self {
            _processes: processes,
        })
    }
}

fn sign(folder: &Path, host: usize) -> Result<(), Problem> {
    let (name, ip) = (format!("host{host}"), format!("{}/24", INNER[host]));
    let (crt, key) = (format!("{name}.crt"), format!("{name}.key"));
    if folder.join(&crt).exists() {
        return Ok(());
    }
    let by = ["sign", "-ca-crt", "ca.crt", "-ca-key", "ca.key"];
    let of = [
        "-name", &name, "-ip", &ip, "-out-crt", &crt, "-out-key", &key,
    ];
    run_in(folder, "nebula-cert", &[&by[..], &of[..]].concat())
}

fn await_tunnel(folder: &Path, namespace: &str) -> Result<(), Problem> {
    let (to, start) = (INNER[1].to_string(), Instant::now());
    while start.elapsed() < PATIENCE {
        let mut ping = ending_with_us(Some(namespace));
        ping.args(["ping", "-c", "1", "-W", "1", &to]);
        ping.stdout(Stdio::null()).stderr(Stdio::null());
        if ping.status()?.success() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    let said = fs::read_to_string(folder.join("host0.log")).unwrap_or_default();
    Err(format!("no tunnel after {} s: {said}", PATIENCE.as_secs()).into())
}

fn configuration(folder: &Path, host: usize) -> String {
    let other = 1 - host;
    let at = |name: String| folder.join(name).display().to_string();
    let (ca, cert, key) = (
        at("ca.crt".to_owned()),
        at(format!("host{host}.crt")),
        at(format!("host{host}.key")),
    );
    let (inner, outer) = (INNER[other], OUTER[other]);
    format!(
        r#"pki: {{ca: "{ca}", cert: "{cert}", key: "{key}"}}
static_host_map: {{"{inner}": ["{outer}:4242"]}}
lighthouse: {{am_lighthouse: false}}
listen: {{host: 0.0.0.0, port: 4242, batch: 64, read_buffer: 10485760, write_buffer: 10485760}}
punchy: {{punch: false}}
tun: {{dev: neb0, tx_queue: 2000, mtu: {TUNNEL_MTU}}}
logging: {{level: warning}}
firewall:
  outbound: [{{port: any, proto: any, host: any}}]
  inbound: [{{port: any, proto: any, host: any}}]
"#
    )
}

fn ip(args: &[&str]) -> Result<(), Problem> {
    run_in(Path::new("/"), "ip", args)
}

fn run_in(folder: &Path, program: &str, args: &[&str]) -> Result<(), Problem> {
    let output = Command::new(program)
        .args(args)
        .current_dir(folder)
        .output();
    let output = output.map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {}: {}", args.join(" "), said.trim()).into())
}
