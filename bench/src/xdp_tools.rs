//! The program of `xdp-bench redirect`, out of the tool itself.
//!
//! The tool refuses to start where the kernel tells nothing of its XDP tracepoints: its statistics need
//! them, its XDP program does not. So where the tool is refused its program is still what is measured: the
//! BPF object is cut out of the tool's file, where its loader keeps it, and attached by ours.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{ProgramError, Xdp, XdpMode},
};

use crate::report::Skip;

/// The tool, and where distributions put it beyond what users have in their PATH.
const TOOL: &str = "xdp-bench";
const FOLDERS: [&str; 2] = ["/usr/sbin", "/sbin"];
/// The XDP program of `xdp-bench redirect`.
const PROGRAM: &str = "xdp_redirect_basic_prog";
/// Its counters, a slot a CPU; made by the tool's loader as large as the machine.
const COUNTERS: [&str; 7] = [
    "rx_cnt",
    "rxq_cnt",
    "redir_err_cnt",
    "cpumap_enqueue_cnt",
    "cpumap_kthread_cnt",
    "exception_cnt",
    "devmap_xmit_cnt",
];
/// `e_machine` of a BPF object.
const EM_BPF: u16 = 247;

/// Where the tool is.
pub(crate) fn find() -> Result<PathBuf, Skip> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(FOLDERS.iter().map(PathBuf::from));
    let mut tools = folders.map(|folder| folder.join(TOOL));
    tools
        .find(|tool| tool.is_file())
        .ok_or_else(|| Skip::Missing(format!("there is no {TOOL}: apt install xdp-tools")))
}

/// The tool's program on the interface `from`, sending all to the interface `to`. Whatever of it another
/// version of the tool has otherwise than this expects, it is only this comparison that is missing.
pub(crate) fn redirect(tool: &Path, from: u32, to: u32) -> Result<Ebpf, Skip> {
    let missing = |what: &dyn fmt::Display| Skip::Missing(format!("{}: {what}", tool.display()));
    let file = fs::read(tool).map_err(|e| missing(&e))?;
    let object = objects(&file).find(|object| contains(object, PROGRAM.as_bytes()));
    let no_program = || missing(&format!("no program {PROGRAM} in it"));
    let object = object.ok_or_else(no_program)?;
    let cpus = aya::util::nr_cpus().map_err(|(what, e)| missing(&format!("{what}: {e}")))?;
    let cpus = u32::try_from(cpus).map_err(|e| missing(&e))?;
    let mut loader = EbpfLoader::new();
    loader.override_global("ifindex_out", &to, true);
    loader.override_global("nr_cpus", &cpus, true);
    for map in COUNTERS {
        loader.map_max_entries(map, cpus);
    }
    let mut ebpf = loader.load(object).map_err(|e| missing(&e))?;
    let program: &mut Xdp = ebpf
        .program_mut(PROGRAM)
        .ok_or_else(no_program)?
        .try_into()
        .map_err(|e: ProgramError| missing(&e))?;
    program.load().map_err(|e| missing(&e))?;
    program
        .attach_to_if_index(from, XdpMode::Driver)
        .map_err(|e| missing(&e))?;
    Ok(ebpf)
}

/// The BPF objects that a program's file has in it.
fn objects(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    const MAGIC: &[u8] = b"\x7fELF\x02\x01";
    (0..file.len())
        .filter(|&at| file[at..].starts_with(MAGIC))
        .filter_map(|at| object(&file[at..]))
}

/// The BPF object at the start of `bytes`: its section headers are its end.
fn object(bytes: &[u8]) -> Option<&[u8]> {
    let short = |at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let sections = u64::from_le_bytes(*bytes.get(40..)?.first_chunk()?);
    if short(18)? != EM_BPF {
        return None;
    }
    let end = usize::try_from(sections)
        .ok()?
        .checked_add(usize::from(short(58)?) * usize::from(short(60)?))?;
    bytes.get(..end)
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}
