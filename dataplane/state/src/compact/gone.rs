//! Which events go, a bit each: noted part by part of the keys, before anything is written.

use std::collections::BTreeMap;

/// Events of a page: what the last byte of an offset tells apart.
const PAGE_EVENTS: u64 = 256;

/// See the module. Room is taken only where something goes. Where there is no more, what comes last of the log is forgotten
/// again: so of what comes before the [`limit`](Gone::limit), all that goes is noted, of whatever part it is.
#[derive(Debug)]
pub(super) struct Gone {
    /// By the number of the page: so many events to a page.
    pages: BTreeMap<u64, [u64; 4]>,
    pages_max: usize,
    limit: u64,
}

impl Gone {
    pub(super) const fn within(pages_max: usize) -> Self {
        Self {
            pages: BTreeMap::new(),
            pages_max,
            limit: u64::MAX,
        }
    }

    /// Nothing is noted of events from here on.
    pub(super) const fn limit(&self) -> u64 {
        self.limit
    }

    pub(super) fn note(&mut self, offset: u64) {
        if offset >= self.limit {
            return;
        }
        let (page, word, bit) = place(offset);
        self.pages.entry(page).or_default()[word] |= bit;
        if self.pages.len() > self.pages_max
            && let Some((last, _)) = self.pages.pop_last()
        {
            self.limit = last * PAGE_EVENTS;
        }
    }

    pub(super) fn has(&self, offset: u64) -> bool {
        let (page, word, bit) = place(offset);
        let page = self.pages.get(&page);
        page.is_some_and(|words| words[word] & bit != 0)
    }
}

/// The page, the word in it, and the bit in that.
fn place(offset: u64) -> (u64, usize, u64) {
    let [.., within] = offset.to_be_bytes();
    let page = offset / PAGE_EVENTS;
    (page, usize::from(within / 64), 1 << (within % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_noted_goes_and_nothing_else() {
        let mut gone = Gone::within(5);
        let noted = [10, 63, 64, 255, 256, 1_024, 70_000, u64::MAX - 1];
        for offset in noted {
            gone.note(offset);
        }
        for offset in (0..2_000).chain(69_000..71_000) {
            assert_eq!(gone.has(offset), noted.contains(&offset), "{offset}");
        }
        assert!(gone.has(u64::MAX - 1) && !gone.has(u64::MAX - 2));
        assert_eq!(gone.limit(), u64::MAX);
    }

    #[test]
    fn where_there_is_no_room_all_that_goes_of_what_comes_first_is_noted_and_nothing_behind() {
        let page = PAGE_EVENTS;
        // Far apart, and in no order: as of several parts.
        let places = [40, 7, 90, 7, 3, 60, 1, 5, 41, 2];
        for pages_max in 0..=places.len() {
            let mut gone = Gone::within(pages_max);
            for (at, place) in (0..).zip(places) {
                gone.note(place * page + at);
                assert!(gone.pages.len() <= pages_max);
            }
            let mut distinct = places.to_vec();
            distinct.sort_unstable();
            distinct.dedup();
            let limit = distinct
                .get(pages_max)
                .map_or(u64::MAX, |place| place * page);
            assert_eq!(gone.limit(), limit);
            for (at, place) in (0..).zip(places) {
                let offset = place * page + at;
                assert_eq!(gone.has(offset), offset < limit, "{offset} of {pages_max}");
            }
        }
    }
}
