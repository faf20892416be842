//! The log on standard error: its level, which can be changed while the process runs, and its format.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::Result;
use serde::{Deserialize, Deserializer, de};
use tracing_subscriber::EnvFilter;

/// The environment variable that overrides `log.level`.
const VARIABLE: &str = "NOMAGIC_LOG";

/// What is logged, from this level on.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    const ALL: [LogLevel; 5] = [LogLevel::Error, LogLevel::Warn, LogLevel::Info, LogLevel::Debug, LogLevel::Trace];

    /// Reads a level's name.
    ///
    /// # Errors
    /// The levels that there are.
    pub fn parse(text: &str) -> Result<LogLevel, String> {
        let found = LogLevel::ALL.into_iter().find(|level| level.name().eq_ignore_ascii_case(text.trim()));
        found.ok_or_else(|| format!("`{text}` is no log level; the levels are {}", LogLevel::ALL.map(LogLevel::name).join(", ")))
    }

    pub fn name(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
            LogLevel::Trace => "trace",
        }
    }

    /// kube logs every failed attempt; the watch reports each failure once.
    fn filter(self) -> EnvFilter {
        EnvFilter::new(format!("{},kube_client=off", self.name()))
    }
}

impl<'de> Deserialize<'de> for LogLevel {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<LogLevel, D::Error> {
        LogLevel::parse(&String::deserialize(d)?).map_err(de::Error::custom)
    }
}

/// The environment variable names no level.
#[derive(Debug, thiserror::Error)]
#[error("{VARIABLE}: {0}")]
pub struct BadLevel(String);

/// The form of a line of the log.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    /// One JSON object a line: `timestamp`, `level`, `target`, `fields` with `message`.
    Json,
}

/// Changes the filter of the subscriber.
type SetFilter = Box<dyn Fn(EnvFilter) -> Result<(), tracing_subscriber::reload::Error> + Send + Sync>;

static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();
static LEVEL: AtomicU8 = AtomicU8::new(LogLevel::Info as u8);

/// Starts the log. The environment variable `NOMAGIC_LOG` overrides the level.
///
/// # Errors
/// If the variable names no level.
pub fn start(level: LogLevel, format: LogFormat) -> Result<()> {
    let level = match std::env::var(VARIABLE) {
        Ok(text) if !text.is_empty() => LogLevel::parse(&text).map_err(BadLevel)?,
        _ => level,
    };
    // With internal errors, a closed standard error would end the process.
    let subscriber = tracing_subscriber::fmt().with_env_filter(level.filter()).with_writer(std::io::stderr).log_internal_errors(false);
    let set: SetFilter = match format {
        LogFormat::Text => {
            let subscriber = subscriber.with_filter_reloading();
            let handle = subscriber.reload_handle();
            subscriber.init();
            Box::new(move |filter| handle.reload(filter))
        }
        LogFormat::Json => {
            let subscriber = subscriber.json().with_filter_reloading();
            let handle = subscriber.reload_handle();
            subscriber.init();
            Box::new(move |filter| handle.reload(filter))
        }
    };
    LEVEL.store(level as u8, Ordering::Relaxed);
    // The log is started once.
    let _ = SET_FILTER.set(set);
    Ok(())
}

/// The level now.
pub fn level() -> LogLevel {
    let number = LEVEL.load(Ordering::Relaxed);
    LogLevel::ALL.into_iter().find(|level| *level as u8 == number).unwrap_or_default()
}

/// Logs from another level on.
///
/// # Errors
/// If the log has not started.
pub fn set_level(level: LogLevel) -> Result<(), String> {
    let set = SET_FILTER.get().ok_or("the log has not started")?;
    set(level.filter()).map_err(|e| format!("the log level cannot be changed: {e}"))?;
    LEVEL.store(level as u8, Ordering::Relaxed);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_have_names() {
        for level in LogLevel::ALL {
            assert_eq!((LogLevel::parse(level.name()), LogLevel::parse(&level.name().to_uppercase())), (Ok(level), Ok(level)));
        }
        for bad in ["", "warning", "info,kube=off", "verbose", "9"] {
            let error = LogLevel::parse(bad).unwrap_err();
            assert!(error.contains("no log level") && error.contains("error, warn, info, debug, trace"), "{error}");
        }
    }
}
