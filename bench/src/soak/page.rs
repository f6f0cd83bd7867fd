//! The results page of a soak: what was asked and found, and a plot a figure.

use std::{error::Error, fmt::Write as _, fs, path::Path};

use virga_bench::{page::machine, plot};

use crate::{
    load::Shared,
    sample::{Book, Series},
    verdict::{DAEMON, FLOW, Figure, Finding, asked, warm_up_s},
};

/// How it went.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Seconds that it ran.
    pub(crate) ran_s: f64,
    /// Seconds that it was to run.
    pub(crate) wanted_s: f64,
    /// How often everything was broken.
    pub(crate) rounds: u64,
    pub(crate) findings: Vec<Finding>,
    pub(crate) failures: (Vec<String>, usize),
}

impl Outcome {
    /// Whether nothing grew and nothing failed.
    pub(crate) fn is_flat(&self) -> bool {
        self.failures.1 == 0 && self.findings.iter().all(|finding| finding.is_met)
    }

    /// In a sentence.
    pub(crate) fn verdict(&self) -> String {
        let grown = self.findings.iter().filter(|finding| !finding.is_met);
        let names: Vec<String> = grown
            .map(|f| format!("{} of {}", f.figure.name, f.subject))
            .collect();
        let end = if self.ran_s + 1.0 < self.wanted_s {
            " (ended early)"
        } else {
            ""
        };
        match (names.is_empty(), self.failures.1) {
            (true, 0) if self.findings.is_empty() => {
                format!(
                    "nothing lost and nothing failed{end}; too short to say whether anything grows"
                )
            }
            (true, 0) => format!("flat{end}: {} series", self.findings.len()),
            (true, failed) => format!("{failed} failures{end}"),
            (false, failed) => format!("grows{end}: {}; {failed} failures", names.join(", ")),
        }
    }
}

/// What was found, as a table.
pub(crate) fn table(findings: &[Finding]) -> String {
    let mut text = String::from(
        "| figure | of | from | to | an hour | asked | |\n|---|---|---|---|---|---|---|\n",
    );
    for f in findings {
        let slope = f
            .slope
            .map_or_else(|| "-".to_owned(), |slope| format!("{slope:+.2}"));
        let _ = writeln!(
            text,
            "| {} ({}) | {} | {:.2} | {:.2} | {slope} | {} | {} |",
            f.figure.name,
            f.figure.unit,
            f.subject,
            f.from,
            f.to,
            asked(f.figure.rule, f.figure.unit),
            if f.is_met { "met" } else { "**missed**" }
        );
    }
    text
}

/// Writes `results.md` and its plots beside the CSV files.
///
/// # Errors
/// When the folder cannot be written to.
pub(crate) fn write(
    folder: &Path,
    outcome: &Outcome,
    book: &Book,
    shared: &Shared,
) -> Result<(), Box<dyn Error>> {
    let warm_s = warm_up_s(outcome.ran_s);
    let mut page = format!(
        "# Soak\n\nWritten by `scripts/soak --seconds {:.0} --page FOLDER`: {}.\n\n\
         Two edges, two routers that forward in native XDP, a node that keeps a log, and a guest that comes and goes, each in\n\
         a network namespace. Everything was broken {} times: links down, nodes killed and started again, rights given and\n\
         taken back, files reloaded and refused, floods. It ran {:.0} s; the first {warm_s:.0} s are warm-up. Of every figure\n\
         of a node the slope of the least-squares line is judged, of every flow's latency the medians of the first and the\n\
         last quarter. Latency counts from when an event was due, faults and this machine's other work included.\n\n",
        outcome.wanted_s,
        outcome.verdict(),
        outcome.rounds,
        outcome.ran_s,
    );
    for (what, found) in machine() {
        let _ = writeln!(page, "- {what}: {found}");
    }
    page += "\n## Flows\n\n| flow | sent | received |\n|---|---|---|\n";
    for (name, flow) in &shared.flows {
        let (sent, received) = flow.counts();
        let _ = writeln!(page, "| {name} | {sent} | {received} |");
    }
    page += "\nOf `unreliable` a link that is down loses some; `visited` is taken by programs that come and go, `kept` counts what was\n\
             read from the log, from which the node that keeps it was cut off when it was killed. Of the others each has to come,\n\
             once and in order.\n";
    if outcome.failures.1 > 0 {
        let _ = writeln!(page, "\n## Failures: {}\n", outcome.failures.1);
        for failure in &outcome.failures.0 {
            let _ = writeln!(page, "- {}", failure.replace('\n', " / "));
        }
    }
    page += "\n## Asked and found\n\n";
    page += &table(&outcome.findings);
    for (title, figures, file) in [
        ("Nodes", &DAEMON[..], "daemons.csv"),
        ("Flows over time", &FLOW[..], "flows.csv"),
    ] {
        let _ = writeln!(page, "\n## {title}\n\nEvery sample: [`{file}`]({file}).\n");
        for figure in figures {
            plot_of(folder, figure, book, &mut page)?;
        }
    }
    Ok(fs::write(folder.join("results.md"), page)?)
}

fn plot_of(
    folder: &Path,
    figure: &Figure,
    book: &Book,
    page: &mut String,
) -> Result<(), Box<dyn Error>> {
    let of_figure: Vec<&Series> = book
        .series()
        .filter(|series| series.figure.name == figure.name)
        .collect();
    if of_figure.is_empty() {
        return Ok(());
    }
    let minutes = |series: &Series| series.points.iter().map(|p| (p.0 / 60.0, p.1)).collect();
    let lines: Vec<(&str, Vec<(f64, f64)>)> = of_figure
        .iter()
        .map(|series| (series.subject, minutes(series)))
        .collect();
    let file = format!("figures-{}.svg", figure.name.replace('_', "-"));
    plot::lines(&folder.join(&file), &lines, figure.unit)?;
    let _ = writeln!(page, "{}:\n\n![{}]({file})\n", figure.what, figure.name);
    Ok(())
}
