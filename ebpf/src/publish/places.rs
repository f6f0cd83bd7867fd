//! Places: which line of the directory holds which destination, and how another gets in.
//!
//! Every write changes an entry's id or its route, never both; the id only while there is no route. So whoever
//! reads in between finds a destination's own route or none, and a destination that moves is in its new place
//! before the old one is given away.

#[cfg(test)]
mod tests;

extern crate std;
use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    vec,
    vec::Vec,
};

use crate::{
    directory::{ENTRIES, Line, find, lines_of, route, set_route},
    header::NodeId,
    limits::DESTINATIONS_PER_LINE,
};

/// Line and entry.
type Place = (u32, usize);

/// Where a line is written to.
pub(super) trait Write<E>: FnMut(u32, &Line) -> Result<(), E> {}
impl<E, F: FnMut(u32, &Line) -> Result<(), E>> Write<E> for F {}

/// What the directory's lines hold now.
#[derive(Debug)]
pub(super) struct Places {
    lines: Vec<Line>,
    pub(super) key: u64,
    /// Whether each id is known to be in one place, and that one its own.
    is_checked: bool,
}

impl Places {
    /// Of lines that an earlier publisher may have left at any moment.
    pub(super) fn recover(lines: Vec<Line>, key: u64) -> Self {
        Self {
            lines,
            key,
            is_checked: false,
        }
    }

    /// Lines that there are.
    pub(super) fn lines(&self) -> u32 {
        u32::try_from(self.lines.len()).unwrap_or(u32::MAX)
    }

    /// Destinations that always find a place.
    pub(super) fn capacity(&self) -> u32 {
        self.lines().saturating_mul(DESTINATIONS_PER_LINE)
    }

    /// Number of a destination's route.
    pub(super) fn get(&self, id: NodeId) -> Option<u32> {
        self.lines_of(id)
            .into_iter()
            .find_map(|line| find(&self.lines[line as usize], id).checked_sub(1))
    }

    /// Every destination and its route's number.
    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeId, u32)> {
        let entries = |line: &Line| {
            let line = *line;
            (0..ENTRIES).filter_map(move |n| Some((NodeId(line[n]), route(&line, n)?)))
        };
        self.lines.iter().flat_map(entries)
    }

    /// Takes out what is not where its key says, and the second of two: a move that was not finished.
    pub(super) fn check<E>(&mut self, write: &mut impl Write<E>) -> Result<(), E> {
        for line in 0..self.lines() {
            for n in 0..ENTRIES {
                if self.is_used((line, n)) && !self.is_first((line, n)) {
                    self.write_route(write, (line, n), None)?;
                }
            }
        }
        self.is_checked = true;
        Ok(())
    }

    /// Whether [`Self::check`] is still to be done.
    pub(super) fn is_unchecked(&self) -> bool {
        !self.is_checked
    }

    /// Gives a destination a route. False: there is no place.
    pub(super) fn set<E>(
        &mut self,
        write: &mut impl Write<E>,
        id: NodeId,
        number: u32,
    ) -> Result<bool, E> {
        if let Some(place) = self.place(id) {
            self.write_route(write, place, Some(number))?;
            return Ok(true);
        }
        let Some(path) = self.path_for(id) else {
            return Ok(false);
        };
        for i in (1..path.len()).rev() {
            let (line, n) = path[i - 1];
            let held = &self.lines[line as usize];
            let (moved, route) = (NodeId(held[n]), route(held, n));
            self.write_entry(write, path[i], moved, route)?;
        }
        self.write_entry(write, path[0], id, Some(number))?;
        Ok(true)
    }

    /// Takes a destination's route.
    pub(super) fn remove<E>(&mut self, write: &mut impl Write<E>, id: NodeId) -> Result<(), E> {
        match self.place(id) {
            Some(place) => self.write_route(write, place, None),
            None => Ok(()),
        }
    }

    fn lines_of(&self, id: NodeId) -> [u32; 2] {
        lines_of(self.key, self.lines(), id)
    }

    fn is_used(&self, (line, n): Place) -> bool {
        route(&self.lines[line as usize], n).is_some()
    }

    /// Where a destination is.
    fn place(&self, id: NodeId) -> Option<Place> {
        let places = self
            .lines_of(id)
            .into_iter()
            .flat_map(|line| (0..ENTRIES).map(move |n| (line, n)));
        let mut here = places.filter(|p| self.lines[p.0 as usize][p.1] == id.0);
        here.find(|p| self.is_used(*p))
    }

    /// Whether a look-up of what is in this place ends there.
    fn is_first(&self, (line, n): Place) -> bool {
        self.place(NodeId(self.lines[line as usize][n])) == Some((line, n))
    }

    /// The shortest way from one of an id's lines to a free entry: each step is where what is in the one
    /// before may move.
    fn path_for(&self, id: NodeId) -> Option<Vec<Place>> {
        let mut came_from: HashMap<u32, Option<Place>> = HashMap::new();
        let mut queue = VecDeque::new();
        for line in self.lines_of(id) {
            if came_from.insert(line, None).is_none() {
                queue.push_back(line);
            }
        }
        while let Some(line) = queue.pop_front() {
            if let Some(free) = (0..ENTRIES).find(|n| !self.is_used((line, *n))) {
                let mut path = vec![(line, free)];
                let mut at = line;
                while let Some(Some(before)) = came_from.get(&at) {
                    path.push(*before);
                    at = before.0;
                }
                path.reverse();
                return Some(path);
            }
            for n in 0..ENTRIES {
                for next in self.lines_of(NodeId(self.lines[line as usize][n])) {
                    if let Entry::Vacant(unseen) = came_from.entry(next) {
                        unseen.insert(Some((line, n)));
                        queue.push_back(next);
                    }
                }
            }
        }
        None
    }

    /// Puts a destination into a place that is free, or whose holder is in its next one already.
    fn write_entry<E>(
        &mut self,
        write: &mut impl Write<E>,
        place: Place,
        id: NodeId,
        route: Option<u32>,
    ) -> Result<(), E> {
        if self.is_used(place) {
            self.write_route(write, place, None)?;
        }
        let mut line = self.lines[place.0 as usize];
        if line[place.1] != id.0 {
            line[place.1] = id.0;
            self.write_line(write, place.0, line)?;
        }
        self.write_route(write, place, route)
    }

    fn write_route<E>(
        &mut self,
        write: &mut impl Write<E>,
        (at, n): Place,
        route: Option<u32>,
    ) -> Result<(), E> {
        let mut line = self.lines[at as usize];
        set_route(&mut line, n, route);
        self.write_line(write, at, line)
    }

    fn write_line<E>(&mut self, write: &mut impl Write<E>, at: u32, line: Line) -> Result<(), E> {
        write(at, &line)?;
        self.lines[at as usize] = line;
        Ok(())
    }
}
