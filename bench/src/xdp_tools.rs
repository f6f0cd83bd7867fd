//! The program of `xdp-bench redirect`, out of the tool itself.
//!
//! The tool refuses to start where the kernel tells nothing of its XDP tracepoints: its statistics need
//! them, its XDP program does not. So where the tool is refused its program is still what is measured: the
//! BPF object is cut out of the tool's file, where its loader keeps it, and attached by ours.

use std::{fs, path::Path};

use aya::{
    Ebpf, EbpfLoader,
    programs::{Xdp, XdpMode},
};

use crate::report::{Skip, failed};

/// Where Debian puts it.
const TOOL: &str = "/usr/sbin/xdp-bench";
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

/// The tool's program on the interface `from`, sending all to the interface `to`.
pub(crate) fn redirect(from: u32, to: u32) -> Result<Ebpf, Skip> {
    let path = Path::new(TOOL);
    let tool = fs::read(path).map_err(|e| Skip::Missing(format!("{}: {e}", path.display())))?;
    let object = objects(&tool).find(|object| contains(object, PROGRAM.as_bytes()));
    let object = object
        .ok_or_else(|| Skip::Missing(format!("{} holds no program {PROGRAM}", path.display())))?;
    let cpus =
        u32::try_from(aya::util::nr_cpus().map_err(|(what, e)| failed(format!("{what}: {e}")))?)
            .map_err(failed)?;
    let mut loader = EbpfLoader::new();
    loader.override_global("ifindex_out", &to, true);
    loader.override_global("nr_cpus", &cpus, true);
    for map in COUNTERS {
        loader.map_max_entries(map, cpus);
    }
    let mut ebpf = loader.load(object).map_err(failed)?;
    let program = ebpf.program_mut(PROGRAM).ok_or_else(|| failed(PROGRAM))?;
    let program: &mut Xdp = program.try_into().map_err(failed)?;
    program.load().map_err(failed)?;
    program
        .attach_to_if_index(from, XdpMode::Driver)
        .map_err(failed)?;
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
