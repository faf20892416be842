//! Text in aligned columns.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

/// Formats rows as lines, with two blanks between columns. The columns with the indices in `right` are right-aligned.
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
    fn names_are_left_aligned_and_numbers_right_aligned() {
        let row = |name: &str, n: &str, unit: &str| vec![name.to_owned(), n.to_owned(), unit.to_owned()];
        let text = columns([row("sent", "12345", "frames"), row("  größer", "7", ""), row("", "", "")], &[1]);
        assert_eq!(text, "sent      12345  frames\n  größer      7\n\n");
    }
}
