//! Draws what is known. Everything that is drawn is printable ASCII, and nothing is said by colour alone.
//!
//! ```text
//! nomagic top  ready  up 3 h  workers 2 of 2  every 1 s
//! in 12.3k/s  out 12.3k/s  kernel 3.0/s  dropped 1.0/s  flows 1200 +300/s
//! (a notice: no answer, a restart, why the gateway is not ready)
//! 1 services  2 backends  3 clients  4 reasons  5 workers  6 tables
//! services, by packets/s
//! Service            packets/s  bytes/s  ...
//! (rows)
//! (notes)
//! Enter open  Esc back  ...
//! ```

mod columns;

use ratatui::buffer::Buffer;
use ratatui::layout::{Position, Rect};
use ratatui::style::{Color, Modifier, Style};

use super::keys::{NUMBERED, State, View};
use super::model::table::{Row, Table};
use super::model::{Body, Model};
use super::text;

/// Lines above the rows, the columns' titles among them.
const HEAD: u16 = 6;
/// Lines below the notes.
const FOOT: u16 = 1;
/// Maximum number of lines of notes.
const NOTES_MAX: usize = 3;
/// Columns of a screen with unknown size, and its lines.
pub const DEFAULT_SIZE: (u16, u16) = (80, 24);

const KEYS: &str = "Enter open  Esc back  / filter  s sort  r reverse  p pause  ? help  q quit";

const HELP: [&str; 18] = [
    "Up Down PageUp PageDown   select a row (also j and k, g and G for the ends)",
    "Enter, Right              open it: Service, its backends, their flows, explain",
    "Esc, Left                 clear the filter, or go back",
    "1 to 6, Tab               change the view",
    "c                         the clients of the selected Service",
    "/                         show only rows with this text; Enter keeps it",
    "s                         sort by the next column",
    "r                         reverse the order",
    "p                         pause, and go on",
    "q, Ctrl-C                 quit",
    "Line 2: frames that the workers received, forwarded, left to the kernel and",
    "dropped; connections, and how many are new.",
    "Rates are per second, between the last two answers of the gateway. packets/s",
    "and bytes/s are both directions together. drops/s of a Service are packets",
    "that it rejected or dropped; a packet that no Service took is in `reasons`.",
    "busy: the part of its time in which a worker had packets.",
    "A `-` is not known yet.",
    "A name with ~ in it is cut; a wider terminal shows it whole.",
];

/// How things look.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    pub has_colour: bool,
}

impl Look {
    fn alarm(self) -> Style {
        if self.has_colour { Style::new().fg(Color::Red) } else { Style::new().add_modifier(Modifier::BOLD) }
    }

    fn title(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    fn selected(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    fn plain(self) -> Style {
        Style::new()
    }
}

/// What is drawn.
pub struct Picture<'a> {
    pub model: &'a Model,
    pub state: &'a State,
    /// As [`Model::body`] gives it, for this width.
    pub body: &'a Body,
    pub look: Look,
    /// Seconds between two looks.
    pub every_s: f64,
    pub now_ns: u64,
}

/// The number of rows that fit a screen.
pub fn page(body: &Body, screen: Rect) -> usize {
    let (head, notes) = match body {
        Body::Table(table) => (HEAD, notes(table, screen.width).len()),
        // Lines begin where columns have their titles.
        Body::Text(_) => (HEAD - 1, 0),
    };
    usize::from(screen.height.saturating_sub(head + FOOT)).saturating_sub(notes).max(1)
}

/// The lines of a table's notes.
fn notes(table: &Table, width: u16) -> Vec<String> {
    table.notes.iter().flat_map(|note| text::wrap(note, width.into(), 2)).take(NOTES_MAX).collect()
}

impl Picture<'_> {
    /// Draws it.
    pub fn draw(&self, area: Rect, buffer: &mut Buffer) {
        let mut pen = Pen { area, buffer };
        self.draw_head(&mut pen);
        if self.state.shows_help {
            HELP.iter().enumerate().for_each(|(line, help)| pen.line(HEAD - 1 + line as u16, help, self.look.plain()));
            return pen.line(area.height.saturating_sub(1), "any key goes back", self.look.plain());
        }
        match self.body {
            Body::Table(table) => self.draw_table(&mut pen, table),
            Body::Text(lines) => {
                let page = page(self.body, area);
                let first = self.state.top.position(self.body).min(lines.len().saturating_sub(page));
                let shown = lines[first..].iter().take(page).enumerate();
                shown.for_each(|(line, text)| pen.line(HEAD - 1 + line as u16, text, self.look.plain()));
            }
        }
        self.draw_foot(&mut pen);
    }

