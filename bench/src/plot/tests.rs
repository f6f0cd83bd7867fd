//! Every plot shows what its page says: well-formed, a bar or a line for each figure, at its name, to scale, and axes with units.

use std::{collections::BTreeMap, fs, path::PathBuf, time::Instant};

use quick_xml::{
    Reader,
    events::{BytesStart, Event},
};

use super::*;
use crate::{page, world};

/// An element of a plot, and the text in it.
struct Element {
    name: String,
    values: BTreeMap<String, String>,
    text: String,
}

impl Element {
    fn of(tag: &BytesStart<'_>) -> Self {
        let value = |attribute: quick_xml::events::attributes::Attribute<'_>| {
            (attribute.key.0.to_owned(), attribute.value.into_owned())
        };
        let values = tag.attributes().map(|one| value(one.unwrap()));
        Self {
            name: tag.name().0.to_owned(),
            values: values.collect(),
            text: String::new(),
        }
    }

    fn number(&self, value: &str) -> f64 {
        self.values[value].parse().unwrap()
    }

    fn is(&self, value: &str, wanted: &str) -> bool {
        self.values.get(value).is_some_and(|one| one == wanted)
    }

    /// All places that it names, from left and from above.
    fn places(&self) -> [Vec<f64>; 2] {
        let mut places = [Vec::new(), Vec::new()];
        for (name, value) in &self.values {
            let read = |text: &str| -> f64 { text.parse().unwrap() };
            match name.as_str() {
                "x" | "x1" | "x2" => places[0].push(read(value)),
                "y" | "y1" | "y2" => places[1].push(read(value)),
                "points" => value.split_whitespace().for_each(|pair| {
                    let (x, y) = pair.split_once(',').unwrap();
                    places[0].push(read(x));
                    places[1].push(read(y));
                }),
                _ => {}
            }
        }
        if self.name == "rect" {
            places[0].push(self.number("x") + self.number("width"));
            places[1].push(self.number("y") + self.number("height"));
        }
        places
    }
}

/// Reads a plot: well-formed, with nothing outside it, and no number that is none.
fn read(file: &Path) -> Vec<Element> {
    let text = fs::read_to_string(file).unwrap();
    let mut reader = Reader::from_str(&text);
    let (mut all, mut open) = (Vec::<Element>::new(), Vec::new());
    loop {
        match reader.read_event().unwrap() {
            Event::Start(tag) => {
                open.push(all.len());
                all.push(Element::of(&tag));
            }
            Event::Empty(tag) => all.push(Element::of(&tag)),
            Event::Text(piece) => match open.last() {
                Some(&at) => all[at].text += piece.trim(),
                None => assert_eq!(piece.trim(), ""),
            },
            Event::End(_) => assert!(open.pop().is_some()),
            Event::Eof => break,
            other => panic!("{}: {other:?}", file.display()),
        }
    }
    assert!(
        open.is_empty() && all[0].name == "svg",
        "{}",
        file.display()
    );
    let bounds = ["width", "height"].map(|side| all[0].number(side));
    for element in &all {
        for (places, bound) in element.places().iter().zip(bounds) {
            let is_within = places.iter().all(|at| (0.0..=bound).contains(at));
            assert!(is_within, "{}: {:?}", file.display(), element.values);
        }
        let is_number = ["NaN", "inf"].iter().all(|no| !element.text.contains(no));
        assert!(is_number, "{}: {}", file.display(), element.text);
    }
    all
}

fn hex(colour: RGBColor) -> String {
    format!("#{:02X}{:02X}{:02X}", colour.0, colour.1, colour.2)
}

fn texts(all: &[Element]) -> impl Iterator<Item = &Element> {
    all.iter().filter(|element| element.name == "text")
}

/// An axis says its unit, and has two numbers or more that stand so: from what to what, at least.
fn check_axis(all: &[Element], unit: &str, anchor: &str) {
    assert!(
        texts(all).any(|text| text.text == unit),
        "no axis of {unit}"
    );
    let numbers = texts(all)
        .filter(|text| text.is("text-anchor", anchor) && text.text.parse::<f64>().is_ok());
    assert!(numbers.count() >= 2, "an axis of {unit} without numbers");
}

