//! The file's text as a TOML table, and what to do about a line that is none.

use super::problem::Report;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// Lines that are complained about one by one; a file with more is probably no configuration.
const LINES_MAX: usize = 8;

/// Reads the text as TOML; `None` when it is not. Whatever is wrong is in `report`.
pub(super) fn read<'t>(text: &'t str, report: &mut Report<'_>) -> Option<Spanned<DeTable<'t>>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Some(table);
    }
    let (mut line_before, mut lines) = (0, 0);
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        let line = report.line(&span);
        // The first on a line is the cause, the rest its echo.
        if line == line_before {
            continue;
        }
        (line_before, lines) = (line, lines + 1);
        if lines > LINES_MAX {
            continue;
        }
        match text.lines().nth(line - 1).and_then(quoted) {
            Some(fix) => report.add(span, "", "not valid TOML: a text without quotes", fix),
            None => report.add(span, "", format!("not valid TOML: {}", error.message()), ""),
        }
    }
    if lines > LINES_MAX {
        let what = format!("{} more lines are not TOML", lines - LINES_MAX);
        report.add(text.len()..text.len(), "", what, "is it the right file?");
    }
    None
}

/// What to write instead of a line whose value would be right if it had quotes.
fn quoted(line: &str) -> Option<String> {
    let (key, value) = line.split_once('=')?;
    let (key, value) = (key.trim(), value.split('#').next()?.trim());
    if value.is_empty() || value.contains(['"', '\'', '[', '{', '=', '\\']) {
        return None;
    }
    let line = format!("{key} = \"{value}\"");
    let (table, errors) = DeTable::parse_recoverable(&line);
    let is_text = |(_, value): (_, &Spanned<DeValue<'_>>)| value.get_ref().is_str();
    (errors.is_empty() && table.get_ref().iter().all(is_text)).then(|| format!("write: {line}"))
}
