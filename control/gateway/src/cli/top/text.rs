//! Numbers and names as the screen shows them. All of it is printable ASCII: a byte is a column on every terminal.

/// Characters of a name that a terminal would obey, or that no one can tell apart, are written as `\u{...}`. Names come from tenants.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            ' ' | '\x21'..='\x7e' => out.push(c),
            _ => out.extend(c.escape_unicode()),
        }
    }
    out
}

/// A number in at most five characters: `0`, `0.4`, `9.9`, `1234`, `12.3k`, `123k`, `1.2M`.
pub fn short(number: f64) -> String {
    let number = number.max(0.0);
    match number {
        0.0 => "0".into(),
        n if n < 0.05 => "<0.1".into(),
        n if n < 9.95 => format!("{n:.1}"),
        n if n < 9_999.5 => format!("{n:.0}"),
        _ => scaled(number),
    }
}

fn scaled(mut number: f64) -> String {
    let mut units = ["k", "M", "G", "T", "P", "E"].into_iter();
    let mut unit = "";
    while number >= 999.5
        && let Some(larger) = units.next()
    {
        (number, unit) = (number / 1_000.0, larger);
    }
    if number < 99.95 { format!("{number:.1}{unit}") } else { format!("{number:.0}{unit}") }
}

/// A number that is counted: in full up to 99,999.
pub fn count(number: u64) -> String {
    if number < 100_000 { number.to_string() } else { short(number as f64) }
}

/// A share, from 0 to 1.
pub fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent > 0.0 && percent < 9.95 { format!("{percent:.1}%") } else { format!("{percent:.0}%") }
}

/// A number that may grow or shrink.
pub fn change(number: f64) -> String {
    match short(number.abs()).as_str() {
        "0" | "<0.1" => "0".into(),
        digits if number < 0.0 => format!("-{digits}"),
        digits => format!("+{digits}"),
    }
}

/// A time in its largest fitting unit.
pub fn duration(seconds: f64) -> String {
    match seconds.max(0.0) {
        s if s < 119.5 => format!("{s:.0} s"),
        s if s < 7_170.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3_600.0),
        s => format!("{:.0} d", s / 86_400.0),
    }
}

/// Cut in the middle to this width: both ends of a name tell it from others.
pub fn cut(text: &str, width: usize) -> String {
    let text = plain(text);
    if text.len() <= width {
        return text;
    }
    let Some(kept) = width.checked_sub(1) else { return String::new() };
    let tail = kept / 2;
    format!("{}~{}", &text[..kept - tail], &text[text.len() - tail..])
}

/// Cut at its end to this width: of a sentence, the beginning says what it is about.
pub fn cut_end(text: &str, width: usize) -> String {
    let text = plain(text);
    match width.checked_sub(1) {
        _ if text.len() <= width => text,
        Some(kept) => format!("{}~", &text[..kept]),
        None => String::new(),
    }
}

/// Lines of at most this width, broken at blanks; all but the first are indented.
pub fn wrap(line: &str, width: usize, indent: usize) -> Vec<String> {
    let (line, width) = (plain(line), width.max(1));
    let indent = indent.min(width / 2);
    let mut rest = line.as_str();
    let mut lines = Vec::new();
    loop {
        let margin = if lines.is_empty() { 0 } else { indent };
        let room = width - margin;
        if rest.len() <= room {
            lines.push(format!("{:margin$}{rest}", ""));
            return lines;
        }
        // A word that is longer than the line is cut.
        let leading = rest.len() - rest.trim_start().len();
        let end = rest[..=room].rfind(' ').filter(|end| *end > leading).unwrap_or(room);
        lines.push(format!("{:margin$}{}", "", rest[..end].trim_end()));
        rest = rest[end..].trim_start();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_never_negative() {
        let cases = [
            (-4.0, "0"),
            (0.0, "0"),
            (0.01, "<0.1"),
            (0.44, "0.4"),
            (9.96, "10"),
            (1_234.0, "1234"),
            (9_999.9, "10.0k"),
            (12_345.0, "12.3k"),
            (123_456.0, "123k"),
            (999_900.0, "1.0M"),
            (1.84e19, "18.4E"),
        ];
        for (number, text) in cases {
            assert_eq!(short(number), text);
        }
        assert_eq!([count(99_999), count(100_000)], ["99999", "100k"]);
        assert_eq!([percent(0.0), percent(0.0042), percent(1.0)], ["0%", "0.4%", "100%"]);
        assert_eq!([change(-3.0), change(0.01), change(12_345.0)], ["-3.0", "0", "+12.3k"]);
        assert_eq!([duration(59.7), duration(240.0), duration(7_200.0), duration(1e6)], ["60 s", "4 min", "2 h", "12 d"]);
    }

    #[test]
    fn nothing_that_a_terminal_obeys_is_left_in_a_name() {
        assert_eq!(plain("a\x1b[2J\u{202e}b\u{e9}\n"), "a\\u{1b}[2J\\u{202e}b\\u{e9}\\u{a}");
        assert_eq!(plain("default/nginx:80 'x' \\"), "default/nginx:80 'x' \\");
        assert_eq!(cut("\x1b]0;x\x07", 8), "\\u{1~{7}");
    }

    #[test]
    fn long_texts_are_cut_in_the_middle_or_wrapped() {
        assert_eq!([cut("abcdefghij", 10), cut("abcdefghij", 5), cut("abc", 1), cut("abc", 0)], ["abcdefghij", "ab~ij", "~", ""]);
        assert_eq!([cut_end("abcdef", 6), cut_end("abcdef", 4), cut_end("abc", 0)], ["abcdef", "abc~", ""]);
        assert_eq!(wrap("  1. one two three", 12, 5), ["  1. one two", "     three"]);
        assert_eq!(wrap("abcdefgh", 3, 2), ["abc", " de", " fg", " h"]);
        assert_eq!(wrap("", 10, 5), [""]);
        assert_eq!(wrap("a b", 0, 0), ["a", "b"]);
    }
}
