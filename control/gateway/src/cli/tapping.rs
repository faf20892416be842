//! A tap of the running gateway, as its client reads it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Result, bail};
use nomagic_api::socket::{Request, Response};
use nomagic_api::taps::{TapPage, TapRequest, TappedPacket};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::run::socket;

/// Pause after a page without packets.
const PAUSE: Duration = Duration::from_millis(50);

/// An open tap. Dropping it closes it.
pub(super) struct Tapping {
    state_dir: PathBuf,
    id: u64,
}

impl Tapping {
    pub fn open(state_dir: &Path, request: TapRequest) -> Result<Tapping> {
        match socket::ask(state_dir, &Request::TapOpen(request))? {
            Response::TapOpen { id } => Ok(Tapping { state_dir: state_dir.to_owned(), id }),
            _ => bail!("unexpected response from the gateway: not a tap"),
        }
    }

    fn read(&self) -> Result<TapPage> {
        match socket::ask(&self.state_dir, &Request::TapRead { id: self.id })? {
            Response::TapRead(page) => Ok(page),
            _ => bail!("unexpected response from the gateway: not packets"),
        }
    }
}

impl Drop for Tapping {
    fn drop(&mut self) {
        // If it fails, the gateway closes the tap soon, because nobody reads it.
        let _ = socket::ask(&self.state_dir, &Request::TapClose { id: self.id });
    }
}

/// What a tap has seen in the end.
#[derive(Default)]
pub(super) struct Counts {
    pub taken: u64,
    pub matched: u64,
    pub limited: u64,
    pub missed: u64,
}

impl Counts {
    /// Writes them to standard error.
    pub fn tell(&self, taken: &str) {
        let Counts { taken: count, matched, limited, missed } = self;
        eprintln!(
            "{count} packets {taken} of {matched} that fit; {limited} were beyond the rate, {missed} were lost because this reader was too slow"
        );
    }
}

/// Reads a tap until it ends, a signal asks for the end, or `count` packets were taken.
pub(super) fn until_end(tapping: &Tapping, count: Option<u64>, mut take: impl FnMut(&[TappedPacket]) -> Result<()>) -> Result<Counts> {
    let mut counts = Counts::default();
    // Ctrl-C is the usual way to end: the tap is closed and the counts are told.
    let interrupted: Arc<AtomicBool> = Arc::default();
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, interrupted.clone())?;
    }
    loop {
        let page = tapping.read()?;
        let left = count.map_or(u64::MAX, |count| count - counts.taken);
        let packets = &page.packets[..page.packets.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
        take(packets)?;
        counts = Counts { taken: counts.taken + packets.len() as u64, matched: page.matched, limited: page.limited, missed: page.missed };
        if page.ended || count == Some(counts.taken) || interrupted.load(Relaxed) {
            return Ok(counts);
        }
        if page.packets.is_empty() {
            std::thread::sleep(PAUSE);
        }
    }
}
