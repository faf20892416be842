//! A table, for pages and for terminals.

use super::number::Quantity;
use super::svg::escape;
use crate::results::{Estimate, Outcome};
use std::fmt::Write;

/// How something came out, as a symbol and a colour beside its word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// As wanted.
    Good,
    /// Not as wanted.
    Bad,
    /// Not known.
    Open,
}

/// A cell.
#[derive(Clone, PartialEq, Debug)]
pub enum Cell {
    /// Words, at the left.
    Text(String),
    /// A number with its unit, at the right.
    Number(String),
    /// Why there is no value, in place of this many cells.
    Missing(String, usize),
    /// How it came out.
    Mark(Mark, String),
}

/// A table; the first cell of a row is its name.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Table {
    /// What it shows.
    pub caption: String,
    /// Names of the columns.
    pub head: Vec<&'static str>,
    /// Rows; missing cells may take the place of several.
    pub rows: Vec<Vec<Cell>>,
}

impl Cell {
    /// A number as people write it.
    pub fn number(quantity: Quantity, value: f64) -> Cell {
        Cell::Number(quantity.show(value))
    }

    /// Two cells: median and interval, or the reason why there is none.
    pub fn estimate(quantity: Quantity, outcome: &Outcome<Estimate>) -> Vec<Cell> {
        match outcome {
            Outcome::Measured(e) if e.n > 1 => vec![Cell::number(quantity, e.median), Cell::Number(quantity.interval(e))],
            Outcome::Measured(e) => vec![Cell::number(quantity, e.median), Cell::Number("one value".into())],
            Outcome::NotMeasured(why) => vec![Cell::Missing(why.clone(), 2)],
        }
    }

    /// What it says, on one line.
    pub fn words(&self) -> String {
        let text = match self {
            Cell::Text(text) | Cell::Number(text) => text.clone(),
            Cell::Missing(why, _) => format!("not measured: {why}"),
            Cell::Mark(mark, text) => format!("{} {text}", mark.symbol()),
        };
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
    }

    fn span(&self) -> usize {
        if let Cell::Missing(_, span) = self { *span } else { 1 }
    }
}

impl Mark {
    fn symbol(self) -> &'static str {
        match self {
            Mark::Good => "✓",
            Mark::Bad => "✗",
            Mark::Open => "–",
        }
    }
}

impl Table {
    /// As HTML, in a box of its own that scrolls sideways where the page is narrow.
    pub fn html(&self) -> String {
        let caption = escape(&self.caption);
        let mut out = format!(
            "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{caption}\"><table><caption>{caption}</caption>\n<thead><tr>"
        );
        for (i, name) in self.head.iter().enumerate() {
            let class = if self.is_numeric(i) { " class=\"n\"" } else { "" };
            let _ = write!(out, "<th scope=\"col\"{class}>{}</th>", escape(name));
        }
        out.push_str("</tr></thead>\n<tbody>\n");
        for row in &self.rows {
            out.push_str("<tr>");
            for (i, cell) in row.iter().enumerate() {
                let words = escape(&cell.words());
                let _ = match cell {
                    _ if i == 0 => write!(out, "<th scope=\"row\"><span>{words}</span></th>"),
                    Cell::Text(_) => write!(out, "<td>{words}</td>"),
                    Cell::Number(_) => write!(out, "<td class=\"n\">{words}</td>"),
                    Cell::Missing(_, 1) => write!(out, "<td class=\"missing one\"><span>{words}</span></td>"),
                    Cell::Missing(_, span) => write!(out, "<td class=\"missing\" colspan=\"{span}\"><span>{words}</span></td>"),
                    Cell::Mark(Mark::Good, _) => write!(out, "<td class=\"good\">{words}</td>"),
                    Cell::Mark(Mark::Bad, _) => write!(out, "<td class=\"bad\">{words}</td>"),
                    Cell::Mark(Mark::Open, _) => write!(out, "<td class=\"open\">{words}</td>"),
                };
            }
            out.push_str("</tr>\n");
        }
        out.push_str("</tbody></table></div>\n");
        out
    }

