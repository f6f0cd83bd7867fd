//! The results page: what was measured, on what, as Markdown, with one plot a unit as SVG.

use std::{fmt::Write as _, fs, path::Path, process::Command};

use crate::{
    plot::bars,
    report::{Entry, Skip, cell, failed, number, percent, reasons, remarks},
    way,
};

/// Writes `results.md` and its plots into a folder; `notes` are what holds for all figures.
///
/// # Errors
/// When the folder cannot be written to.
pub fn write(
    folder: &Path,
    entries: &[Entry],
    command: &str,
    notes: &[(&str, &str)],
) -> Result<(), Skip> {
    fs::create_dir_all(folder).map_err(failed)?;
    sweep(folder)?;
    let mut page = format!(
        "# Figures\n\nWritten by `{command}`. Each figure is the median of alternating rounds; a ratio is the median of\n\
         the rounds' ratios; `rounds` are the lowest and the highest of them, of the ratio where a rate is asked of and of\n\
         ours otherwise; `lost` is the share of what was sent for ours that did not come.\n\n"
    );
    for (what, found) in machine() {
        let _ = writeln!(page, "- {what}: {found}");
    }
    for (what, holds) in notes {
        let _ = writeln!(page, "- {what}: {holds}");
    }
    let mut units: Vec<&str> = Vec::new();
    for entry in entries {
        if !units.contains(&entry.unit) {
            units.push(entry.unit);
        }
    }
    for (n, unit) in units.iter().enumerate() {
        let of_unit: Vec<&Entry> = entries.iter().filter(|e| e.unit == *unit).collect();
        let _ = writeln!(page, "\n## In {unit}\n");
        if of_unit.len() > 1 {
            let file = format!("figures-{}.svg", n + 1);
            bars(&folder.join(&file), &of_unit, unit)
                .map_err(|e| failed(format!("{}: {e}", folder.join(&file).display())))?;
            let _ = writeln!(page, "![{unit}]({file})\n");
        }
        page += "| figure | ours | reference | ratio | rounds | lost | asked |\n|---|---|---|---|---|---|---|\n";
        for e in of_unit {
            let rounds = e.spread.map_or_else(
                || "-".to_owned(),
                |[low, high]| format!("{} to {}", number(low), number(high)),
            );
            let _ = writeln!(
                page,
                "| {} | {} | {} | {} | {rounds} | {} | {} |",
                e.name,
                number(e.ours),
                cell(e.reference),
                cell(e.ratio),
                percent(e.lost),
                e.asked()
            );
        }
    }
    if reasons(entries).next().is_some() {
        let _ = writeln!(page, "\n## Where limits come from\n");
        reasons(entries).for_each(|(name, because)| page += &format!("- {name}: {because}\n"));
    }
    let left = way::left(entries);
    if !left.is_empty() {
        let _ = writeln!(page, "\n## What is left of the way\n");
        left.iter().for_each(|line| page += &format!("- {line}\n"));
    }
    let remarks = remarks();
    if !remarks.is_empty() {
        let _ = writeln!(page, "\n## Remarks\n");
        remarks
            .iter()
            .for_each(|(name, said)| page += &format!("- {name}: {said}\n"));
    }
    let at = folder.join("results.md");
    fs::write(&at, page).map_err(|e| failed(format!("{}: {e}", at.display())))
}

/// Removes an earlier page's plots.
fn sweep(folder: &Path) -> Result<(), Skip> {
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("figures-") && name.ends_with(".svg") {
            fs::remove_file(&path).map_err(|e| failed(format!("{}: {e}", path.display())))?;
        }
    }
    Ok(())
}

/// What was built, as scripts that build it first say in this variable of the environment: the working folder may be
/// another by the end of a run.
const BUILT_FROM: &str = "VIRGA_BUILT_FROM";

/// The commit that was measured, or where nobody says which that is, the working folder's.
fn built(from: Option<String>, folder: impl FnOnce() -> String) -> (&'static str, String) {
    match from.filter(|from| !from.is_empty()) {
        Some(from) => ("commit", from),
        None => (
            "commit of the working folder at the end, what was built is not known",
            folder(),
        ),
    }
}

/// Where it was measured.
#[must_use]
pub fn machine() -> Vec<(&'static str, String)> {
    let said = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().ok();
        let text = output.map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned());
        text.unwrap_or_default()
    };
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find(|line| line.starts_with("model name"));
    let model = model
        .and_then(|line| line.split(": ").nth(1))
        .unwrap_or("unknown");
    let cores = cpuinfo
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    vec![
        ("date", said("date", &["-u", "+%F"])),
        built(std::env::var(BUILT_FROM).ok(), || {
            said("git", &["describe", "--always", "--dirty", "--abbrev=12"])
        }),
        ("machine", format!("{model}, {cores} cores")),
        ("kernel", said("uname", &["-sr"])),
        (
            "load at the end",
            fs::read_to_string("/proc/loadavg")
                .unwrap_or_default()
                .trim()
                .to_owned(),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_names_what_was_built_or_says_that_it_does_not_know() {
        let folder = || "later".to_owned();
        let said = built(Some("b4f49ddb6ec8".to_owned()), folder);
        assert_eq!(said, ("commit", "b4f49ddb6ec8".to_owned()));
        for unsaid in [None, Some(String::new())] {
            let (what, found) = built(unsaid, folder);
            assert!(what.contains("not known") && found == "later");
        }
    }
}
