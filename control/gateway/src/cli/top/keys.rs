//! What the user looks at, and what a key changes of it. Pure: the terminal's keys come in, nothing goes out.

use nomagic_api::flows::FlowFilter;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::model::Body;
use super::model::table::Table;

/// Maximum length of the filter.
const FILTER_MAX: usize = 64;
/// Maximum number of views on top of one another. No way through them is longer.
const DEPTH_MAX: usize = 8;

/// What a screen is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum View {
    Services,
    /// Of one Service (`namespace/name`), or of all.
    Backends(Option<String>),
    /// Of one Service, or of all.
    Clients(Option<String>),
    Reasons,
    Workers,
    Tables,
    Flows(FlowFilter),
    /// What the gateway does with a packet of this flow, in the notation of `nomagic explain`.
    Explain(String),
}

/// The views that have a key, in the order of their numbers.
pub static NUMBERED: [View; 6] = [View::Services, View::Backends(None), View::Clients(None), View::Reasons, View::Workers, View::Tables];

impl View {
    /// The word for the screen and for JSON.
    pub fn word(&self) -> &'static str {
        match self {
            View::Services => "services",
            View::Backends(_) => "backends",
            View::Clients(_) => "clients",
            View::Reasons => "reasons",
            View::Workers => "workers",
            View::Tables => "tables",
            View::Flows(_) => "flows",
            View::Explain(_) => "explain",
        }
    }
}

/// One view and how it is looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    pub view: View,
    /// The column to sort by, if not the view's own.
    pub sort: Option<usize>,
    pub is_reversed: bool,
    pub filter: String,
    /// The key of the selected row. `None`: the first one, whichever it is.
    pub selected: Option<String>,
    /// Where it was last, for the case that it is gone; of a text, the first line that is shown.
    pub index: usize,
}

impl Place {
    pub fn new(view: View) -> Place {
        Place { view, sort: None, is_reversed: false, filter: String::new(), selected: None, index: 0 }
    }

    /// The selected row's place, if there are rows; of a text, the first line that is shown.
    pub fn position(&self, body: &Body) -> usize {
        match body {
            Body::Table(table) => self.row(table),
            Body::Text(lines) => self.index.min(lines.len().saturating_sub(1)),
        }
    }

    /// The selected row's place, if there are rows.
    pub fn row(&self, table: &Table) -> usize {
        let of_key = |key: &String| table.rows.iter().position(|row| row.key == *key);
        let last = table.rows.len().saturating_sub(1);
        self.selected.as_ref().and_then(of_key).unwrap_or(self.index.min(last))
    }

    fn select(&mut self, position: usize, body: &Body) {
        self.index = position.min(body.len().saturating_sub(1));
        self.selected = match body {
            Body::Table(table) => table.rows.get(self.index).map(|row| row.key.clone()),
            Body::Text(_) => None,
        };
    }
}

/// Everything that keys change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct State {
    /// The view on top is shown. Never empty.
    below: Vec<Place>,
    pub top: Place,
    pub is_paused: bool,
    pub shows_help: bool,
    /// The filter is being typed.
    pub is_typing: bool,
    pub is_over: bool,
}

impl State {
    pub fn new(view: View) -> State {
        State { below: Vec::new(), top: Place::new(view), is_paused: false, shows_help: false, is_typing: false, is_over: false }
    }

