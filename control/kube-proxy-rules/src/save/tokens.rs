//! The words of a rule, with quotes as iptables-save writes them.

/// Maximum length of a rule, bytes.
const RULE_MAX: usize = 64 << 10;

/// Words one after the other.
pub(super) struct Tokens<'t> {
    text: &'t str,
    /// A word and the place where it ends.
    words: Vec<(String, usize)>,
    next: usize,
}

impl<'t> Tokens<'t> {
    pub(super) fn new(text: &'t str) -> Result<Tokens<'t>, String> {
        if text.len() > RULE_MAX {
            return Err(format!("a rule of {} bytes, {RULE_MAX} are allowed", text.len()));
        }
        let (mut words, mut word, mut open, mut quoted, mut escaped) = (Vec::new(), String::new(), false, false, false);
        for (place, letter) in text.char_indices() {
            match letter {
                _ if escaped => {
                    word.push(letter);
                    escaped = false;
                }
                '\\' if quoted => escaped = true,
                '"' => (open, quoted) = (true, !quoted),
                ' ' | '\t' if !quoted => {
                    if open {
                        words.push((std::mem::take(&mut word), place));
                    }
                    open = false;
                }
                _ => {
                    open = true;
                    word.push(letter);
                }
            }
        }
        if quoted {
            return Err("a quote is not closed".into());
        }
        if open {
            words.push((word, text.len()));
        }
        Ok(Tokens { text, words, next: 0 })
    }

    /// The next word, which stays.
    pub(super) fn peek(&self) -> Option<&str> {
        self.words.get(self.next).map(|(word, _)| word.as_str())
    }

    pub(super) fn next(&mut self) -> Option<String> {
        let word = self.words.get(self.next).map(|(word, _)| word.clone());
        self.next += usize::from(word.is_some());
        word
    }

    pub(super) fn take(&mut self, what: &str) -> Result<String, String> {
        self.next().ok_or_else(|| format!("{what} is missing at the end"))
    }

    /// The text after the words that were taken.
    pub(super) fn rest(&self) -> &'t str {
        let taken = self.next.checked_sub(1).and_then(|last| self.words.get(last)).map_or(0, |(_, end)| *end);
        self.text.get(taken..).unwrap_or_default().trim()
    }

    /// How many words were taken.
    pub(super) fn place(&self) -> usize {
        self.next
    }

    /// The words from a place up to the next one.
    pub(super) fn since(&self, place: usize) -> String {
        let words: Vec<&str> = self.words[place.min(self.next)..self.next].iter().map(|(word, _)| word.as_str()).collect();
        words.join(" ")
    }
}
