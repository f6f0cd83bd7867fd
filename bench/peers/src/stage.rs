//! What ends run in: processes that are asked what they have done, a certificate, a NATS server.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use crate::end::{Args, Done, Problem};

/// How long an end may take to be ready, or to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A process that ends with this one, and is killed by its id when dropped.
pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn spawn(command: &mut Command) -> Result<Self, Problem> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn();
        Ok(Self(child.map_err(|e| format!("{program}: {e}"))?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// One end.
pub(crate) struct End {
    _process: Process,
    input: ChildStdin,
    lines: mpsc::Receiver<String>,
    /// What the others must know of it.
    pub(crate) said: String,
    /// What it says of its problems.
    log: PathBuf,
}

impl End {
    /// Starts an end, in a network namespace where one is named, and waits until it is ready.
    pub(crate) fn start(args: &Args, namespace: Option<&str>) -> Result<Self, Problem> {
        let mut command = ending_with_us(namespace);
        command.arg(std::env::current_exe()?).arg("end");
        for (flag, value) in [
            ("--system", value_of(&args.system)),
            ("--role", value_of(&args.role)),
            ("--workload", value_of(&args.workload)),
            ("--core", args.core.to_string()),
            ("--listen", args.listen.to_string()),
            ("--next", args.next.to_string()),
            ("--folder", args.folder.display().to_string()),
        ] {
            command.args([flag, &value]);
        }
        if let Some(far) = args.far {
            command.args(["--far", &far.to_string()]);
        }
        for said in &args.said {
            command.args(["--said", said]);
        }
        let log = args.folder.join(format!("{}.log", value_of(&args.role)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(fs::File::create(&log)?);
        let mut process = Process::spawn(&mut command)?;
        let (Some(input), Some(output)) = (process.0.stdin.take(), process.0.stdout.take()) else {
            return Err("an end without input and output".into());
        };
        let (tell, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        let mut end = Self {
            _process: process,
            input,
            lines,
            said: String::new(),
            log,
        };
        // Crates that print on their own come first.
        loop {
            if let Some(said) = end.line()?.strip_prefix("ready ") {
                end.said = said.to_owned();
                return Ok(end);
            }
        }
    }

    fn line(&self) -> Result<String, Problem> {
        self.lines.recv_timeout(PATIENCE).map_err(|_| self.silent())
    }

    fn silent(&self) -> Problem {
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        format!("an end has ended, or does not answer: {}", said.trim()).into()
    }

    /// What it has done so far.
    pub(crate) fn done(&mut self) -> Result<Done, Problem> {
        if self.input.write_all(b"done\n").is_err() {
            return Err(self.silent());
        }
        Ok(serde_json::from_str(&self.line()?)?)
    }
}

fn value_of(value: &impl clap::ValueEnum) -> String {
    let possible = value.to_possible_value();
    possible.map_or_else(String::new, |possible| possible.get_name().to_owned())
}

/// A command that the kernel kills with this process.
pub(crate) fn ending_with_us(namespace: Option<&str>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]);
    if let Some(namespace) = namespace {
        command
            .arg("nsenter")
            .arg(format!("--net=/run/netns/{namespace}"));
    }
    command
}

/// A port of this machine that nobody listens on.
pub(crate) fn free() -> Result<SocketAddr, Problem> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Writes a certificate for `localhost`, and its key.
pub(crate) fn write_certificate(folder: &Path) -> Result<(), Problem> {
    let made =
        rcgen::generate_simple_self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    fs::write(folder.join("cert.pem"), made.cert.pem())?;
    fs::write(folder.join("key.pem"), made.signing_key.serialize_pem())?;
    Ok(())
}

/// Reads what [`write_certificate`] wrote.
pub(crate) fn certificate(
    folder: &Path,
) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), Problem> {
    let cert = CertificateDer::from_pem_file(folder.join("cert.pem"))?;
    let key = PrivateKeyDer::from_pem_file(folder.join("key.pem"))?;
    Ok((cert, key))
}

/// A NATS server on a core, over TLS.
pub(crate) fn nats_server(folder: &Path, at: SocketAddr, core: usize) -> Result<Process, Problem> {
    let config = folder.join("nats.conf");
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    fs::write(
        &config,
        format!(
            "listen: \"{at}\"\ntls {{ cert_file: \"{}\", key_file: \"{}\" }}\n",
            cert.display(),
            key.display()
        ),
    )?;
    let log = fs::File::create(folder.join("nats.log"))?;
    let mut command = ending_with_us(None);
    command
        .args(["taskset", "-c", &core.to_string(), "nats-server", "-c"])
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(log);
    let server = Process::spawn(&mut command)?;
    let start = Instant::now();
    while TcpStream::connect(at).is_err() {
        if start.elapsed() > PATIENCE {
            let said = fs::read_to_string(folder.join("nats.log")).unwrap_or_default();
            return Err(format!("nats-server does not listen: {said}").into());
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(server)
}

/// Where a program is, by PATH.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(program))
        .find(|at| at.is_file())
}
