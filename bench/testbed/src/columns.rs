//! Text in aligned columns.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

/// Rows as lines, with columns two blanks apart. The numbers of the columns in `right` are aligned to the right.
pub fn columns(rows: impl IntoIterator<Item = Vec<String>>, right: &[usize]) -> String {
    let mut table = Table::new();
    table.load_style(NOTHING);
    for row in rows {
        table.add_row(row);
    }
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_at_the_left_and_numbers_at_the_right() {
        let row = |name: &str, n: &str, unit: &str| vec![name.to_owned(), n.to_owned(), unit.to_owned()];
        let text = columns([row("sent", "12345", "frames"), row("  größer", "7", ""), row("", "", "")], &[1]);
        assert_eq!(text, "sent      12345  frames\n  größer      7\n\n");
    }
}
