//! What is broken, changed and attacked while traffic flows, one thing after the other, again and again. What does not
//! go as it should is noted as a failure, and the next thing follows.

use std::{
    collections::BTreeMap,
    fs, io,
    path::PathBuf,
    process::{Child, Stdio},
    sync::{Mutex, PoisonError, atomic::Ordering},
    time::{Duration, Instant},
};

use virga::mesh::blocking::Mesh;

use crate::{
    hosts::Hosts,
    load::{PATIENCE, Shared, channel},
    stage,
};

type Done = Result<(), String>;
/// What is done, in words, and how.
type Step<'a> = (&'static str, fn(&mut Faults<'a>) -> Done);

/// How long a link is down, and how long a flood takes.
const DOWN: Duration = Duration::from_millis(1_500);
const FLOOD_S: u64 = 2;
/// Packets a second of each of the floods.
const FLOOD_RATE: u32 = 500;
/// A right that was taken back has ended by then: nothing comes for a second.
const REVOKED: Duration = Duration::from_secs(5);
/// Tokens end by themselves after this, and the list of what was revoked forgets them.
const TOKEN_LIFE: &str = "10m";

/// Who breaks things.
pub(crate) struct Faults<'a> {
    hosts: &'a Mutex<Hosts>,
    shared: &'a Shared,
    sockets: &'a BTreeMap<&'static str, PathBuf>,
    /// Between two things.
    pause: Duration,
    rounds: u64,
}

impl<'a> Faults<'a> {
    pub(crate) const fn new(
        hosts: &'a Mutex<Hosts>,
        shared: &'a Shared,
        sockets: &'a BTreeMap<&'static str, PathBuf>,
        pause: Duration,
    ) -> Self {
        Self {
            hosts,
            shared,
            sockets,
            pause,
            rounds: 0,
        }
    }

