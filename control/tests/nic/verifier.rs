//! The verifier accepts every program of the committed objects, and its work stays within the recorded budget.

use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use virga::{generate::live, nic::maps};
use virga_ebpf::limits::DESTINATIONS_MAX;

/// `program series recorded at-most` a line.
static BUDGET: &str = include_str!("../../../ebpf/prebuilt/virga.bpf.budget");

struct Budget {
    program: &'static str,
    series: &'static str,
    recorded: u32,
    most: u32,
}

fn budgets() -> Vec<Budget> {
    let lines = BUDGET.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let mut fields = line.split_whitespace();
            let mut text = || fields.next().expect("four fields a line");
            let (program, series) = (text(), text());
            let [recorded, most] = [text(), text()].map(|n| n.parse().expect("a number"));
            Budget {
                program,
                series,
                recorded,
                most,
            }
        })
        .collect()
}

/// `6.12` of `6.12.117+deb12-amd64`.
fn series(release: &str) -> String {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().unwrap_or_default();
    format!("{}.{}", number(), number())
}

/// The budget of a program on a kernel; on one that nobody recorded, the largest there is.
fn budget_of<'a>(budgets: &'a [Budget], program: &str, series: &str) -> &'a Budget {
    let own = || budgets.iter().filter(|b| b.program == program);
    own()
        .find(|b| b.series == series)
        .or_else(|| own().max_by_key(|b| b.most))
        .unwrap_or_else(|| panic!("ebpf/prebuilt/virga.bpf.budget has no line for {program}"))
}

/// Every program of an object, accepted: its name, what the verifier counted, and how large it is.
fn every_program(ebpf: &mut Ebpf) -> Vec<(String, Option<u32>, u32)> {
    let names: Vec<String> = ebpf.programs().map(|(name, _)| name.to_owned()).collect();
    let accepted = |name: String| {
        let program = maps::program(ebpf, name.clone().leak()).unwrap();
        let info = program.info().unwrap();
        (name, info.verified_instruction_count(), info.size_jitted())
    };
    names.into_iter().map(accepted).collect()
}

#[test]
fn the_verifiers_work_stays_within_its_budget() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: loading a BPF program needs root");
        return;
    }
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let (budgets, series) = (budgets(), series(&release));
    let (nic, _maps) = maps::load(None, DESTINATIONS_MAX).unwrap();
    let mut loader = EbpfLoader::new();
    loader.verifier_log_level(VerifierLogLevel::STATS);
    let mut objects = [nic, loader.load(live::OBJECT).unwrap()];
    let programs = objects.iter_mut().flat_map(every_program);
    let mut over = Vec::new();
    for (name, count, bytes) in programs {
        let budget = budget_of(&budgets, &name, &series);
        let Some(count) = count else {
            println!("skipped: Linux {release} does not count what it verifies (5.16 does)");
            return;
        };
        let (recorded, most) = (budget.recorded, budget.most);
        println!(
            "Linux {release}: {name}: {count} verified instructions, recorded {recorded}, at most {most}; \
             {bytes} bytes of machine code"
        );
        if count > most {
            over.push(format!("{name}: {count} instead of {most}"));
        }
    }
    assert!(
        over.is_empty(),
        "on Linux {series} the verifier's work grew: {over:?}; make the program simpler, or raise \
         ebpf/prebuilt/virga.bpf.budget"
    );
}

#[test]
fn the_recorded_counts_are_within_the_budget_and_not_far_below() {
    for Budget {
        program,
        series,
        recorded,
        most,
    } in budgets()
    {
        let slack = recorded / 5 + 1;
        assert!(
            (recorded..=recorded + slack).contains(&most),
            "{program} on {series}: {recorded} recorded, {most} allowed"
        );
    }
}

#[test]
fn a_kernels_series_is_its_first_two_numbers() {
    assert_eq!(series("6.12.117+deb12-amd64"), "6.12");
    assert_eq!(series("6.1.0-56-amd64"), "6.1");
    assert_eq!(series("7.0-rc1"), "7.0");
}
