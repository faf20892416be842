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

    /// As lines of text with aligned columns; no caption.
    pub fn text(&self) -> String {
        let columns = self.head.len();
        let mut widths: Vec<usize> = self.head.iter().map(|h| h.chars().count()).collect();
        for row in &self.rows {
            let mut column = 0;
            for cell in row {
                if cell.span() == 1 && column < columns {
                    widths[column] = widths[column].max(cell.words().chars().count());
                }
                column += cell.span();
            }
        }
        let mut out = String::new();
        let line = |out: &mut String, cells: &mut dyn Iterator<Item = (String, usize, bool)>| {
            let mut text = String::new();
            let mut column = 0;
            for (words, span, right) in cells {
                let width = widths.iter().skip(column).take(span).sum::<usize>() + 2 * span.saturating_sub(1);
                let _ = if right { write!(text, "{words:>width$}  ") } else { write!(text, "{words:<width$}  ") };
                column += span;
            }
            out.push_str(text.trim_end());
            out.push('\n');
        };
        line(&mut out, &mut self.head.iter().enumerate().map(|(i, h)| ((*h).to_owned(), 1, self.is_numeric(i))));
        for row in &self.rows {
            line(&mut out, &mut row.iter().map(|c| (c.words(), c.span(), matches!(c, Cell::Number(_)))));
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