    /// Goes on until it is to be calm; gives how often everything was done.
    pub(crate) fn run(mut self) -> u64 {
        let steps: [Step<'a>; 9] = [
            ("a link down and up", Self::link),
            ("a guest", Self::guest),
            ("a right given and taken back", Self::right),
            ("a reload", Self::reload),
            ("a router killed", Self::kill_router),
            ("floods", Self::flood),
            ("a reload that is refused", Self::bad_reload),
            ("a link taken out of use", Self::administer),
            ("the node that keeps the log killed", Self::kill_keeper),
        ];
        loop {
            for (name, step) in steps {
                self.shared.sleep(self.pause);
                if self.shared.is_calm() {
                    return self.rounds;
                }
                if let Err(problem) = step(&mut self) {
                    self.shared.fail(format!("{name}: {problem}"));
                }
            }
            self.rounds += 1;
        }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Hosts) -> io::Result<T>) -> Result<T, String> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        act(&mut hosts).map_err(|error| error.to_string())
    }

    /// `virga` on a host.
    fn virga(&self, host: &str, arguments: &[&str]) -> Result<String, String> {
        self.with(|hosts| {
            let virga = hosts.virga().to_string_lossy().into_owned();
            let output = hosts.run(host, &virga, arguments)?;
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        })
    }

    fn socket(&self, host: &str) -> String {
        self.sockets[host].to_string_lossy().into_owned()
    }

    fn link(&mut self) -> Done {
        // In turn: each edge's link to each router, from the one end and from the other.
        let (host, interface) = self.turn(&[
            ("a", "m1"),
            ("r2", "mb"),
            ("b", "m1"),
            ("r1", "ma"),
            ("keeper", "m2"),
        ]);
        let set =
            |state| self.with(|hosts| hosts.ip(host, &["link", "set", "dev", interface, state]));
        set("down")?;
        self.shared.sleep(DOWN);
        set("up")
    }

    /// What a round does to one of several, the next round does to the next.
    fn turn<T: Copy>(&self, all: &[T]) -> T {
        all[usize::try_from(self.rounds).unwrap_or(0) % all.len()]
    }

    fn administer(&mut self) -> Done {
        let (host, router) = self.turn(&[("a", "r2"), ("b", "r1"), ("keeper", "r2")]);
        let (name, socket) = (self.with(|h| Ok(h.node_name(host)))?, self.socket(host));
        let set = |state| {
            self.virga(
                host,
                &["node", "link", &name, router, state, "--socket", &socket],
            )
        };
        set("down")?;
        self.shared.sleep(DOWN);
        set("up").map(drop)
    }

    fn reload(&mut self) -> Done {
        let socket = self.socket("r1");
        let peers = |wanted: bool| {
            let told = Mesh::open(&self.sockets["r1"]).and_then(|mesh| mesh.status());
            let told = told.map_err(|error| error.to_string())?;
            let is_there = told.peers.iter().any(|peer| peer.name == "stranger");
            let other = format!(
                "after a reload the stranger is {}there",
                if wanted { "not " } else { "" }
            );
            if is_there == wanted {
                Ok(())
            } else {
                Err(other)
            }
        };
        let more = stage::stranger().map_err(|error| error.to_string())?;
        self.with(|hosts| stage::rewrite_router(hosts, &more))?;
        self.virga("r1", &["reload", "--socket", &socket])?;
        peers(true)?;
        self.shared.sleep(DOWN);
        self.with(|hosts| stage::rewrite_router(hosts, ""))?;
        self.virga("r1", &["reload", "--socket", &socket])?;
        peers(false)
    }

    fn bad_reload(&mut self) -> Done {
        let socket = self.socket("r1");
        self.with(|hosts| stage::rewrite_router(hosts, "[[channels]]\nname = \"no//name\"\n"))?;
        let refused = self.virga("r1", &["reload", "--socket", &socket]);
        self.with(|hosts| stage::rewrite_router(hosts, ""))?;
        match refused {
            Err(why) if why.contains("no//name") => Ok(()),
            Err(why) => Err(format!("the refusal does not say why: {why}")),
            Ok(_) => Err("a file that is not valid was taken".to_owned()),
        }
    }

    fn flood(&mut self) -> Done {
        let destination = self.with(|hosts| Ok(hosts.host("b").node.id.to_string()))?;
        let plans = [
            ("a", "unauthorised", "10.80.11.1:4783"),
            ("b", "malformed", "10.80.22.1:4783"),
            ("keeper", "handshake", "10.80.13.1:4783"),
        ];
        let mut floods: Vec<Child> = Vec::new();
        for (host, kind, to) in plans {
            floods.push(self.with(|hosts| {
                let virga = hosts.virga().to_string_lossy().into_owned();
                let mut command = hosts.command(host, &virga);
                command.args([
                    "gen",
                    "--kind",
                    kind,
                    "--to",
                    to,
                    "--destination",
                    &destination,
                ]);
                command.args([
                    "--rate",
                    &FLOOD_RATE.to_string(),
                    "--seconds",
                    &FLOOD_S.to_string(),
                ]);
                command.stdout(Stdio::null()).spawn()
            })?);
        }
        let mut worst = Ok(());
        for mut flood in floods {
            let status = flood.wait().map_err(|error| error.to_string())?;
            if !status.success() {
                worst = Err(format!("a flood ended with {status}"));
            }
        }
        worst
    }

    fn kill_router(&mut self) -> Done {
        // The first one rarely: what it would show of growth begins anew each time.
        let router = if self.rounds % 40 == 1 { "r1" } else { "r2" };
        self.kill(router)?;
        self.shared.sleep(DOWN);
        self.start(router)
    }

    fn kill_keeper(&mut self) -> Done {
        // Rarely: what it would show of growth begins anew each time.
        if !self.rounds.is_multiple_of(10) {
            return Ok(());
        }
        self.shared.keeper_kills.fetch_add(1, Ordering::Relaxed);
        self.kill("keeper")?;
        self.start("keeper")
    }

    /// Joins, takes a few events, and leaves: with a word, or without one.
    fn guest(&mut self) -> Done {
        self.start("guest")?;
        let mesh = Mesh::open(&self.sockets["guest"]).map_err(|error| error.to_string())?;
        let events = mesh.subscribe(&channel("visited"));
        let mut events = events.map_err(|error| error.to_string())?;
        let until = Instant::now() + PATIENCE;
        let mut came = 0;
        while came < 5 && Instant::now() < until {
            match events.next_within(Duration::from_secs(1)) {
                Some(Some(Ok(_))) => came += 1,
                None => {}
                Some(_) => return Err("the subscription ended".to_owned()),
            }
        }
        drop(events);
        if self.rounds.is_multiple_of(2) {
            self.stop("guest")?;
        } else {
            self.kill("guest")?;
        }
        if came < 5 {
            return Err(format!("{came} events came within {PATIENCE:?}"));
        }
        Ok(())
    }

    /// The token without which the publisher of the guarded channel may not publish.
    ///
    /// # Errors
    /// What `virga token` said.
    pub(crate) fn admit_publisher(&self) -> Done {
        self.token("a", "publish", "30days").map(drop)
    }

    /// Makes a token of the keeper's for a host's entity, and presents it there; gives its file.
    fn token(&self, host: &str, allow: &str, life: &str) -> Result<String, String> {
        let (key, subject, file) = self.with(|hosts| {
            let file = hosts.folder.join(format!("{host}-{allow}.token"));
            let subject = virga::hex::encode(&hosts.host(host).entity.public);
            Ok((
                self.issuer(hosts),
                subject,
                file.to_string_lossy().into_owned(),
            ))
        })?;
        // It is never written over.
        let _gone = fs::remove_file(&file);
        let name = channel("guarded");
        self.virga(
            "keeper",
            &[
                "token",
                "issue",
                "--key",
                &key,
                "--subject",
                &subject,
                "--channel",
                &name,
                "--allow",
                allow,
                "--for",
                life,
                "--out",
                &file,
            ],
        )?;
        self.virga(
            host,
            &["token", "present", &file, "--socket", &self.socket(host)],
        )?;
        Ok(file)
    }

    fn issuer(&self, hosts: &Hosts) -> String {
        hosts
            .folder
            .join("keeper")
            .join("entity.key")
            .to_string_lossy()
            .into_owned()
    }

    fn right(&mut self) -> Done {
        let token = self.token("b", "subscribe", TOKEN_LIFE)?;
        let mesh = Mesh::open(&self.sockets["b"]).map_err(|error| error.to_string())?;
        let events = mesh.subscribe(&channel("guarded"));
        let mut events = events.map_err(|error| error.to_string())?;
        if !matches!(events.next_within(PATIENCE), Some(Some(Ok(_)))) {
            return Err(format!("nothing came within {PATIENCE:?} of the token"));
        }
        let (list, key) = self.with(|hosts| {
            let list = hosts.folder.join("revoked");
            Ok((list.to_string_lossy().into_owned(), self.issuer(hosts)))
        })?;
        self.virga(
            "keeper",
            &["token", "revoke", "--key", &key, "--token", &token, &list],
        )?;
        self.virga(
            "a",
            &["token", "announce", &list, "--socket", &self.socket("a")],
        )?;
        let until = Instant::now() + REVOKED;
        while matches!(
            events.next_within(Duration::from_secs(1)),
            Some(Some(Ok(_)))
        ) {
            if Instant::now() > until {
                return Err(format!(
                    "events still come {REVOKED:?} after the token was revoked"
                ));
            }
        }
        Ok(())
    }

    /// Starts a host's node.
    ///
    /// # Errors
    /// With its log when it does not start.
    pub(crate) fn start(&self, host: &'static str) -> Done {
        let pid = self.with(|hosts| {
            hosts.start(host)?;
            hosts
                .pid(host)
                .ok_or_else(|| io::Error::other("it has no process"))
        })?;
        let mut lives = self
            .shared
            .lives
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        lives.insert(host, pid);
        Ok(())
    }

    fn kill(&self, host: &'static str) -> Done {
        self.forget(host);
        self.with(|hosts| hosts.kill(host)).map(drop)
    }

    /// Stops a host's node; it has to end well.
    ///
    /// # Errors
    /// With its log when it does not.
    pub(crate) fn stop(&self, host: &'static str) -> Done {
        self.forget(host);
        match self.with(|hosts| Ok((hosts.stop(host)?, hosts.log(host))))? {
            (true, _) => Ok(()),
            (false, log) => Err(crate::not_well(host, &log)),
        }
    }

    fn forget(&self, host: &'static str) {
        let mut lives = self
            .shared
            .lives
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        lives.remove(host);
    }
}
