//! A table of the screen: columns, rows, their order and their filter.

use std::cmp::Ordering;

use serde_json::{Map, Value, json};

use super::super::keys::{Place, View};
use super::super::text;

/// Version of the form of `--format json`. It grows with each incompatible change.
pub const SCHEMA: u32 = 1;

/// One field of a row.
#[derive(Clone, PartialEq, Debug)]
pub enum Cell {
    /// As it came: it is escaped where it is drawn.
    Text(String),
    Count(u64),
    /// A second; `None`: not known yet.
    Rate(Option<f64>),
    /// From 0 to 1.
    Share(Option<f64>),
    /// A second; may be negative.
    Change(Option<f64>),
    Milliseconds(u64),
}

impl Cell {
    /// In printable ASCII.
    pub fn text(&self) -> String {
        let known = |number: &Option<f64>, text: fn(f64) -> String| number.map_or_else(|| "-".to_owned(), text);
        match self {
            Cell::Text(words) => text::plain(words),
            Cell::Count(number) => text::count(*number),
            Cell::Rate(rate) => known(rate, text::short),
            Cell::Share(share) => known(share, text::percent),
            Cell::Change(change) => known(change, text::change),
            Cell::Milliseconds(ms) => text::duration((*ms / 1_000) as f64),
        }
    }

    fn json(&self) -> Value {
        match self {
            Cell::Text(words) => json!(words),
            Cell::Count(number) | Cell::Milliseconds(number) => json!(number),
            Cell::Rate(number) | Cell::Share(number) | Cell::Change(number) => json!(number),
        }
    }

    /// Numbers: the largest first, unknown ones last. Texts: by the alphabet.
    fn compare(&self, other: &Cell) -> Ordering {
        match (self, other) {
            (Cell::Text(a), Cell::Text(b)) => a.cmp(b),
            _ => other.number().total_cmp(&self.number()),
        }
    }

    fn number(&self) -> f64 {
        match self {
            Cell::Text(_) => f64::NEG_INFINITY,
            Cell::Count(number) | Cell::Milliseconds(number) => *number as f64,
            Cell::Rate(number) | Cell::Share(number) | Cell::Change(number) => number.unwrap_or(f64::NEG_INFINITY),
        }
    }
}

/// One column.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Column {
    pub title: &'static str,
    /// Its name in JSON, with the unit.
    pub key: &'static str,
    /// 0: always shown. The highest rank goes first if the screen is narrow.
    pub rank: u8,
    /// Left-aligned, and cut if the screen is narrow.
    pub is_text: bool,
}

impl Column {
    pub const fn number(title: &'static str, key: &'static str, rank: u8) -> Column {
        Column { title, key, rank, is_text: false }
    }

    pub const fn text(title: &'static str, key: &'static str, rank: u8) -> Column {
        Column { title, key, rank, is_text: true }
    }
}

/// One row.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    /// What the row is about: the selection follows it.
    pub key: String,
    pub cells: Vec<Cell>,
    /// What Enter opens.
    pub opens: Option<View>,
    /// Something is wrong here.
    pub is_alarm: bool,
}

impl Row {
    pub fn new(key: String, cells: Vec<Cell>) -> Row {
        Row { key, cells, opens: None, is_alarm: false }
    }

    pub fn opening(self, view: View) -> Row {
        Row { opens: Some(view), ..self }
    }

    fn contains(&self, filter: &str) -> bool {
        self.cells.iter().any(|cell| matches!(cell, Cell::Text(words) if words.to_ascii_lowercase().contains(filter)))
    }
}

/// A table, sorted and filtered.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Table {
    pub columns: Vec<Column>,
    pub rows: Vec<Row>,
    /// The column that the rows are sorted by.
    pub sorted_by: usize,
    /// The number of rows without the filter.
    pub all: usize,
    /// What must be said about the rows.
    pub notes: Vec<String>,
    /// There is more than the rows show.
    pub is_partial: bool,
}

impl Table {
    /// Sorts by the place's column, or by this one; filters by the place's text.
    pub fn new(columns: Vec<Column>, mut rows: Vec<Row>, place: &Place, default_sort: usize) -> Table {
        let all = rows.len();
        if !place.filter.is_empty() {
            let filter = place.filter.to_ascii_lowercase();
            rows.retain(|row| row.contains(&filter));
        }
        let sorted_by = place.sort.filter(|column| *column < columns.len()).unwrap_or(default_sort);
        // By key where values are equal: rows do not change places without a reason.
        rows.sort_by(|a, b| {
            let order = a.cells[sorted_by].compare(&b.cells[sorted_by]);
            if place.is_reversed { order.reverse() } else { order }.then_with(|| a.key.cmp(&b.key))
        });
        Table { columns, rows, sorted_by, all, notes: Vec::new(), is_partial: false }
    }

    pub fn with_notes(self, notes: Vec<String>) -> Table {
        Table { notes, ..self }
    }

    /// One object a row; `partial` if there is more than the rows show.
    pub fn json_lines(&self, view: &str) -> Vec<String> {
        let line = |row: &Row| {
            let mut object = Map::from_iter([("schema".into(), json!(SCHEMA)), ("view".into(), json!(view))]);
            object.extend(self.columns.iter().zip(&row.cells).map(|(column, cell)| (column.key.to_owned(), cell.json())));
            if self.is_partial {
                object.insert("partial".into(), json!(true));
            }
            Value::Object(object).to_string()
        };
        self.rows.iter().map(line).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(place: &Place) -> Table {
        let columns = vec![Column::text("name", "name", 0), Column::number("packets/s", "packets_per_s", 0)];
        let row = |name: &str, rate: Option<f64>| Row::new(name.into(), vec![Cell::Text(name.into()), Cell::Rate(rate)]);
        let rows = vec![row("shop/web", Some(2.0)), row("Default/dns", None), row("shop/api", Some(2.0)), row("kube/x", Some(7.5))];
        Table::new(columns, rows, place, 1)
    }

    fn keys(table: &Table) -> Vec<&str> {
        table.rows.iter().map(|row| row.key.as_str()).collect()
    }

    #[test]
    fn rows_are_sorted_by_any_column_and_equal_ones_stay_in_order() {
        let mut place = Place::new(View::Services);
        assert_eq!(keys(&table(&place)), ["kube/x", "shop/api", "shop/web", "Default/dns"]);
        place.is_reversed = true;
        assert_eq!(keys(&table(&place)), ["Default/dns", "shop/api", "shop/web", "kube/x"]);
        (place.sort, place.is_reversed) = (Some(0), false);
        assert_eq!(keys(&table(&place)), ["Default/dns", "kube/x", "shop/api", "shop/web"]);
        place.sort = Some(9);
        assert_eq!(table(&place).sorted_by, 1);
    }

    #[test]
    fn the_filter_looks_at_texts_in_any_case() {
        let mut place = Place::new(View::Services);
        place.filter = "DEFAULT".into();
        let filtered = table(&place);
        assert_eq!((keys(&filtered), filtered.all), (vec!["Default/dns"], 4));
    }

    #[test]
    fn json_has_the_values_and_not_their_short_forms() {
        let lines = table(&Place::new(View::Services)).json_lines("services");
        let first: Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(first, json!({ "schema": 1, "view": "services", "name": "kube/x", "packets_per_s": 7.5 }));
        assert!(lines[3].contains("\"packets_per_s\":null") && !lines[3].contains("partial"), "{lines:?}");
        let part = Table { is_partial: true, ..table(&Place::new(View::Services)) };
        assert!(part.json_lines("services").iter().all(|line| line.contains("\"partial\":true")));
    }
}
