//! Which columns of a table a screen has room for, and how wide they are.

use super::super::model::table::{Row, Table};
use super::super::text;

/// Blanks between two columns.
const GAP: usize = 2;
/// Texts are cut to this width before a column is left out.
const TEXT_MIN: usize = 32;
/// Texts are cut to this width before the screen cuts the line.
const TEXT_LEAST: usize = 6;

/// A column that is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shown {
    /// Its place in the table.
    pub column: usize,
    pub width: usize,
    is_text: bool,
}

/// Fits a table's columns into a width.
pub fn lay_out(table: &Table, rows: &[&Row], width: usize) -> Vec<Shown> {
    let widest = |column: usize| rows.iter().map(|row| row.cells[column].text().len()).max().unwrap_or_default();
    let mut shown: Vec<Shown> = (0..table.columns.len())
        .map(|column| Shown {
            column,
            width: widest(column).max(table.columns[column].title.len()),
            is_text: table.columns[column].is_text,
        })
        .collect();
    loop {
        shrink(&mut shown, width, TEXT_MIN);
        if taken(&shown) <= width {
            return shown;
        }
        // The column that the rows are sorted by stays: without it, their order means nothing.
        let rank = |shown: &Shown| if shown.column == table.sorted_by { 0 } else { table.columns[shown.column].rank };
        match (0..shown.len()).max_by_key(|place| rank(&shown[*place])).filter(|place| rank(&shown[*place]) > 0) {
            Some(place) => drop(shown.remove(place)),
            None => {
                shrink(&mut shown, width, TEXT_LEAST);
                return shown;
            }
        }
    }
}

/// Cuts the widest texts, down to a width.
fn shrink(shown: &mut [Shown], width: usize, least: usize) {
    for _ in 0..taken(shown).saturating_sub(width) {
        match shown.iter_mut().filter(|column| column.is_text && column.width > least).max_by_key(|column| column.width) {
            Some(column) => column.width -= 1,
            None => return,
        }
    }
}

fn taken(shown: &[Shown]) -> usize {
    shown.iter().map(|column| column.width + GAP).sum::<usize>().saturating_sub(GAP)
}

/// The line of titles.
pub fn titles(table: &Table, shown: &[Shown]) -> String {
    line(shown, |column| table.columns[column].title.to_owned())
}

/// The line of a row.
pub fn row(row: &Row, shown: &[Shown]) -> String {
    line(shown, |column| row.cells[column].text())
}

fn line(shown: &[Shown], of: impl Fn(usize) -> String) -> String {
    let cell = |column: &Shown| {
        let (words, width) = (text::cut(&of(column.column), column.width), column.width);
        if column.is_text { format!("{words:<width$}") } else { format!("{words:>width$}") }
    };
    shown.iter().map(cell).collect::<Vec<String>>().join(&" ".repeat(GAP)).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::super::keys::{Place, View};
    use super::super::super::model::table::{Cell, Column};
    use super::*;

    fn table(name: &str) -> Table {
        let columns = vec![
            Column::text("Service", "a", 0),
            Column::number("packets/s", "b", 0),
            Column::number("backends", "c", 1),
            Column::number("rejects/s", "d", 2),
        ];
        let cells = vec![Cell::Text(name.into()), Cell::Rate(Some(1.5)), Cell::Count(3), Cell::Rate(None)];
        Table::new(columns, vec![Row::new(name.into(), cells)], &Place::new(View::Services), 1)
    }

    fn drawn(name: &str, width: usize) -> [String; 2] {
        let table = table(name);
        let rows: Vec<&Row> = table.rows.iter().collect();
        let layout = lay_out(&table, &rows, width);
        [titles(&table, &layout), row(&table.rows[0], &layout)]
    }

    #[test]
    fn columns_have_the_width_that_they_need() {
        assert_eq!(drawn("a/b", 80), ["Service  packets/s  backends  rejects/s", "a/b            1.5         3          -"]);
    }

    #[test]
    fn names_are_cut_first_then_columns_go_by_rank_then_names_are_cut_further() {
        let name = "a-namespace/a-service-with-a-long-name";
        let wide = drawn(name, 66);
        assert!(wide[0].ends_with("rejects/s") && wide[1].contains('~') && wide[1].len() <= 66, "{wide:?}");
        let narrow = drawn(name, 53);
        assert_eq!(narrow[0].split_whitespace().collect::<Vec<_>>(), ["Service", "packets/s", "backends"]);
        let narrower = drawn(name, 22);
        assert_eq!(narrower, ["Service      packets/s", "a-nam~-name        1.5"].map(str::to_owned));
        // What is narrower still is cut by the screen.
        assert_eq!(drawn(name, 3)[1], "a-n~me        1.5");
    }

    #[test]
    fn the_column_of_the_order_stays() {
        let mut table = table("a-namespace/a-service");
        table.sorted_by = 3;
        let rows: Vec<&Row> = table.rows.iter().collect();
        let shown: Vec<usize> = lay_out(&table, &rows, 44).iter().map(|shown| shown.column).collect();
        assert_eq!(shown, [0, 1, 3]);
    }
}
