//! The elements of a drawing, as text.

use std::fmt::Write;

/// Size of all text in a drawing, in pixels.
pub const FONT: f64 = 12.0;

/// Text as it may stand in HTML and SVG, also in attributes. Characters that XML does not know are replaced.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c if (c.is_control() && c != '\n' && c != '\t') || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// About how wide a text is in pixels, rather more than less: the widths are those of DejaVu Sans, wider than most.
pub fn text_width(text: &str) -> f64 {
    let em = |c: char| match c {
        'i' | 'j' | 'l' | '\'' | '|' | ' ' | '.' | ',' | ':' | ';' | '/' | 'I' | 'f' | 't' | 'r' | '(' | ')' | '[' | ']' | '!' | '-' => {
            0.42
        }
        'm' | 'M' | 'W' | 'w' | '%' | '@' => 0.99,
        '<' | '>' | '=' | '+' | '&' | '#' | '~' => 0.84,
        'A'..='Z' => 0.76,
        c if c.is_ascii() => 0.64,
        _ => 1.05,
    };
    text.chars().map(em).sum::<f64>() * FONT
}

/// The text, or as much of its beginning as `width` pixels hold, and an ellipsis.
pub fn fit(text: &str, width: f64) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text_width(&text) <= width {
        return text;
    }
    let room = width - text_width("…");
    let mut used = 0.0;
    let kept: String = text
        .chars()
        .take_while(|c| {
            used += text_width(c.encode_utf8(&mut [0; 4]));
            used <= room
        })
        .collect();
    kept.trim_end().to_owned() + "…"
}

/// Where a text is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Anchor {
    /// At its beginning.
    Start,
    /// In its middle.
    Middle,
    /// At its end.
    End,
}

/// What is drawn so far. Classes say how; see [`super::style`].
#[derive(Default)]
pub struct Svg {
    body: String,
}

impl Svg {
    /// The elements.
    pub fn body(&self) -> &str {
        &self.body
    }

    /// A text without width limits: fit it before.
    pub fn text(&mut self, class: &str, (x, y): (f64, f64), anchor: Anchor, text: &str) {
        let anchor = match anchor {
            Anchor::Start => "start",
            Anchor::Middle => "middle",
            Anchor::End => "end",
        };
        let text = escape(text);
        self.add(format_args!(r#"<text class="{class}" x="{}" y="{}" text-anchor="{anchor}">{text}</text>"#, px(x), px(y)));
    }

    /// A straight line.
    pub fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        self.add(format_args!(r#"<line class="{class}" x1="{}" y1="{}" x2="{}" y2="{}"/>"#, px(x1), px(y1), px(x2), px(y2)));
    }

    /// A box; one of no width is not drawn.
    pub fn rect(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64)) {
        if width > 0.0 && height > 0.0 {
            self.add(format_args!(r#"<rect class="{class}" x="{}" y="{}" width="{}" height="{}"/>"#, px(x), px(y), px(width), px(height)));
        }
    }

    /// A line through points.
    pub fn path(&mut self, class: &str, points: impl Iterator<Item = (f64, f64)>) {
        let mut d = String::new();
        for (x, y) in points {
            let _ = write!(d, "{}{} {}", if d.is_empty() { "M" } else { "L" }, px(x), px(y));
        }
        self.add(format_args!(r#"<path class="{class}" d="{d}"/>"#));
    }

    /// The mark of a kind of subject: each has another shape, so that nobody needs the colours. `size` is about half of its width.
    pub fn marker(&mut self, class: &str, shape: usize, (x, y): (f64, f64), size: f64) {
        let corner = |dx: f64, dy: f64| format!("{} {}", px(x + dx * size), px(y + dy * size));
        let polygon = |corners: &[(f64, f64)]| {
            let d: Vec<String> = corners.iter().map(|(dx, dy)| corner(*dx, *dy)).collect();
            format!("M{}Z", d.join("L"))
        };
        let d = match shape {
            1 => polygon(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
            2 => polygon(&[(0.0, -1.25), (1.25, 0.0), (0.0, 1.25), (-1.25, 0.0)]),
            3 => polygon(&[(0.0, -1.15), (1.15, 0.9), (-1.15, 0.9)]),
            4 => polygon(&[(0.0, 1.15), (1.15, -0.9), (-1.15, -0.9)]),
            5 => polygon(&[(-1.2, -0.4), (-0.4, -0.4), (-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4)]).replace(
                'Z',
                &format!(
                    "L{}L{}L{}L{}L{}L{}Z",
                    corner(1.2, 0.4),
                    corner(0.4, 0.4),
                    corner(0.4, 1.2),
                    corner(-0.4, 1.2),
                    corner(-0.4, 0.4),
                    corner(-1.2, 0.4)
                ),
            ),
            _ => {
                return self.add(format_args!(r#"<circle class="{class}" cx="{}" cy="{}" r="{}"/>"#, px(x), px(y), px(size)));
            }
        };
        self.add(format_args!(r#"<path class="{class}" d="{d}"/>"#));
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        let _ = writeln!(self.body, "{element}");
    }
}

/// A length with a tenth of a pixel.
fn px(value: f64) -> String {
    let text = format!("{value:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_escapes_from_a_text() {
        for (text, escaped) in [
            ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
            ("a & b", "a &amp; b"),
            ("\" onload='x'", "&quot; onload=&#39;x&#39;"),
            ("red\u{1b}[31m\0", "red\u{fffd}[31m\u{fffd}"),
            ("two\nlines", "two\nlines"),
            ("größer, 世界", "größer, 世界"),
        ] {
            assert_eq!(escape(text), escaped);
        }
        let mut svg = Svg::default();
        svg.text("t", (1.0, 2.25), Anchor::End, "</text><script>");
        assert_eq!(svg.body(), "<text class=\"t\" x=\"1\" y=\"2.2\" text-anchor=\"end\">&lt;/text&gt;&lt;script&gt;</text>\n");
    }

    #[test]
    fn a_text_that_is_too_long_is_cut() {
        assert_eq!(fit("nftables", 200.0), "nftables");
        let cut = fit("nftables with ten thousand Services", 80.0);
        assert!(cut.starts_with("nft") && cut.ends_with('…') && text_width(&cut) <= 80.0, "{cut}");
        assert_eq!(fit("two\nlines", 200.0), "two lines");
        assert_eq!(fit("anything", 0.0), "…");
    }
}
