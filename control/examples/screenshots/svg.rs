//! A terminal's screen as SVG.

use std::fmt::Write as _;

use vt100::{Cell, Color, Screen};

/// Pixels of a cell, of the text in it, and around all of them.
const CELL: (u32, u32) = (8, 17);
const TEXT: u32 = 13;
const MARGIN: u32 = 12;
/// Where a line of text stands in its cell.
const BASE: u32 = 13;
const BACKGROUND: &str = "#16181d";
const TEXT_COLOUR: &str = "#d5d8de";
/// What the first eight indexed colours look like, and the same brighter.
const COLOURS: [&str; 16] = [
    "#30343c", "#e0636b", "#87b86b", "#d9b05c", "#5c9de0", "#b57ddb", "#58b5b5", "#d5d8de",
    "#7a808c", "#f07c84", "#a2d384", "#f0c878", "#7cb8f5", "#cd98f0", "#74d0d0", "#ffffff",
];

/// What a run of cells has in common.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Style {
    text: String,
    ground: Option<String>,
    is_bold: bool,
    is_dim: bool,
}

impl Style {
    fn of(cell: &Cell) -> Self {
        let (text, ground) = (colour(cell.fgcolor()), colour(cell.bgcolor()));
        let or = |colour: Option<String>, other: &str| colour.unwrap_or_else(|| other.to_owned());
        let (text, ground) = if cell.inverse() {
            (or(ground, BACKGROUND), Some(or(text, TEXT_COLOUR)))
        } else {
            (or(text, TEXT_COLOUR), ground)
        };
        Self {
            text,
            ground,
            is_bold: cell.bold(),
            is_dim: cell.dim(),
        }
    }
}

fn colour(colour: Color) -> Option<String> {
    match colour {
        Color::Default => None,
        Color::Idx(index) => COLOURS.get(usize::from(index)).map(|c| (*c).to_owned()),
        Color::Rgb(r, g, b) => Some(format!("#{r:02x}{g:02x}{b:02x}")),
    }
}

/// Draws a screen of so many rows and columns.
pub fn draw(screen: &Screen, (rows, columns): (u16, u16)) -> String {
    let width = u32::from(columns) * CELL.0 + 2 * MARGIN;
    let height = u32::from(rows) * CELL.1 + 2 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"6\" fill=\"{BACKGROUND}\"/>\n\
         <g font-family=\"ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace\" font-size=\"{TEXT}\" xml:space=\"preserve\">\n"
    );
    for row in 0..rows {
        let cells = (0..columns).filter_map(|column| Some((column, screen.cell(row, column)?)));
        let mut run: Option<(u16, Style, String)> = None;
        for (column, cell) in cells {
            let style = Style::of(cell);
            let character = if cell.has_contents() {
                cell.contents()
            } else {
                " "
            };
            match &mut run {
                Some((_, of_run, text)) if *of_run == style => text.push_str(character),
                _ => {
                    let next = (column, style, character.to_owned());
                    run.replace(next)
                        .into_iter()
                        .for_each(|(from, style, text)| {
                            draw_run(&mut svg, (row, from), &style, &text)
                        });
                }
            }
        }
        if let Some((from, style, text)) = run {
            draw_run(&mut svg, (row, from), &style, &text);
        }
    }
    svg + "</g>\n</svg>\n"
}

fn draw_run(svg: &mut String, (row, column): (u16, u16), style: &Style, text: &str) {
    let place = |cell: u16, pixels: u32| MARGIN + u32::from(cell) * pixels;
    let cells = u32::try_from(text.chars().count()).unwrap_or(0);
    let (x, y) = (place(column, CELL.0), place(row, CELL.1));
    if let Some(ground) = &style.ground {
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" fill=\"{ground}\"/>",
            cells * CELL.0,
            CELL.1
        );
    }
    let shown = text.trim_end();
    let shown_from = shown.len() - shown.trim_start().len();
    let (x, shown) = (
        x + u32::try_from(shown_from).unwrap_or(0) * CELL.0,
        shown.trim_start(),
    );
    if shown.is_empty() {
        return;
    }
    let mut how = format!(" fill=\"{}\"", style.text);
    if style.is_bold {
        how += " font-weight=\"bold\"";
    }
    if style.is_dim {
        how += " opacity=\"0.65\"";
    }
    // Whatever font there is, a character takes a cell.
    let wide = u32::try_from(shown.chars().count()).unwrap_or(0) * CELL.0;
    let escaped = shown
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x}\" y=\"{}\" textLength=\"{wide}\" lengthAdjust=\"spacingAndGlyphs\"{how}>{escaped}</text>",
        y + BASE
    );
}
