//! Runs a program with limits on its time and its output.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// How long a program may take.
const TIME_MAX: Duration = Duration::from_secs(10);
/// How much of an error message is read.
const ERROR_MAX: u64 = 1_024;

/// What a program has written.
pub struct Output {
    pub text: String,
    /// There was more.
    pub is_cut: bool,
}

/// Runs a program, and reads at most so many bytes of its output.
///
/// # Errors
/// Why there is no output.
pub fn output(program: &str, args: &[&str], max: usize) -> Result<Output, String> {
    let mut command = Command::new(program);
    command.args(args).env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => format!("{program} is not installed"),
        _ => format!("cannot run {program}: {e}"),
    })?;
    let (done, finished) = mpsc::channel();
    let read = |pipe: Option<Box<dyn Read + Send>>, max: u64, done: mpsc::Sender<(bool, Vec<u8>)>, is_error: bool| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.map(|pipe| pipe.take(max).read_to_end(&mut bytes));
            let _ = done.send((is_error, bytes));
        })
    };
    let stdout = child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>);
    let stderr = child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>);
    read(stdout, max as u64 + 1, done.clone(), false);
    read(stderr, ERROR_MAX, done, true);
    // The output is whole when its pipe is closed; a program that writes on finds it closed and ends.
    let (mut text, mut error, mut in_time) = (Vec::new(), Vec::new(), true);
    for _ in 0..2 {
        match finished.recv_timeout(TIME_MAX) {
            Ok((true, bytes)) => error = bytes,
            Ok((false, bytes)) => {
                text = bytes;
                // More is not wanted.
                if text.len() > max {
                    let _ = child.kill();
                }
            }
            Err(_) => {
                in_time = false;
                let _ = child.kill();
            }
        }
    }
    let status = child.wait().map_err(|e| format!("{program}: {e}"))?;
    let is_cut = text.len() > max;
    text.truncate(max);
    if !in_time {
        return Err(format!("{program} took longer than {} s", TIME_MAX.as_secs()));
    }
    if !status.success() && !is_cut {
        let error = String::from_utf8_lossy(&error);
        return Err(format!("{program}: {}", error.lines().next().unwrap_or("it failed without a message").trim()));
    }
    Ok(Output { text: String::from_utf8_lossy(&text).into_owned(), is_cut })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_limited_and_failures_are_named() {
        let out = output("printf", &["abc"], 3).unwrap();
        assert_eq!((out.text.as_str(), out.is_cut), ("abc", false));
        let out = output("yes", &[], 1_000).unwrap();
        assert!(out.is_cut && out.text.len() == 1_000);
        assert_eq!(output("no-such-program", &[], 1).err().unwrap(), "no-such-program is not installed");
        let failed = output("ls", &["/no/such/file"], 1).err().unwrap();
        assert!(failed.starts_with("ls: ") && failed.contains("No such file"), "{failed}");
    }
}
