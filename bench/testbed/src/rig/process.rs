//! A process inside a namespace, and its output.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::cleanup::{Guard, Undo, undo_later};
use super::netns::Netns;
use super::sys;

/// The most lines of output to keep.
const LINES_MAX: usize = 10_000;

/// A running process. Dropping it ends it.
#[derive(Debug)]
pub struct Process {
    title: String,
    child: Child,
    output: Arc<OutputLines>,
    guard: Option<Guard>,
}

#[derive(Debug, Default)]
struct OutputLines {
    lines: Mutex<VecDeque<String>>,
    grown: Condvar,
    open: AtomicU32,
}

impl OutputLines {
    fn lock(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: String) {
        let mut lines = self.lock();
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
        self.grown.notify_all();
    }
}

impl Netns {
    /// Starts a process inside, in the network namespace only, and collects both output streams.
    pub fn spawn(&self, program: &str, args: &[&str]) -> Result<Process> {
        let mut command = Command::new(program);
        sys::run_inside(command.args(args), self.open()?);
        self.start(command, format!("{program} {}", args.join(" ")))
    }

    /// Starts a prepared command.
    pub(super) fn start(&self, mut command: Command, title: String) -> Result<Process> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start `{title}` in {}", self.name()))?;
        let guard = undo_later(Undo::Process(child.id()));
        let output = Arc::new(OutputLines::default());
        collect(child.stdout.take(), &output)?;
        collect(child.stderr.take(), &output)?;
        Ok(Process { title, child, output, guard: Some(guard) })
    }
}

/// Reads a stream line by line on a thread that ends with the stream.
fn collect(stream: Option<impl Read + Send + 'static>, output: &Arc<OutputLines>) -> Result<()> {
    let Some(stream) = stream else { return Ok(()) };
    let output = output.clone();
    output.open.fetch_add(1, Ordering::Relaxed);
    let read = move || {
        for line in BufReader::new(stream).split(b'\n').map_while(|l| l.ok()) {
            output.push(String::from_utf8_lossy(&line).into_owned());
        }
        output.open.fetch_sub(1, Ordering::Release);
    };
    std::thread::Builder::new().name("rig-output".into()).spawn(read).context("cannot start an output thread")?;
    Ok(())
}

impl Process {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its output so far (the last 10,000 lines of both streams).
    pub fn output(&self) -> String {
        self.output.lock().iter().map(|l| format!("{l}\n")).collect()
    }

    /// Waits until it writes a line that contains `needle`.
    pub fn wait_for_line(&mut self, needle: &str, limit: Duration) -> Result<String> {
        let end = Instant::now() + limit;
        loop {
            // Ask before reading the lines: if both streams were closed by then, no line is missed.
            let closed = self.output.open.load(Ordering::Acquire) == 0;
            {
                let lines = self.output.lock();
                if let Some(line) = lines.iter().find(|l| l.contains(needle)) {
                    return Ok(line.clone());
                }
                // Wait briefly: the process may end without another line.
                drop(self.output.grown.wait_timeout(lines, Duration::from_millis(20)));
            }
            if closed && let Some(status) = self.child.try_wait().context("cannot wait for a child")? {
                bail!("`{}` ended ({status}) before it wrote `{needle}`:\n{}", self.title, self.output());
            }
            if Instant::now() > end {
                bail!("`{}` did not write `{needle}` within {limit:?}:\n{}", self.title, self.output());
            }
        }
    }

    pub fn running(&mut self) -> bool {
        self.wait(Duration::ZERO).is_err()
    }

    /// Sends a signal, for instance `libc::SIGHUP`.
    pub fn signal(&self, signal: i32) -> Result<()> {
        sys::signal(self.pid(), signal).with_context(|| format!("cannot signal `{}`", self.title))
    }

    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().context("cannot wait for a child")? {
                if let Some(guard) = self.guard.take() {
                    guard.forget();
                }
                return Ok(status);
            }
            if Instant::now() > end {
                bail!("`{}` did not end within {limit:?}:\n{}", self.title, self.output());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Asks it to end (SIGTERM) and waits.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(libc::SIGTERM)?;
        self.wait(limit)
    }

    /// Ends it at once (SIGKILL) and waits.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(libc::SIGKILL)?;
        self.wait(Duration::from_secs(5))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // Not left to the guard: the child must be waited for, or it becomes a zombie.
            let _ = self.terminate(Duration::from_secs(2)).or_else(|_| self.kill());
        }
        if let Some(guard) = self.guard.take() {
            guard.forget();
        }
    }
}
