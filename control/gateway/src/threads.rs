//! Threads with a runtime of their own.

use std::io;
use std::thread;

use tokio::runtime::{Builder, Handle, Runtime};

/// Starts a thread that works with a runtime of its own. Returns the runtime's handle, too.
///
/// # Errors
/// System errors: no descriptor, no memory, no thread.
pub fn start(name: &str, work: impl FnOnce(&Runtime) + Send + 'static) -> io::Result<(Handle, thread::JoinHandle<()>)> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let mut owned = InBackground(Some(runtime));
    let run = move || {
        if let Some(runtime) = owned.0.take() {
            work(&runtime);
            runtime.shutdown_background();
        }
    };
    Ok((handle, thread::Builder::new().name(name.into()).spawn(run)?))
}

/// If the thread cannot be started, the runtime is dropped where it was made, among the control loop's tasks. There tokio's own drop panics,
/// because it waits.
struct InBackground(Option<Runtime>);

impl Drop for InBackground {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_has_its_runtime() {
        let (told, hears) = std::sync::mpsc::channel();
        let (_, thread) = start("own-runtime", move |runtime| told.send(runtime.block_on(async { 7 })).unwrap()).unwrap();
        assert_eq!(hears.recv(), Ok(7));
        thread.join().unwrap();
    }

    #[test]
    fn a_runtime_without_a_thread_may_be_dropped_among_tasks() {
        let build = || Builder::new_current_thread().enable_all().build().unwrap();
        build().block_on(async { drop(InBackground(Some(build()))) });
    }
}
