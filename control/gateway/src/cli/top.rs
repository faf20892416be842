//! `nomagic top`: a screen on the running gateway.
//!
//! [`asker`] asks the gateway, [`model`] keeps the answers and makes rows of them, [`keys`] changes what is looked at, [`screen`] draws it.
//! Only this file and [`terminal`] touch the terminal. A new view is a [`keys::View`], the question that it asks in [`walk::Question`], and
//! its rows or lines in the model.

mod asker;
mod keys;
mod model;
mod screen;
mod terminal;
mod text;
mod walk;

use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use ratatui::layout::{Position, Rect};

use super::{StateArgs, StatusFormat, output, state_paths, status};
use asker::{Asker, Heard, Order};
use keys::{State, View};
use model::{Body, Model};
use screen::{Look, Picture};
use terminal::Screen;
use walk::Question;

/// How long keys may wait for an answer of the gateway to be shown, and the other way round.
const TICK: Duration = Duration::from_millis(50);
/// The screen is drawn again after this time at the latest: it says how long ago things were.
const REDRAW: Duration = Duration::from_secs(1);
/// Answers that wait to be shown.
const HEARD_MAX: usize = 16;

/// `nomagic top`
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  The busiest Services; Enter shows a Service's backends, their flows, and what happens to a flow:
    nomagic top
  One Service:
    nomagic top --service default/nginx
  One screen as text, with rates over five seconds:
    nomagic top --once --every 5 --view reasons
  The rates of all Services for a script, one JSON object a line:
    nomagic top --once --format json

Keys: Enter opens the selected row, Esc goes back, 1 to 6 change the view, / filters, s sorts, r reverses, p pauses, ? helps, q quits.
NO_COLOR is respected. Exit codes: 0 ended by the user or a signal, 1 failure (with --once also: no gateway answers), 2 invalid arguments.")]
pub(super) struct TopArgs {
    /// Ask the gateway this often.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    every: f64,
    /// Begin with the backends of this Service; with `--view clients`, with its clients.
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = status::service)]
    service: Option<(String, String)>,
    /// Begin with this view [default: services].
    #[arg(long, value_enum)]
    view: Option<StartView>,
    /// Print one screen as text, after two answers, and end.
    #[arg(long)]
    once: bool,
    /// Columns of that screen.
    #[arg(long, requires = "once", default_value_t = screen::DEFAULT_SIZE.0, value_parser = clap::value_parser!(u16).range(20..=1_000))]
    width: u16,
    /// Lines of that screen.
    #[arg(long, requires = "once", default_value_t = screen::DEFAULT_SIZE.1, value_parser = clap::value_parser!(u16).range(8..=1_000))]
    height: u16,
    /// Output format of --once; json: all rows of the view, one object a line.
    #[arg(long, value_enum, default_value = "text", requires = "once")]
    format: StatusFormat,
    #[command(flatten)]
    state_dir: StateArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum StartView {
    Services,
    Backends,
    Clients,
    Reasons,
    Workers,
    Tables,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3_600.0).contains(&seconds) => Ok(seconds),
        _ => Err("not a number of seconds from 0.1 to 3600".into()),
    }
}

impl TopArgs {
    fn view(&self) -> Result<View, &'static str> {
        let service = self.service.as_ref().map(|(namespace, name)| format!("{namespace}/{name}"));
        match (self.view, service) {
            (None | Some(StartView::Backends), Some(service)) => Ok(View::Backends(Some(service))),
            (Some(StartView::Clients), service) => Ok(View::Clients(service)),
            (Some(_), Some(_)) => Err("--service goes with the views `backends` and `clients` only"),
            (None | Some(StartView::Services), None) => Ok(View::Services),
            (Some(StartView::Backends), None) => Ok(View::Backends(None)),
            (Some(StartView::Reasons), None) => Ok(View::Reasons),
            (Some(StartView::Workers), None) => Ok(View::Workers),
            (Some(StartView::Tables), None) => Ok(View::Tables),
        }
    }
}

/// Runs the command. Returns the exit code.
pub(super) fn run(args: &TopArgs) -> Result<u8> {
    let view = match args.view() {
        Ok(view) => view,
        Err(e) => {
            output::print_error(e);
            return Ok(2);
        }
    };
    let state_dir = state_paths::state_dir(args.state_dir.state_dir.clone(), args.state_dir.config.as_deref())?;
    let asker = Asker::new(state_dir);
    if args.once { once(args, view, asker) } else { live(args, view, asker) }?;
    Ok(0)
}

/// What is known, what is looked at, and since when.
struct Top {
    model: Model,
    state: State,
    start: Instant,
    every_s: f64,
    look: Look,
}

