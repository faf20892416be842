//! A table, for pages and for terminals.

use maud::{Markup, html};
use nomagic_testbed::columns::columns;

use super::number::Quantity;
use crate::results::{Estimate, Outcome};

/// An outcome, shown as a symbol and a colour with its word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    Good,
    Bad,
    Open,
}

#[derive(Clone, PartialEq, Debug)]
pub enum Cell {
    Text(String),
    /// A number with its unit, at the right.
    Number(String),
    /// The reason for a missing value, in place of this many cells.
    Missing(String, usize),
    Mark(Mark, String),
}

/// A table; the first cell of a row is its name.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Table {
    pub caption: String,
    pub head: Vec<&'static str>,
    /// A missing cell may span several columns.
    pub rows: Vec<Vec<Cell>>,
}

impl Cell {
    pub fn number(quantity: Quantity, value: f64) -> Cell {
        Cell::Number(quantity.show(value))
    }

    /// Two cells: median and interval, or one reason for both.
    pub fn estimate(quantity: Quantity, outcome: &Outcome<Estimate>) -> Vec<Cell> {
        match outcome {
            Outcome::Measured(e) if e.n > 1 => vec![Cell::number(quantity, e.median), Cell::Number(quantity.interval(e))],
            Outcome::Measured(e) => vec![Cell::number(quantity, e.median), Cell::Number("one value".into())],
            Outcome::NotMeasured(why) => vec![Cell::Missing(why.clone(), 2)],
        }
    }

    /// Its text on one line.
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

    fn html(&self, is_name: bool) -> Markup {
        let words = self.words();
        html! {
            @match self {
                _ if is_name => { th scope="row" { span { (words) } } }
                Cell::Text(_) => { td { (words) } }
                Cell::Number(_) => { td class="n" { (words) } }
                Cell::Missing(_, span) => { td class={ "missing" @if *span == 1 { " one" } } colspan=[(*span > 1).then_some(span)] { span { (words) } } }
                Cell::Mark(mark, _) => { td class=(mark.class()) { (words) } }
            }
        }
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

    fn class(self) -> &'static str {
        match self {
            Mark::Good => "good",
            Mark::Bad => "bad",
            Mark::Open => "open",
        }
    }
}

impl Table {
    /// As HTML, in a box that scrolls horizontally on a narrow page.
    pub fn html(&self) -> Markup {
        html! {
            div class="scroll" role="region" tabindex="0" aria-label=(self.caption) {
                table {
                    caption { (self.caption) }
                    thead { tr { @for (i, name) in self.head.iter().enumerate() { th scope="col" class=[self.is_numeric(i).then_some("n")] { (name) } } } }
                    tbody { @for row in &self.rows { tr { @for (i, cell) in row.iter().enumerate() { (cell.html(i == 0)) } } } }
                }
            }
        }
    }

    /// As lines of text with aligned columns, without the caption. Reasons stand below the table, so that they do not
    /// widen a column of numbers.
    pub fn text(&self) -> String {
        let mut reasons: Vec<String> = Vec::new();
        let mut rows = vec![self.head.iter().map(|h| (*h).to_owned()).collect()];
        for row in &self.rows {
            let mut cells = Vec::new();
            for cell in row {
                let inline = cells.len() + 1 == self.head.len() && !self.is_numeric(cells.len());
                match cell {
                    Cell::Missing(_, span) if !inline => {
                        let why = cell.words();
                        let number = reasons.iter().position(|r| *r == why).unwrap_or(reasons.len());
                        if number == reasons.len() {
                            reasons.push(why);
                        }
                        cells.push(format!("[{}]", number + 1));
                        cells.resize(cells.len() + span - 1, String::new());
                    }
                    _ => cells.push(cell.words()),
                }
            }
            rows.push(cells);
        }
        let numeric: Vec<usize> = (0..self.head.len()).filter(|i| self.is_numeric(*i)).collect();
        let reasons = reasons.iter().enumerate().map(|(i, why)| format!("[{}] {why}\n", i + 1));
        columns(rows, &numeric) + &reasons.collect::<String>()
    }

    /// Columns of numbers are aligned to the right, with their heads.
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
    fn columns_are_aligned_and_reasons_stand_below() {
        let mut table = table();
        table.rows.push(table.rows[1].clone());
        let wanted = "\
subject       rate  95 % interval
nomagic  1.20 Mpps   1.10 to 1.30
<b> [2J        [1]
routing   900 kpps      one value
<b> [2J        [1]
[1] not measured: there is no <b>nft</b> here
";
        assert_eq!(table.text(), wanted);
    }

    #[test]
    fn a_reason_in_a_last_column_of_words_stands_there() {
        let row = |name: &str, cell| vec![Cell::Text(name.into()), cell];
        let rows = vec![row("a", Cell::Text("found".into())), row("b", Cell::Missing("no NIC".into(), 1))];
        let table = Table { caption: "figures".into(), head: vec!["figure", "found"], rows };
        assert_eq!(table.text(), "figure  found\na       found\nb       not measured: no NIC\n");
    }

    #[test]
    fn html_has_heads_for_columns_and_rows_and_reasons_instead_of_holes() {
        let html = table().html().into_string();
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
