//! Servers on a thread of their own in a namespace, until dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result};
use nomagic_testbed::rig::Netns;

/// How often the thread looks whether it should end.
const LOOK: Duration = Duration::from_millis(100);

pub struct ServerThread {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<Result<Result<()>>>>,
}

impl ServerThread {
    /// Runs what `begin` spawns. Returns when `begin` has returned: the servers listen then.
    pub fn start<F: Future<Output = Result<()>>>(netns: &Netns, begin: impl FnOnce() -> F + Send + 'static) -> Result<ServerThread> {
        let stop = Arc::new(AtomicBool::new(false));
        let own = stop.clone();
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = netns.thread(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a tokio runtime")?;
            runtime.block_on(async {
                begin().await?;
                let _ = ready.send(());
                while !own.load(Relaxed) {
                    tokio::time::sleep(LOOK).await;
                }
                Ok(())
            })
        })?;
        let mut servers = ServerThread { stop, thread: Some(thread) };
        if is_ready.recv().is_err() {
            servers.join().context("the servers did not start")?;
        }
        Ok(servers)
    }

    fn join(&mut self) -> Result<()> {
        self.stop.store(true, Relaxed);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        thread.join().map_err(|_| anyhow::anyhow!("the servers' thread panicked; its message is above"))??
    }
}

impl Drop for ServerThread {
    fn drop(&mut self) {
        let _ = self.join();
    }
}