    fn draw_head(&self, pen: &mut Pen<'_>) {
        let look = self.look;
        let (state, totals) = match self.model.status() {
            None => ("nomagic top  waiting for the gateway".to_owned(), String::new()),
            Some(status) => (self.state_line(status), self.totals_line(status)),
        };
        pen.line(0, &state, look.title());
        if self.state.is_paused {
            pen.right(0, "PAUSED, p goes on", look.selected());
        }
        pen.line(1, &totals, look.plain());
        if let Some(notice) = self.model.notice(self.now_ns) {
            pen.line(2, &text::cut_end(&notice, pen.width()), look.alarm());
        }
        let mut x = 0;
        let root = self.state.way().next().map(View::word);
        for (number, view) in NUMBERED.iter().enumerate() {
            let is_here = root == Some(view.word());
            let label = format!(" {} {} ", number + 1, view.word());
            pen.put(x, 3, &label, if is_here { look.selected() } else { look.plain() });
            x += label.len() as u16;
        }
        pen.line(4, &text::cut(&self.title(), pen.width()), look.title());
    }

    fn state_line(&self, status: &nomagic_api::Status) -> String {
        let ready = match (status.ready, status.draining) {
            (_, true) => "DRAINING",
            (true, _) => "ready",
            (false, _) => "NOT READY",
        };
        format!(
            "nomagic top  {ready}  up {}  workers {} of {}  every {} s",
            text::duration(status.uptime_s as f64),
            status.workers_alive,
            status.workers.len(),
            self.every_s
        )
    }

    fn totals_line(&self, status: &nomagic_api::Status) -> String {
        let samples = self.model.samples();
        let rate = |of: fn(&nomagic_api::Status) -> u64| samples.rate(of).map_or_else(|| "-".to_owned(), text::short);
        format!(
            "in {}/s  out {}/s  kernel {}/s  dropped {}/s  flows {} +{}/s",
            rate(|s| s.totals.counts.frames.received.packets),
            rate(|s| s.totals.counts.frames.forwarded.packets),
            rate(|s| s.totals.counts.frames.kernel.packets),
            rate(|s| s.totals.counts.frames.dropped.packets),
            text::count(status.conntrack.live),
            rate(|s| s.totals.counts.conntrack.created)
        )
    }

    /// The way to this view, its order and its filter.
    fn title(&self) -> String {
        let way: Vec<String> = self.state.way().map(name).collect();
        let way = way.join(" > ");
        let Body::Table(table) = self.body else { return way };
        let place = &self.state.top;
        let order = table.columns.get(table.sorted_by).map_or("", |column| column.title);
        let reversed = if place.is_reversed { ", reversed" } else { "" };
        let filter = match (place.filter.as_str(), self.state.is_typing) {
            ("", false) => String::new(),
            (filter, _) => format!(", {} of {} with `{filter}`", table.rows.len(), table.all),
        };
        format!("{way}, by {order}{reversed}{filter}")
    }