/// Whether bars are those of figures, by name and in order, to within what a figure is rounded by.
fn check_bars(file: &Path, figures: &[(String, f64)], unit: &str, rounded_by: f64) {
    let all = read(file);
    check_axis(&all, unit, "middle");
    let [ours, reference] = [OURS, REFERENCE].map(hex);
    let is_bar = |one: &&Element| one.is("fill", &ours) || one.is("fill", &reference);
    let bars: Vec<&Element> = all
        .iter()
        .filter(|one| one.name == "rect")
        .filter(is_bar)
        .collect();
    assert_eq!(bars.len(), figures.len(), "{}", file.display());
    let most = figures
        .iter()
        .map(|figure| figure.1.abs())
        .fold(0.0, f64::max);
    let longest = bars
        .iter()
        .map(|bar| bar.number("width"))
        .fold(0.0, f64::max);
    let scale = if most > 0.0 { longest / most } else { 0.0 };
    for (bar, (name, figure)) in bars.iter().zip(figures) {
        let said = format!("{}: {name} {figure}: {:?}", file.display(), bar.values);
        assert_eq!(bar.is("fill", &reference), name == "reference", "{said}");
        let middle = bar.number("y") + bar.number("height") / 2.0;
        let is_here = |text: &&Element| (text.number("y") - middle).abs() < f64::from(BAR) / 3.0;
        assert!(
            texts(&all).filter(is_here).any(|text| text.text == *name),
            "{said}"
        );
        let off = (bar.number("width") - scale * figure.abs()).abs();
        assert!(off <= 2.0 + scale * rounded_by, "{off} off: {said}");
    }
}

/// Whether there is a line for each name, and axes of time and of a unit; how high each line's points are.
fn check_lines(file: &Path, names: &[&str], unit: &str) -> Vec<Vec<f64>> {
    let all = read(file);
    check_axis(&all, "minutes", "middle");
    check_axis(&all, unit, "end");
    let black = hex(BLACK);
    let drawn = all
        .iter()
        .filter(|one| one.name == "polyline" && !one.is("stroke", &black));
    let drawn: Vec<&Element> = drawn.collect();
    assert_eq!(drawn.len(), names.len(), "{}", file.display());
    for (line, name) in drawn.iter().zip(names) {
        let is_its = |text: &Element| text.text == *name && text.is("fill", &line.values["stroke"]);
        assert!(texts(&all).any(is_its), "{}: {name}", file.display());
    }
    drawn.iter().map(|line| line.places()[1].clone()).collect()
}

/// A plot of a page: its unit, its file, and the figures of the table below it.
type Plot = (String, PathBuf, Vec<(String, f64)>);

/// The plots of a page.
fn plots_of(folder: &Path) -> Vec<Plot> {
    let page = fs::read_to_string(folder.join("results.md")).unwrap();
    let mut plots = Vec::new();
    for section in page.split("\n## In ").skip(1) {
        let (unit, rest) = section.split_once('\n').unwrap();
        let rows = rest
            .lines()
            .filter(|line| line.starts_with("| ") && !line.starts_with("| figure"));
        let mut figures = Vec::new();
        let mut entries = 0;
        for row in rows {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            figures.push((cells[1].to_owned(), cells[2].parse().unwrap()));
            if let Ok(reference) = cells[3].parse() {
                figures.push(("reference".to_owned(), reference));
            }
            entries += 1;
        }
        let image = rest.split_once(&format!("![{unit}]("));
        let file = image.map(|(_, behind)| behind.split_once(')').unwrap().0);
        // A single figure needs no plot.
        assert_eq!(file.is_some(), entries > 1, "{unit}");
        plots.extend(file.map(|file| (unit.to_owned(), folder.join(file), figures)));
    }
    plots
}

/// What some functions take here, and how long their results are.
fn measured() -> Vec<Entry> {
    let ns = |run: &dyn Fn()| {
        let begin = Instant::now();
        (0..1_000).for_each(|_| run());
        begin.elapsed().as_secs_f64() * 1e6
    };
    let (header, bytes) = (world::header(), world::header().encode());
    let encode = ns(&|| {
        std::hint::black_box(std::hint::black_box(&header).encode());
    });
    let copy = ns(&|| {
        std::hint::black_box(*std::hint::black_box(&bytes));
    });
    vec![
        Entry::new("header.encode_ns", "ns", encode)
            .beside(copy)
            .limit(5.0),
        Entry::new("header.bytes", "bytes", 64.0),
        Entry::new("header.copy_ns", "ns", copy).spread(&[copy, encode]),
        Entry::new("header.below_ns", "ns", copy - encode),
        Entry::new("header.alone_ms", "ms", encode * 1e-6),
        Entry::new("header.sealed_bytes", "bytes", 80.0).beside(64.0),
    ]
}

#[test]
fn a_page_of_a_run_has_a_bar_for_each_figure_at_its_name_and_to_scale() {
    let folder = tempfile::tempdir().unwrap();
    let entries = measured();
    page::write(folder.path(), &entries, "a test", &[]).unwrap();
    let plots = plots_of(folder.path());
    let units: Vec<&str> = plots.iter().map(|plot| plot.0.as_str()).collect();
    assert_eq!(units, ["ns", "bytes"]);
    for (unit, file, in_table) in &plots {
        let figures: Vec<(String, f64)> = entries
            .iter()
            .filter(|entry| entry.unit == unit)
            .flat_map(|entry| {
                let reference = entry.reference.map(|it| ("reference".to_owned(), it));
                [Some((entry.name.to_owned(), entry.ours)), reference]
            })
            .flatten()
            .collect();
        check_bars(file, &figures, unit, 0.0);
        check_bars(file, in_table, unit, 0.005);
    }
}

