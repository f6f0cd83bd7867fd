//! Has this very program run again, under callgrind, and reads what it counted.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use crate::operations::{CALLS, COUNTED, END, NAMES};

/// Whether callgrind can be run.
pub(crate) fn is_there() -> bool {
    let version = Command::new("valgrind")
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    version.is_ok_and(|status| status.success())
}

/// Instructions a call of each operation, in the order of [`NAMES`]. `argument` makes this program run
/// the operations instead of counting them.
pub(crate) fn count(argument: &str) -> Result<Vec<f64>, String> {
    let folder = tempfile::tempdir().map_err(|e| format!("no folder for the counts: {e}"))?;
    let own = std::env::current_exe().map_err(|e| format!("this program is not found: {e}"))?;
    let out = folder.path().join("counts");
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--combine-dumps=no"])
        .arg(format!("--zero-before=*{COUNTED}*"))
        .arg(format!("--dump-before=*{END}*"))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(own)
        .arg(argument)
        .output()
        .map_err(|e| format!("valgrind does not start: {e}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("valgrind ended with {}: {said}", output.status));
    }
    // Dump n is written at the n-th end of a count.
    let dump = |n: usize| folder.path().join(format!("counts.{n}"));
    if dump(NAMES.len() + 1).exists() {
        return Err(format!("more counts than the {} operations", NAMES.len()));
    }
    (1..=NAMES.len()).map(|n| read(&dump(n))).collect()
}

/// Instructions a call, of one dump.
fn read(path: &Path) -> Result<f64, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    per_call(&text).ok_or_else(|| format!("{} is no count of one operation", path.display()))
}

/// The dump's total, divided by the calls. A count of nothing is none.
fn per_call(dump: &str) -> Option<f64> {
    let is_ours = |line: &str| line.starts_with("desc: Trigger:") && line.contains(END);
    dump.lines().find(|line| is_ours(line))?;
    let totals = dump.lines().find_map(|line| line.strip_prefix("totals:"))?;
    let instructions: u32 = totals.trim().parse().ok()?;
    let calls = u32::try_from(CALLS).ok()?;
    let per_call = f64::from(instructions) / f64::from(calls);
    Some(per_call).filter(|&count| count >= 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dump(trigger: &str, totals: &str) -> String {
        format!("events: Ir\ndesc: Trigger: {trigger}\nfn=(1) x\n0 7\ntotals: {totals}\n")
    }

    #[test]
    fn only_the_count_of_one_operation_is_read() {
        let trigger = format!("--dump-before=virga_count::operations::{END}");
        let count = per_call(&dump(&trigger, &(CALLS * 5).to_string()));
        assert!(count.is_some_and(|count| (count - 5.0).abs() < 1e-9));
        for (trigger, totals) in [
            (trigger.as_str(), "0"),
            (&trigger, "many"),
            ("Program termination", "5120"),
        ] {
            assert_eq!(per_call(&dump(trigger, totals)), None, "{trigger} {totals}");
        }
        assert_eq!(per_call(""), None);
    }
}
