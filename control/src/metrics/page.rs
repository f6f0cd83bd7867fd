//! The table of series as a page to read: `control/metrics/series.md`, and what `virga metrics` prints.

use super::table::GROUPS;
use std::fmt::Write as _;

/// What the page says before its tables.
const HEAD: &str = "# Series

What a node with `[metrics]` in its configuration gives to Prometheus; `virga metrics` prints this page. Counters begin anew with
the daemon, or with what their line names.
";

/// The page, in Markdown.
#[must_use]
pub fn page() -> String {
    let mut page = HEAD.to_owned();
    for group in GROUPS {
        // A text takes all that is written to it.
        let _written = write!(
            page,
            "\n## {}\n\n| series | type | unit | labels | what |\n|---|---|---|---|---|\n",
            group.title
        );
        for series in group.series {
            let labels: Vec<String> = series.labels.iter().map(|l| format!("`{l}`")).collect();
            let (name, kind, unit) = (series.name, series.kind, series.unit);
            let (labels, help) = (labels.join(", "), series.help);
            let _written = writeln!(page, "| `{name}` | {kind} | {unit} | {labels} | {help} |");
        }
    }
    page
}
