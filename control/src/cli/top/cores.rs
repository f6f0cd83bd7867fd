//! What this machine's cores are doing, by `/proc/stat`.

/// One core, in ticks since the machine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Core {
    pub(super) number: usize,
    /// In all.
    pub(super) ticks: u64,
    /// Of them, doing anything.
    pub(super) busy: u64,
    /// Of these, in soft interrupts: there the XDP program runs.
    pub(super) softirq: u64,
}

/// All that are in use; none where the kernel does not tell.
pub(super) fn read() -> Vec<Core> {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    parse(&text)
}

fn parse(text: &str) -> Vec<Core> {
    text.lines().filter_map(core).collect()
}

fn core(line: &str) -> Option<Core> {
    let mut words = line.strip_prefix("cpu")?.split_ascii_whitespace();
    // The first line is of all together.
    let is_one = line.as_bytes().get(3).is_some_and(u8::is_ascii_digit);
    let number = words.next().filter(|_| is_one)?.parse().ok()?;
    // user nice system idle iowait irq softirq steal; guests are in the first two.
    let times: Vec<u64> = words.take(8).map_while(|word| word.parse().ok()).collect();
    let [_, _, _, idle, waiting, _, softirq, _] = times[..] else {
        return None;
    };
    let ticks: u64 = times.iter().sum();
    Some(Core {
        number,
        ticks,
        busy: ticks - idle - waiting,
        softirq,
    })
}

/// Hundredths of its time between two looks at it: busy, and in soft interrupts.
pub(super) fn load(before: &[Core], now: Core) -> Option<(u64, u64)> {
    let before = before.iter().find(|core| core.number == now.number)?;
    let ticks = now.ticks.checked_sub(before.ticks).filter(|&t| t > 0)?;
    let share = |now: u64, before: u64| now.saturating_sub(before).min(ticks) * 100 / ticks;
    let busy = share(now.busy, before.busy);
    Some((busy, share(now.softirq, before.softirq)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &str = "cpu  20 0 10 60 5 1 3 1 0 0\n\
        cpu0 10 0 5 30 2 1 2 0 0 0\n\
        cpu1 10 0 5 30 3 0 1 1 0 0\n\
        intr 5 6\n";

    #[test]
    fn each_core_is_read_and_what_it_did_between_two_looks_is_its_load() {
        let before = parse(STAT);
        assert_eq!(before.len(), 2);
        let first = Core {
            number: 0,
            ticks: 50,
            busy: 18,
            softirq: 2,
        };
        assert_eq!(before[0], first);
        let now = Core {
            ticks: 150,
            busy: 68,
            softirq: 27,
            ..first
        };
        assert_eq!(load(&before, now), Some((50, 25)));
        // Nothing has passed, and a core that has come.
        assert_eq!(load(&before, first), None);
        assert_eq!(load(&before, Core { number: 7, ..now }), None);
    }

    #[test]
    fn lines_of_another_kind_are_none() {
        for line in [
            "",
            "cpu",
            "cpu0",
            "cpu0 1 2 3",
            "cpuX 1 2 3 4 5 6 7 8",
            "ctxt 5",
        ] {
            assert_eq!(parse(line), [], "{line}");
        }
    }
}