impl Top {
    fn new(view: View, every_s: f64, has_colour: bool) -> Top {
        Top { model: Model::default(), state: State::new(view), start: Instant::now(), every_s, look: Look { has_colour } }
    }

    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn hear(&mut self, heard: Heard) {
        let now_ns = self.now_ns();
        match heard {
            Heard::Status(status) => self.model.take_status(*status, now_ns),
            Heard::Walk(walk) => self.model.take_walk(*walk, now_ns),
            Heard::Explained(flow, lines) => self.model.take_explanation(flow, lines),
            Heard::Refused(why) => self.model.take_refusal(why),
            Heard::Silence(why) => self.model.take_silence(why, now_ns),
        }
    }

    fn order(&self) -> Order {
        Order { question: Question::of(&self.state.top.view), is_paused: self.state.is_paused }
    }

    fn body(&self, area: Rect) -> Body {
        self.model.body(&self.state.top, area.width.into())
    }

    fn draw(&self, body: &Body, area: Rect, buffer: &mut Buffer) {
        let Top { model, state, every_s, look, .. } = self;
        Picture { model, state, body, look: *look, every_s: *every_s, now_ns: self.now_ns() }.draw(area, buffer);
    }
}

/// Prints one screen.
fn once(args: &TopArgs, view: View, mut asker: Asker) -> Result<()> {
    let mut top = Top::new(view, args.every, false);
    asker.take_order(top.order());
    for round in 0..2 {
        if round > 0 {
            std::thread::sleep(Duration::from_secs_f64(args.every));
        }
        for heard in asker.ask_again() {
            match heard {
                Heard::Silence(why) | Heard::Refused(why) => bail!(why),
                heard => top.hear(heard),
            }
        }
    }
    if !top.model.has_rates() {
        bail!("the gateway has started again meanwhile: try again");
    }
    let area = Rect::new(0, 0, args.width, args.height);
    let body = top.body(area);
    let lines = match (&body, args.format) {
        (Body::Table(table), StatusFormat::Json) => table.json_lines(top.state.top.view.word()),
        _ => {
            let mut buffer = Buffer::empty(area);
            top.draw(&body, area, &mut buffer);
            screen::lines(&buffer)
        }
    };
    if !lines.is_empty() {
        output::print(&lines.join("\n"))?;
    }
    Ok(())
}

/// Shows the screen until the user ends it.
fn live(args: &TopArgs, view: View, asker: Asker) -> Result<()> {
    let is_ending = terminal::ending().context("cannot wait for signals")?;
    let mut screen = Screen::open()?;
    let mut top = Top::new(view, args.every, terminal::has_colour());
    let (orders, heard) = start(asker, Duration::from_secs_f64(args.every))?;
    let mut ordered = Order::default();
    let mut drawn: Option<Instant> = None;
    while !top.state.is_over && !is_ending.load(Ordering::Relaxed) {
        let order = top.order();
        if order != ordered {
            if order.question != ordered.question {
                top.model.forget_refusal();
            }
            orders.send(order.clone()).context("the thread that asks the gateway has ended")?;
            ordered = order;
            drawn = None;
        }
        if drawn.is_none_or(|at| at.elapsed() >= REDRAW) {
            screen.terminal.draw(|frame| {
                let area = frame.area();
                top.draw(&top.body(area), area, frame.buffer_mut());
            })?;
            drawn = Some(Instant::now());
        }
        if take_keys(&mut top, &screen)? | take_answers(&mut top, &heard)? {
            drawn = None;
        }
    }
    Ok(())
}

/// Starts the thread that asks.
fn start(asker: Asker, every: Duration) -> Result<(Sender<Order>, Receiver<Heard>)> {
    let (orders, taken) = mpsc::channel();
    let (say, heard) = mpsc::sync_channel(HEARD_MAX);
    let thread = std::thread::Builder::new().name("nm-ask".into());
    thread.spawn(move || asker.run(every, &taken, &say)).context("cannot start a thread")?;
    Ok((orders, heard))
}

/// Waits a moment for keys and obeys them. Returns whether there were any.
fn take_keys(top: &mut Top, screen: &Screen) -> Result<bool> {
    let mut any = false;
    while event::poll(if any { Duration::ZERO } else { TICK }).context("the terminal is gone")? {
        any = true;
        // Its new size is asked for when it is drawn.
        if let Event::Key(key) = event::read().context("the terminal is gone")?
            && key.kind != KeyEventKind::Release
        {
            let area = Rect::from((Position::ORIGIN, screen.terminal.size()?));
            let body = top.body(area);
            top.state.press(key, &body, screen::page(&body, area));
            if top.state.is_over {
                break;
            }
        }
    }
    Ok(any)
}

/// Takes what the gateway has answered. Returns whether that was anything.
fn take_answers(top: &mut Top, heard: &Receiver<Heard>) -> Result<bool> {
    let mut any = false;
    loop {
        match heard.try_recv() {
            Ok(answer) => top.hear(answer),
            Err(TryRecvError::Empty) => return Ok(any),
            Err(TryRecvError::Disconnected) => bail!("the thread that asks the gateway has ended"),
        }
        any = true;
    }
}

#[cfg(test)]
mod tests;
