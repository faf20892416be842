//! Compiles tables: small changes at once, large ones on a thread of their own, so that the control loop answers meanwhile.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread;

use anyhow::{Result, anyhow};
use nomagic_table::changes::Changes;
use nomagic_table::compile::{Compiled, Compiler, Counted, CountedPort, PortKey};
use nomagic_table::index::{Index, Touched};
use nomagic_table::objects::NamespacedName;
use nomagic_table::settings::Settings;
use tokio::sync::oneshot;

use crate::observe::health::Moment;

/// Maximum number of Service ports that are compiled on the control thread: a few dozen milliseconds.
const AT_ONCE_MAX: usize = 1_000;

/// What a table is compiled from, besides the objects.
pub struct Order {
    pub settings: Settings,
    pub touched: Touched,
    /// When the first of the changes was noticed.
    pub noticed: Moment,
}

/// A new table, with what it was compiled from.
pub struct Outcome {
    pub compiled: Compiled,
    pub settings: Settings,
    pub changes: Changes,
    pub noticed: Moment,
    /// The Services that may have changed.
    pub concerned: BTreeSet<NamespacedName>,
    /// The objects, if they may have changed meanwhile.
    pub index: Option<Index>,
}

/// The compiler, or the thread that has it.
pub enum Compiling {
    Here(Box<Compiler>),
    Away(Away),
}

/// A table is compiled on another thread.
pub struct Away {
    outcome: oneshot::Receiver<(Box<Compiler>, Box<Outcome>)>,
    /// What is counted in the tables in force.
    counted: Counted,
}

impl Compiling {
    pub fn new(compiler: Compiler) -> Compiling {
        Compiling::Here(Box::new(compiler))
    }

    /// Whether another thread compiles.
    pub fn is_away(&self) -> bool {
        matches!(self, Compiling::Away(_))
    }

    /// Compiles on this thread, unless another one does. Returns the new table.
    pub fn here(&mut self, index: &Index, order: Order) -> Option<Outcome> {
        match self {
            Compiling::Here(compiler) => Some(compile(compiler, index, order)),
            Compiling::Away(_) => None,
        }
    }

    /// Compiles the changes, on another thread if they are large: then [`Compiling::outcome`] returns the table. Call it only if no thread
    /// compiles.
    pub fn start(&mut self, index: &Index, order: Order, unchanged_settings: bool) -> Option<Outcome> {
        if !is_large(index, &order, unchanged_settings) {
            return self.here(index, order);
        }
        let (give, job) = std::sync::mpsc::channel::<(Box<Compiler>, Index, Order)>();
        let (told, outcome) = oneshot::channel();
        let work = move || {
            let Ok((mut compiler, index, order)) = job.recv() else { return };
            let outcome = compile(&mut compiler, &index, order);
            // The gateway may have stopped.
            drop(told.send((compiler, Box::new(Outcome { index: Some(index), ..outcome }))));
        };
        if let Err(e) = thread::Builder::new().name("nm-compile".into()).spawn(work) {
            tracing::warn!("cannot start the thread nm-compile, so the control loop waits for the new table: {e}");
            return self.here(index, order);
        }
        let Compiling::Here(compiler) = self else { return None };
        let counted = compiler.counted();
        let away = Compiling::Away(Away { outcome, counted });
        let Compiling::Here(compiler) = std::mem::replace(self, away) else { return None };
        // The thread waits for it.
        drop(give.send((compiler, index.clone(), order)));
        None
    }

    /// Waits for the other thread's table; never returns if there is none. Cancel-safe.
    ///
    /// # Errors
    /// If the thread has panicked.
    pub async fn outcome(&mut self) -> Result<Outcome> {
        let Compiling::Away(away) = self else { std::future::pending().await };
        let ended = || anyhow!("the thread nm-compile has panicked: see its message above");
        let (compiler, outcome) = (&mut away.outcome).await.map_err(|_| ended())?;
        *self = Compiling::Here(compiler);
        Ok(*outcome)
    }

    /// The pairs of a Service port and a backend that have counters: `(index, Service port, address, port)`.
    pub fn targets(&self) -> Box<dyn Iterator<Item = (u32, &PortKey, IpAddr, u16)> + '_> {
        match self {
            Compiling::Here(compiler) => Box::new(compiler.targets()),
            Compiling::Away(away) => Box::new(away.counted.targets()),
        }
    }

    /// The Service ports, with their numbers of backends and of refused packets.
    pub fn ports(&self) -> Box<dyn Iterator<Item = CountedPort<'_>> + '_> {
        match self {
            Compiling::Here(compiler) => Box::new(compiler.ports()),
            Compiling::Away(away) => Box::new(away.counted.ports()),
        }
    }
}

fn compile(compiler: &mut Compiler, index: &Index, order: Order) -> Outcome {
    let Order { settings, touched, noticed } = order;
    let compiled = compiler.recompile(index, &settings, &touched);
    let (changes, concerned) = (Changes::of(&touched, index), touched.services_concerned(index));
    Outcome { compiled, settings, changes, noticed, concerned, index: None }
}

/// Whether more than [`AT_ONCE_MAX`] ports are to be compiled. After a change of the settings it may be all of them.
fn is_large(index: &Index, order: &Order, unchanged_settings: bool) -> bool {
    let mut ports = 0;
    let mut exceeds = |of_service: usize| {
        ports += of_service;
        ports > AT_ONCE_MAX
    };
    match unchanged_settings {
        true => {
            let concerned = order.touched.services_concerned(index);
            concerned.iter().filter_map(|key| index.service(key)).any(|service| exceeds(service.ports.len().max(1)))
        }
        false => index.services().any(|service| exceeds(service.ports.len().max(1))),
    }
}