    /// A key of the terminal. `body` is what is shown, `page` the number of its rows that fit the screen.
    pub fn press(&mut self, key: KeyEvent, body: &Body, page: usize) {
        let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if is_control => self.is_over = true,
            _ if is_control || key.modifiers.contains(KeyModifiers::ALT) => {}
            code if self.is_typing => self.type_filter(code),
            KeyCode::Char('q') => self.is_over = true,
            _ if self.shows_help => self.shows_help = false,
            code => self.command(code, body, page),
        }
    }

    fn type_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Char(c) if self.top.filter.len() + c.len_utf8() <= FILTER_MAX => self.top.filter.push(c),
            KeyCode::Backspace => drop(self.top.filter.pop()),
            KeyCode::Enter => self.is_typing = false,
            KeyCode::Esc => {
                self.top.filter.clear();
                self.is_typing = false;
            }
            _ => return,
        }
        (self.top.selected, self.top.index) = (None, 0);
    }

    fn command(&mut self, code: KeyCode, body: &Body, page: usize) {
        let at = self.top.position(body);
        let page = page.max(1);
        match code {
            KeyCode::Up | KeyCode::Char('k') => self.top.select(at.saturating_sub(1), body),
            KeyCode::Down | KeyCode::Char('j') => self.top.select(at + 1, body),
            KeyCode::PageUp => self.top.select(at.saturating_sub(page), body),
            KeyCode::PageDown => self.top.select(at + page, body),
            KeyCode::Home | KeyCode::Char('g') => (self.top.selected, self.top.index) = (None, 0),
            KeyCode::End | KeyCode::Char('G') => self.top.select(usize::MAX, body),
            KeyCode::Enter | KeyCode::Right => self.open(at, body),
            KeyCode::Esc | KeyCode::Left | KeyCode::Backspace => self.back(),
            KeyCode::Char(digit @ '1'..='6') => self.jump(digit as usize - '1' as usize),
            KeyCode::Tab => self.turn(1),
            KeyCode::BackTab => self.turn(NUMBERED.len() - 1),
            KeyCode::Char('c') => self.clients(at, body),
            KeyCode::Char('s') => self.sort_next(body),
            KeyCode::Char('r') => self.top.is_reversed = !self.top.is_reversed,
            KeyCode::Char('p') => self.is_paused = !self.is_paused,
            KeyCode::Char('/') => self.is_typing = matches!(body, Body::Table(_)),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.shows_help = true,
            _ => {}
        }
    }

    fn push(&mut self, view: View) {
        if self.below.len() < DEPTH_MAX {
            self.below.push(std::mem::replace(&mut self.top, Place::new(view)));
        }
    }

    fn open(&mut self, at: usize, body: &Body) {
        let Body::Table(table) = body else { return };
        let Some(view) = table.rows.get(at).and_then(|row| row.opens.clone()) else { return };
        // The way back leads to the row that was opened.
        self.top.select(at, body);
        self.push(view);
    }

    /// The filter first, then the view.
    fn back(&mut self) {
        if !self.top.filter.is_empty() {
            self.top.filter.clear();
        } else if let Some(place) = self.below.pop() {
            self.top = place;
        }
    }

    /// The clients of the Service that is selected or shown.
    fn clients(&mut self, at: usize, body: &Body) {
        let service = match (&self.top.view, body) {
            (View::Backends(Some(service)), _) => Some(service.clone()),
            (View::Services | View::Backends(None), Body::Table(table)) => table.rows.get(at).and_then(|row| match &row.opens {
                Some(View::Backends(service)) => service.clone(),
                Some(View::Flows(filter)) => filter.service.clone(),
                _ => None,
            }),
            _ => return,
        };
        self.top.select(at, body);
        self.push(View::Clients(service));
    }

    fn jump(&mut self, number: usize) {
        let Some(view) = NUMBERED.get(number) else { return };
        if self.top.view != *view {
            (self.below, self.top) = (Vec::new(), Place::new(view.clone()));
        }
    }

    fn turn(&mut self, by: usize) {
        let root = self.below.first().unwrap_or(&self.top);
        let number = NUMBERED.iter().position(|view| view.word() == root.view.word()).unwrap_or_default();
        self.jump((number + by) % NUMBERED.len());
    }

    fn sort_next(&mut self, body: &Body) {
        if let Body::Table(table) = body
            && !table.columns.is_empty()
        {
            self.top.sort = Some((table.sorted_by + 1) % table.columns.len());
            self.top.is_reversed = false;
        }
    }

    /// The views that lead here, the first one first.
    pub fn way(&self) -> impl Iterator<Item = &View> {
        self.below.iter().chain([&self.top]).map(|place| &place.view)
    }
}

#[cfg(test)]
mod tests;
