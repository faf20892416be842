//! Output of commands. If its reader has closed its end, as `head` does, the command ends as it would otherwise.

use std::io::{self, Write};

use nomagic_sys::shortage::remedy;
use nomagic_xsk::{EdgeError, permit_hint};

/// Writes text and a newline to standard output.
///
/// # Errors
/// System errors, except that the reader is gone.
pub fn print(text: &str) -> io::Result<()> {
    ignore_closed(write(&mut io::stdout().lock(), text))
}

/// An error in one line: its causes, without those that the line has already, and what to do about a shortage or a missing permission.
pub fn sentence(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    // The edge's errors have their remedy.
    if error.chain().any(|cause| cause.is::<EdgeError>()) {
        return text;
    }
    match error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()) {
        Some(e) if e.raw_os_error().is_some() && e.kind() == io::ErrorKind::PermissionDenied => format!("{text}; {}", permit_hint()),
        Some(e) => match remedy(e).filter(|remedy| !text.contains(remedy)) {
            Some(remedy) => format!("{text}; {remedy}"),
            None => text,
        },
        None => text,
    }
}

/// Text whose control characters, which a terminal would obey, are written as `\\u{...}`: names come from tenants.
pub fn printable(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        if c.is_control() {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
        out
    })
}

/// Writes `error: `, text and a newline to standard error. Nobody can be told if that fails.
pub fn print_error(text: &str) {
    let _ = write(&mut io::stderr().lock(), &format!("error: {text}"));
}

fn write(out: &mut impl Write, text: &str) -> io::Result<()> {
    writeln!(out, "{text}")?;
    out.flush()
}

fn ignore_closed(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_terminal_obeys_no_name() {
        assert_eq!(printable("a\u{1b}[2Jé\n"), "a\\u{1b}[2Jé\\u{a}");
    }

    #[test]
    fn an_error_names_each_cause_once_and_what_to_do() {
        let of = |code| -> anyhow::Error { io::Error::from_raw_os_error(code).into() };
        let named = Err::<(), _>(of(libc::EMFILE)).context("cannot listen on /run/x").unwrap_err();
        let text = sentence(&named);
        assert!(
            text.starts_with("cannot listen on /run/x: Too many open files (os error 24); raise") && text.contains("ulimit -n"),
            "{text}"
        );
        let whole = crate::net::NetError::Socket { what: "open", source: io::Error::from_raw_os_error(libc::ENOMEM) };
        let text = sentence(&whole.into());
        assert_eq!(text.matches("Cannot allocate memory").count(), 1, "{text}");
        assert!(text.contains("free memory"), "{text}");
        assert!(sentence(&of(libc::EPERM)).contains("run as root") || sentence(&of(libc::EPERM)).contains("security module"));
        let edge = EdgeError::Umem { bytes: 1, source: io::Error::from_raw_os_error(libc::ENOMEM) };
        assert_eq!(sentence(&edge.into()).matches("free memory").count(), 1);
        assert_eq!(sentence(&anyhow::anyhow!("a").context("b")), "b: a");
    }
}
