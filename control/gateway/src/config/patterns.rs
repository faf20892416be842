//! Patterns of interface names.

use nomagic_xsk::InterfaceName;
use serde::Deserializer;

use super::values::{ListVisitor, TextVisitor};

/// An interface name pattern: `*` matches any text, `?` any character, everything else itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pattern(String);

impl Pattern {
    /// `None` if no interface name can match.
    pub fn parse(text: &str) -> Option<Pattern> {
        let clean = !text.is_empty() && text.len() <= 64 && InterfaceName::may_contain(text);
        clean.then(|| Pattern(text.to_owned()))
    }

    /// Whether the pattern matches the whole name.
    pub fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut p, mut n) = (0, 0);
        // The last star, and the position in the name at which to retry after a mismatch.
        let mut retry: Option<(usize, usize)> = None;
        while n < name.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    retry = Some((p, n));
                    p += 1;
                }
                Some(&c) if c == b'?' || c == name[n] => (p, n) = (p + 1, n + 1),
                _ => match retry {
                    Some((star, from)) => {
                        (p, n) = (star + 1, from + 1);
                        retry = Some((star, from + 1));
                    }
                    None => return false,
                },
            }
        }
        pattern[p..].iter().all(|&c| c == b'*')
    }
}

struct PatternElement(Pattern);

impl<'de> serde::Deserialize<'de> for PatternElement {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<PatternElement, D::Error> {
        let expected = "a pattern of interface names, such as `cali*`";
        d.deserialize_str(TextVisitor { expected, parse: Pattern::parse }).map(PatternElement)
    }
}

pub(super) fn patterns<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<Pattern>, D::Error> {
    let accept = |PatternElement(pattern): PatternElement, _: &[Pattern]| Ok(pattern);
    d.deserialize_any(ListVisitor { expected: "patterns of interface names", accept })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks() {
        let fits = |pattern: &str, name: &str| Pattern::parse(pattern).unwrap().matches(name);
        for (pattern, name) in [
            ("cali*", "cali123"),
            ("cali*", "cali"),
            ("*", "x"),
            ("veth?", "veth1"),
            ("a*b*c", "aXbYbZc"),
            ("*0", "gw00"),
            ("eth0", "eth0"),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("cali*", "xcali1"), ("veth?", "veth"), ("veth?", "veth12"), ("a*b", "abc"), ("eth0", "eth01"), ("*1", "eth0")]
        {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
        for bad in ["", "a/b", "a b", "a:b", &"x".repeat(65)] {
            assert_eq!(Pattern::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn hostile_patterns_terminate_quickly() {
        let pattern = Pattern::parse(&"*a".repeat(32)).unwrap();
        assert!(!pattern.matches(&"a".repeat(15)));
        assert!(Pattern::parse("***").unwrap().matches("anything"));
    }
}