    /// As lines of text with aligned columns; no caption. A reason in the middle of a row stands below the table, so that it does not make its column wide.
    pub fn text(&self) -> String {
        let mut reasons: Vec<String> = Vec::new();
        // Words, columns taken, at the right; those of a row's last cell may be as long as they are.
        let mut cells: Vec<Vec<(String, usize, bool)>> =
            vec![self.head.iter().enumerate().map(|(i, h)| ((*h).to_owned(), 1, self.is_numeric(i))).collect()];
        for row in &self.rows {
            let last = row.len().saturating_sub(1);
            let mut words = |i: usize, cell: &Cell| match cell {
                Cell::Missing(..) if i < last => {
                    let why = cell.words();
                    let number = reasons.iter().position(|r| *r == why).unwrap_or_else(|| {
                        reasons.push(why);
                        reasons.len() - 1
                    });
                    format!("not measured [{}]", number + 1)
                }
                _ => cell.words(),
            };
            cells.push(row.iter().enumerate().map(|(i, c)| (words(i, c), c.span(), matches!(c, Cell::Number(_)))).collect());
        }
        let mut widths = vec![0; self.head.len()];
        for row in &cells {
            let mut column = 0;
            for (i, (words, span, right)) in row.iter().enumerate() {
                if *span == 1 && column < widths.len() && (*right || i + 1 < row.len()) {
                    widths[column] = widths[column].max(words.chars().count());
                }
                column += span;
            }
        }
        let mut out = String::new();
        for row in cells {
            let (mut line, mut column) = (String::new(), 0);
            for (words, span, right) in row {
                let width = widths.iter().skip(column).take(span).sum::<usize>() + 2 * span.saturating_sub(1);
                let _ = if right { write!(line, "{words:>width$}  ") } else { write!(line, "{words:<width$}  ") };
                column += span;
            }
            let _ = writeln!(out, "{}", line.trim_end());
        }
        for (i, why) in reasons.iter().enumerate() {
            let _ = writeln!(out, "[{}] {why}", i + 1);
        }
        out
    }

    /// A column with a number in it: its head stands at the right too.
    fn is_numeric(&self, column: usize) -> bool {
        self.rows.iter().any(|row| {
            let mut at = 0;
            row.iter().any(|cell| {
                let here = at == column && matches!(cell, Cell::Number(_));
                at += cell.span();
                here
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let row = |name: &str, outcome| [vec![Cell::Text(name.into())], Cell::estimate(Quantity::Pps, &outcome)].concat();
        Table {
            caption: "rates".into(),
            head: vec!["subject", "rate", "95 % interval"],
            rows: vec![
                row("nomagic", Outcome::Measured(Estimate { median: 1.2e6, low: 1.1e6, high: 1.3e6, n: 9 })),
                row("<b>\u{1b}[2J", Outcome::NotMeasured("there is no <b>nft</b> here".into())),
                row("routing", Outcome::Measured(Estimate::single(9e5))),
            ],
        }
    }

    #[test]
    fn columns_are_aligned_in_a_terminal() {
        let wanted = "\
subject       rate  95 % interval
nomagic  1.20 Mpps   1.10 to 1.30
<b> [2J  not measured: there is no <b>nft</b> here
routing   900 kpps      one value
";
        assert_eq!(table().text(), wanted);
    }

    #[test]
    fn reasons_in_the_middle_of_a_row_stand_below() {
        let mut table = table();
        table.head.push("lost");
        table.rows.iter_mut().for_each(|row| row.push(Cell::Number("7".into())));
        table.rows.push(table.rows[1].clone());
        let wanted = "\
subject       rate  95 % interval  lost
nomagic  1.20 Mpps   1.10 to 1.30     7
<b> [2J  not measured [1]             7
routing   900 kpps      one value     7
<b> [2J  not measured [1]             7
[1] not measured: there is no <b>nft</b> here
";
        assert_eq!(table.text(), wanted);
    }

    #[test]
    fn html_has_heads_for_columns_and_rows_and_reasons_instead_of_holes() {
        let html = table().html();
        for part in [
            "<th scope=\"col\">subject</th><th scope=\"col\" class=\"n\">rate</th>",
            "<th scope=\"row\"><span>nomagic</span></th><td class=\"n\">1.20 Mpps</td><td class=\"n\">1.10 to 1.30</td>",
            "<td class=\"missing\" colspan=\"2\"><span>not measured: there is no &lt;b&gt;nft&lt;/b&gt; here</span></td>",
        ] {
            assert!(html.contains(part), "{part} is not in {html}");
        }
        assert!(!html.contains("<b>") && !html.contains("<td></td>"), "{html}");
    }
}
