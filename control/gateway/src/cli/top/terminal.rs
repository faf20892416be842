//! The terminal: whether it can show a screen, and that it is given back as it was, whatever happens.

use std::io::{self, IsTerminal, Stdout};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::{cursor, execute, terminal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Whether the terminal shows our screen.
static IS_OPEN: AtomicBool = AtomicBool::new(false);

/// The screen. Dropping it gives the terminal back.
pub struct Screen {
    pub terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    /// Takes the terminal.
    ///
    /// # Errors
    /// If there is none, or it cannot show a screen.
    pub fn open() -> Result<Screen> {
        check()?;
        restore_on_panic();
        // From here on a failure gives back what was taken.
        IS_OPEN.store(true, Ordering::SeqCst);
        Screen::take().inspect_err(|_| restore())
    }

    fn take() -> Result<Screen> {
        terminal::enable_raw_mode().context("cannot switch the terminal to raw mode")?;
        execute!(io::stdout(), terminal::EnterAlternateScreen, cursor::Hide).context("cannot write to the terminal")?;
        let terminal = Terminal::new(CrosstermBackend::new(io::stdout())).context("cannot ask for the terminal's size")?;
        Ok(Screen { terminal })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back, once. Nobody can be told if that fails: it is gone.
fn restore() {
    if IS_OPEN.swap(false, Ordering::SeqCst) {
        let _ = execute!(io::stdout(), terminal::LeaveAlternateScreen, cursor::Show);
        let _ = terminal::disable_raw_mode();
    }
}

/// A panic's message is printed after the screen is gone, also if another thread panics.
fn restore_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        print(panic);
    }));
}

/// Whether there is a terminal that can show a screen.
fn check() -> Result<()> {
    const OTHERS: &str = "`nomagic status` prints the state once, `nomagic top --once` one screen";
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        bail!("`nomagic top` needs a terminal, and standard input or output is none; {OTHERS}");
    }
    match std::env::var("TERM").unwrap_or_default().as_str() {
        "" => bail!("`nomagic top` needs a terminal that can move its cursor, and TERM is not set (TERM=xterm fits most); {OTHERS}"),
        "dumb" => bail!("`nomagic top` needs a terminal that can move its cursor, and TERM is `dumb`; {OTHERS}"),
        _ => Ok(()),
    }
}

/// Whether colours are wanted (<https://no-color.org>).
pub fn has_colour() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Is set when a signal asks the process to end.
pub fn ending() -> io::Result<Arc<AtomicBool>> {
    let is_asked = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, is_asked.clone())?;
    }
    Ok(is_asked)
}
