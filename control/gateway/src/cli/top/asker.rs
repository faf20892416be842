//! The thread that asks the gateway, so that keys are obeyed while an answer is awaited.
//!
//! Every interval it asks for the status, and for what the view is about. In an interval it looks at no more slots than the connection table
//! has, and at a limited number: a walk over a large table goes on in the next interval.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nomagic_api::Status;
use nomagic_api::flows::SLOTS_MAX;
use nomagic_api::socket::{Request, Response};

use super::super::{explain, output};
use super::walk::{Question, Walk};
use crate::run::socket;

/// Maximum number of pages of the connection table that are asked for in an interval: two million slots.
const PAGES_MAX: u32 = 8;

/// What the screen wants.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Order {
    pub question: Option<Question>,
    /// Nothing is asked again; a new question is answered once.
    pub is_paused: bool,
}

/// What the gateway said, or that it does not.
#[derive(Debug)]
pub enum Heard {
    Status(Box<Status>),
    /// A walk, as far as it has come.
    Walk(Box<Walk>),
    /// A flow, and what happens to it.
    Explained(String, Vec<String>),
    /// The question was refused.
    Refused(String),
    /// There is no answer.
    Silence(String),
}

/// Asks the gateway with this state directory.
pub struct Asker {
    state_dir: PathBuf,
    order: Order,
    walk: Option<Walk>,
    /// Pages left in this interval.
    pages_left: u32,
    /// Pages of the whole table.
    table_pages: u32,
}

impl Asker {
    pub fn new(state_dir: PathBuf) -> Asker {
        Asker { state_dir, order: Order::default(), walk: None, pages_left: 0, table_pages: 1 }
    }

    /// Asks every interval, and when an order comes, until nobody listens any more.
    pub fn run(mut self, every: Duration, orders: &Receiver<Order>, heard: &SyncSender<Heard>) {
        let mut due = Instant::now();
        loop {
            let answers = match orders.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(order) => {
                    // Only the newest counts.
                    self.take_order(orders.try_iter().last().unwrap_or(order));
                    self.ask_question()
                }
                Err(RecvTimeoutError::Timeout) => {
                    due = Instant::now() + every;
                    self.ask_again()
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if answers.into_iter().any(|answer| heard.send(answer).is_err()) {
                return;
            }
        }
    }

    pub fn take_order(&mut self, order: Order) {
        if order.question != self.order.question {
            self.walk = None;
        }
        self.order = order;
    }

    /// A new interval begins.
    pub fn ask_again(&mut self) -> Vec<Heard> {
        self.pages_left = self.table_pages.clamp(1, PAGES_MAX);
        if self.order.is_paused {
            // A walk that has begun comes to its end.
            let goes_on = self.walk.as_ref().is_some_and(|walk| walk.request().is_some());
            return if goes_on { self.ask_question() } else { Vec::new() };
        }
        match self.ask(&Request::Status {}) {
            Ok(Response::Status(status)) => {
                self.table_pages = status.conntrack.capacity.div_ceil(SLOTS_MAX);
                self.pages_left = self.table_pages.clamp(1, PAGES_MAX);
                let mut answers = vec![Heard::Status(status)];
                // One that is complete begins anew.
                self.walk = self.walk.take().filter(|walk| walk.request().is_some());
                answers.extend(self.ask_question());
                answers
            }
            Ok(_) => vec![Heard::Silence("its answer is not a status".into())],
            Err(e) => vec![Heard::Silence(output::sentence(&e))],
        }
    }

    /// Asks what the view is about, as far as this interval allows.
    pub fn ask_question(&mut self) -> Vec<Heard> {
        let answer = match self.order.question.clone() {
            None => return Vec::new(),
            Some(Question::Walk(query)) => {
                let walk = self.walk.take().unwrap_or_else(|| Walk::new(query));
                self.go_on(walk)
            }
            Some(Question::Explain(flow)) => self.explain(flow).map(Some),
        };
        match answer {
            Ok(heard) => heard.into_iter().collect(),
            Err(e) if e.is::<socket::NoAnswer>() => vec![Heard::Silence(output::sentence(&e))],
            Err(e) => vec![Heard::Refused(output::sentence(&e))],
        }
    }

    /// Walks on. `None`: not in this interval.
    fn go_on(&mut self, mut walk: Walk) -> Result<Option<Heard>> {
        let mut has_moved = false;
        while self.pages_left > 0
            && let Some(request) = walk.request()
        {
            self.pages_left -= 1;
            let Response::Flows(page) = self.ask(&request)? else { bail!("unexpected response from the gateway: not flows") };
            walk.take(page);
            has_moved = true;
        }
        self.walk = Some(walk.clone());
        Ok(has_moved.then(|| Heard::Walk(Box::new(walk))))
    }

    fn explain(&self, flow: String) -> Result<Heard> {
        match self.ask(&Request::Explain { flow: flow.clone(), as_new: false })? {
            Response::Explain(answer) => Ok(Heard::Explained(flow, explain::text(&answer).lines().map(str::to_owned).collect())),
            _ => bail!("unexpected response from the gateway: not an explanation"),
        }
    }

    fn ask(&self, request: &Request) -> Result<Response> {
        socket::ask(&self.state_dir, request)
    }
}
