//! Tells a service manager (systemd with `Type=notify`) whether the gateway is ready, and that its control loop runs. Without
//! `NOTIFY_SOCKET` nobody is told.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The service manager's socket.
pub(super) struct Supervisor {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// It wants to hear from the control loop regularly.
    watchdog: bool,
    ready: bool,
    status: String,
}

impl Supervisor {
    /// The one that the environment names.
    pub fn from_environment() -> Supervisor {
        let address = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty());
        let socket = address.and_then(|name| match open(name.as_bytes()) {
            Ok(socket) => Some(socket),
            Err(e) => {
                tracing::warn!("NOTIFY_SOCKET={}: {e}; the service manager is not told that nomagic is ready", name.display());
                None
            }
        });
        // WATCHDOG_PID: the variable may be meant for another process.
        let own = std::env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let watchdog = own && std::env::var_os("WATCHDOG_USEC").is_some();
        Supervisor { socket, watchdog, ready: false, status: String::new() }
    }

    /// Says what the gateway waits for.
    pub fn waiting(&mut self, what: &str) {
        self.say(None, &format!("waiting for objects: {what}"));
    }

    /// Says that the gateway runs, and why it cannot carry; nothing if it can. Call it a few times a second.
    pub fn running(&mut self, reasons: &[String]) {
        let status = if reasons.is_empty() { "ready".to_owned() } else { format!("NOT READY: {}", reasons.join("; ")) };
        let first = !std::mem::replace(&mut self.ready, true);
        self.say(first.then_some("READY=1"), &status);
        if self.watchdog {
            self.send("WATCHDOG=1");
        }
    }

    /// Says that the process ends.
    pub fn stopping(&mut self, status: &str) {
        self.say(Some("STOPPING=1"), status);
    }

    /// Sends a state and, if it has changed, the status in words.
    fn say(&mut self, state: Option<&str>, status: &str) {
        if state.is_none() && status == self.status {
            return;
        }
        self.status = status.to_owned();
        let line = status.replace('\n', " ");
        self.send(&state.map_or_else(|| format!("STATUS={line}"), |state| format!("{state}\nSTATUS={line}")));
    }

    fn send(&self, message: &str) {
        let Some((socket, to)) = &self.socket else { return };
        if let Err(e) = socket.send_to_addr(message.as_bytes(), to) {
            tracing::debug!("the service manager cannot be told: {e}");
        }
    }
}

/// A socket for a path, or for an abstract name that begins with `@`.
fn open(name: &[u8]) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name))?,
    };
    let socket = UnixDatagram::unbound()?;
    // A manager that does not read must not stop the control loop.
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn supervisor(name: &[u8], watchdog: bool) -> Supervisor {
        Supervisor { socket: Some(open(name).unwrap()), watchdog, ready: false, status: String::new() }
    }

    fn heard(socket: &UnixDatagram) -> String {
        let mut text = [0; 512];
        let n = socket.recv(&mut text).unwrap_or(0);
        String::from_utf8_lossy(&text[..n]).into_owned()
    }

    #[test]
    fn a_service_manager_hears_of_each_change_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut supervisor = supervisor(path.as_os_str().as_bytes(), true);
        supervisor.waiting("Services");
        supervisor.waiting("Services");
        assert_eq!(heard(&socket), "STATUS=waiting for objects: Services");
        supervisor.running(&["port eth0 is missing".into()]);
        assert_eq!(heard(&socket), "READY=1\nSTATUS=NOT READY: port eth0 is missing");
        assert_eq!(heard(&socket), "WATCHDOG=1");
        supervisor.running(&["port eth0 is missing".into()]);
        assert_eq!(heard(&socket), "WATCHDOG=1");
        supervisor.running(&[]);
        assert_eq!((heard(&socket), heard(&socket)), ("STATUS=ready".into(), "WATCHDOG=1".into()));
        supervisor.stopping("ending");
        assert_eq!((heard(&socket), heard(&socket)), ("STOPPING=1\nSTATUS=ending".into(), String::new()));
        drop(socket);
        supervisor.running(&[]);
    }

    #[test]
    fn an_abstract_name_begins_with_an_at_sign() {
        let name = format!("nomagic-test-{}", std::process::id());
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        supervisor(format!("@{name}").as_bytes(), false).running(&[]);
        assert_eq!((heard(&socket), heard(&socket)), ("READY=1\nSTATUS=ready".into(), String::new()));
    }
}
