//! How one looks at it: what the keys change.

use ratatui::crossterm::event::{Event, KeyCode, KeyEventKind, KeyModifiers};
use std::cell::Cell;

/// Rows that a page key scrolls by.
const PAGE: usize = 10;

/// What the peers are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Order {
    /// As the node lists them.
    #[default]
    Listed,
    /// The most sent first.
    Sent,
    /// The most received first.
    Received,
    /// The slowest first.
    RoundTrip,
}

impl Order {
    const fn next(self) -> Self {
        match self {
            Self::Listed => Self::Sent,
            Self::Sent => Self::Received,
            Self::Received => Self::RoundTrip,
            Self::RoundTrip => Self::Listed,
        }
    }

    /// In the title of the peers.
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Listed => "",
            Self::Sent => ", most sent first",
            Self::Received => ", most received first",
            Self::RoundTrip => ", slowest first",
        }
    }
}

/// What follows from a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// It is drawn again.
    Draw,
    /// It ends.
    End,
}

/// An answer that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Silent {
    /// For so long.
    pub(super) seconds: u64,
    /// What came in its place.
    pub(super) why: Option<String>,
}

/// How one looks at a node.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// In a terminal, whose keys are told of.
    pub(super) is_live: bool,
    /// What is shown stays.
    pub(super) is_paused: bool,
    pub(super) order: Order,
    /// Peers that are scrolled past; whoever draws brings it down to as many as can be.
    pub(super) past: Cell<usize>,
    /// The node owes an answer.
    pub(super) silent: Option<Silent>,
}

impl View {
    /// Takes what came from the terminal.
    pub(super) fn take(&mut self, event: &Event) -> Next {
        let Event::Key(key) = event else {
            return Next::Draw;
        };
        if key.kind == KeyEventKind::Release {
            return Next::Draw;
        }
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Next::End,
            KeyCode::Char('c') if is_control => return Next::End,
            KeyCode::Char(' ') => self.is_paused = !self.is_paused,
            KeyCode::Char('s') => self.order = self.order.next(),
            KeyCode::Up | KeyCode::Char('k') => self.past.set(self.past.get().saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.past.set(self.past.get().saturating_add(1)),
            KeyCode::PageUp => self.past.set(self.past.get().saturating_sub(PAGE)),
            KeyCode::PageDown => self.past.set(self.past.get().saturating_add(PAGE)),
            KeyCode::Home => self.past.set(0),
            KeyCode::End => self.past.set(usize::MAX),
            _ => {}
        }
        Next::Draw
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ratatui::crossterm::event::KeyEvent;

    fn press(view: &mut View, code: KeyCode) -> Next {
        view.take(&Event::Key(KeyEvent::new(code, KeyModifiers::NONE)))
    }

    #[test]
    fn keys_pause_sort_scroll_and_end() {
        let mut view = View::default();
        for (code, past) in [
            (KeyCode::Up, 0),
            (KeyCode::Down, 1),
            (KeyCode::PageDown, 11),
            (KeyCode::Char('k'), 10),
            (KeyCode::End, usize::MAX),
            (KeyCode::Down, usize::MAX),
            (KeyCode::Home, 0),
        ] {
            assert_eq!(press(&mut view, code), Next::Draw);
            assert_eq!(view.past.get(), past, "{code:?}");
        }
        press(&mut view, KeyCode::Char(' '));
        press(&mut view, KeyCode::Char('s'));
        assert!(view.is_paused && view.order == Order::Sent);
        for _ in 0..3 {
            press(&mut view, KeyCode::Char('s'));
        }
        assert_eq!(view.order, Order::Listed);
        assert_eq!(press(&mut view, KeyCode::Char('c')), Next::Draw);
        let control = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(view.take(&Event::Key(control)), Next::End);
        assert_eq!(press(&mut view, KeyCode::Char('q')), Next::End);
    }
}