    fn draw_table(&self, pen: &mut Pen<'_>, table: &Table) {
        let height = pen.area.height;
        let page = page(self.body, pen.area);
        let at = self.state.top.position(self.body);
        // Page by page: the rows above the selected one do not move with it.
        let first = at - at % page;
        let shown: Vec<&Row> = table.rows.iter().skip(first).take(page).collect();
        let layout = columns::lay_out(table, &shown, usize::from(pen.area.width));
        pen.line(HEAD - 1, &columns::titles(table, &layout), self.look.title());
        for (line, row) in shown.iter().enumerate() {
            let style = match (first + line == at, row.is_alarm) {
                (true, _) => self.look.selected(),
                (_, true) => self.look.alarm(),
                _ => self.look.plain(),
            };
            let mut text = columns::row(row, &layout);
            if first + line == at {
                text = format!("{text:<width$}", width = pen.width());
            }
            pen.line(HEAD + line as u16, &text, style);
        }
        if shown.is_empty() {
            pen.line(HEAD, self.nothing(table), self.look.plain());
        }
        let notes = notes(table, pen.area.width);
        let top = height.saturating_sub(FOOT).saturating_sub(notes.len() as u16);
        notes.iter().enumerate().for_each(|(line, note)| pen.line(top + line as u16, note, self.look.plain()));
    }

    /// Why there are no rows.
    fn nothing(&self, table: &Table) -> &'static str {
        match self.state.top.view {
            _ if table.all > 0 => "no row has this text",
            _ if self.model.status().is_none() => "",
            View::Services => "no Services",
            View::Backends(_) => "no backends",
            View::Clients(_) | View::Flows(_) => "no flows",
            View::Reasons => "every frame was forwarded",
            View::Workers => "no workers yet",
            View::Tables | View::Explain(_) => "",
        }
    }

    fn draw_foot(&self, pen: &mut Pen<'_>) {
        let line = pen.area.height.saturating_sub(FOOT);
        if self.state.is_typing {
            return pen.line(line, &format!("filter: {}_  (Enter keeps it, Esc clears it)", self.state.top.filter), self.look.title());
        }
        pen.line(line, KEYS, self.look.plain());
        if let Body::Table(table) = self.body
            && table.rows.len() > page(self.body, pen.area)
            && pen.width() >= KEYS.len() + 16
        {
            let at = self.state.top.position(self.body) + 1;
            pen.right(line, &format!("row {at} of {}", table.rows.len()), self.look.plain());
        }
    }
}

/// A view in the way to the one that is shown.
fn name(view: &View) -> String {
    match view {
        View::Backends(Some(service)) => service.clone(),
        View::Clients(Some(service)) => format!("clients of {service}"),
        View::Flows(filter) => match (&filter.backend, &filter.client) {
            (Some(backend), _) => format!("flows to {backend}"),
            (None, Some(client)) => format!("flows of {client}"),
            _ => "flows".into(),
        },
        View::Explain(flow) => flow.clone(),
        view => view.word().into(),
    }
}

/// Writes text into an area, and nothing beside it.
struct Pen<'b> {
    area: Rect,
    buffer: &'b mut Buffer,
}

impl Pen<'_> {
    fn width(&self) -> usize {
        self.area.width.into()
    }

    fn put(&mut self, x: u16, y: u16, words: &str, style: Style) {
        let at = Position { x: self.area.x.saturating_add(x), y: self.area.y.saturating_add(y) };
        if self.area.intersection(self.buffer.area).contains(at) {
            self.buffer.set_stringn(at.x, at.y, text::plain(words), (self.area.width - x).into(), style);
        }
    }

    fn line(&mut self, y: u16, words: &str, style: Style) {
        self.put(0, y, words, style);
    }

    /// At the end of a line.
    fn right(&mut self, y: u16, words: &str, style: Style) {
        self.put(self.area.width.saturating_sub(words.len() as u16), y, words, style);
    }
}

/// The lines of a screen as text.
pub fn lines(buffer: &Buffer) -> Vec<String> {
    let Rect { x, y, width, height } = buffer.area;
    let symbol = |column, line| buffer.cell((column, line)).map_or(" ", |cell| cell.symbol());
    let line = |line| (x..x + width).map(|column| symbol(column, line)).collect::<String>().trim_end().to_owned();
    (y..y + height).map(line).collect()
}

#[cfg(test)]
mod tests;
