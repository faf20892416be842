//! Output of commands. If its reader has closed its end, as `head` does, the command ends as it would otherwise.

use std::io::{self, Write};

/// Writes text and a newline to standard output.
///
/// # Errors
/// System errors, except that the reader is gone.
pub fn print(text: &str) -> io::Result<()> {
    ignore_closed(write(&mut io::stdout().lock(), text))
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