#[test]
fn figures_of_nothing_and_below_it_and_none_are_drawn_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("figures-1.svg");
    for [one, other] in [
        [0.0, 0.0],
        [-3.0, 12.0],
        [-3.0, -1.0],
        [1e-9, 2e-9],
        [1e15, 1.0],
    ] {
        let entries = [
            Entry::new("one", "ns", one),
            Entry::new("other", "ns", other),
        ];
        bars(&file, &[&entries[0], &entries[1]], "ns").unwrap();
        let figures = [("one".to_owned(), one), ("other".to_owned(), other)];
        check_bars(&file, &figures, "ns", 0.0);
    }
    let none = Entry::new("none", "ns", f64::NAN).beside(f64::INFINITY);
    let some = Entry::new("some", "ns", 2.0);
    bars(&file, &[&none, &some], "ns").unwrap();
    let figures = [("none", 0.0), ("reference", 0.0), ("some", 2.0)];
    let figures = figures.map(|(name, figure)| (name.to_owned(), figure));
    check_bars(&file, &figures, "ns", 0.0);
}

#[test]
fn the_plots_of_the_results_pages_show_what_their_tables_say() {
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("results");
    let mut seen = 0;
    for folder in fs::read_dir(results).unwrap() {
        let folder = folder.unwrap().path();
        let plots = plots_of(&folder);
        for (unit, file, figures) in &plots {
            check_bars(file, figures, unit, 0.005);
        }
        let files = fs::read_dir(&folder).unwrap().flatten();
        let svgs = files.filter(|file| file.path().extension().is_some_and(|end| end == "svg"));
        assert_eq!(svgs.count(), plots.len(), "{}", folder.display());
        seen += plots.len();
    }
    assert!(seen > 10, "{seen}");
}

/// Of a soak: what each subject's column says, by minutes.
type Columns = BTreeMap<String, BTreeMap<String, Vec<(f64, f64)>>>;

fn soaked(file: &str) -> Columns {
    let soak = Path::new(env!("CARGO_MANIFEST_DIR")).join("soak");
    let text = fs::read_to_string(soak.join(file)).unwrap();
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().unwrap().split(',').collect();
    let mut columns = Columns::new();
    for line in lines {
        let cells: Vec<&str> = line.split(',').collect();
        let minutes = cells[0].parse::<f64>().unwrap() / 60.0;
        for (name, cell) in names.iter().zip(&cells).skip(2) {
            if let Ok(value) = cell.parse() {
                let column = columns.entry((*name).to_owned()).or_default();
                let subject = column.entry(cells[1].to_owned()).or_default();
                subject.push((minutes, value));
            }
        }
    }
    columns
}

#[test]
fn the_plots_of_a_soak_have_a_line_for_each_subject_and_so_has_one_drawn_anew() {
    let folder = tempfile::tempdir().unwrap();
    let soak = Path::new(env!("CARGO_MANIFEST_DIR")).join("soak");
    for (name, column) in soaked("daemons.csv").into_iter().chain(soaked("flows.csv")) {
        let names: Vec<&str> = column.keys().map(String::as_str).collect();
        let all: Vec<(&str, Vec<(f64, f64)>)> = column
            .iter()
            .map(|(subject, points)| (subject.as_str(), points.clone()))
            .collect();
        let anew = folder.path().join("anew.svg");
        lines(&anew, &all, "a unit").unwrap();
        let drawn = check_lines(&anew, &names, "a unit");
        assert!(drawn.iter().all(|line| line.len() <= POINTS_MAX));
        let kept = soak.join(format!("figures-{}.svg", name.replace('_', "-")));
        let unit = texts(&read(&kept)).map(|text| text.text.clone()).next();
        let kept = check_lines(&kept, &names, &unit.unwrap());
        assert_eq!(kept.len(), drawn.len(), "{name}");
    }
}

#[test]
fn every_line_is_drawn_with_its_name_and_a_peak_among_many_points_stays() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("lines.svg");
    let mut many: Vec<(f64, f64)> = (0..5_000).map(|n| (f64::from(n), 1.0)).collect();
    many[2_501].1 = 80.0;
    let few = vec![(0.0, 2.0), (9.0, 3.0)];
    lines(&file, &[("many", many), ("few", few)], "MiB").unwrap();
    let heights = check_lines(&file, &["many", "few"], "MiB");
    let many = &heights[0];
    assert!(many.len() <= POINTS_MAX && many.len() > POINTS_MAX / 4);
    // Heights are counted from above: one peak at the top, all else at the bottom.
    let height = f64::from(HEIGHT);
    let peak = many.iter().filter(|y| **y < height / 5.0).count();
    let rest = many.iter().filter(|y| **y > height / 2.0).count();
    assert_eq!((peak, rest), (1, many.len() - 1), "{many:?}");
    assert_eq!(heights[1].len(), 2);
}
