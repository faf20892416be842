//! Before the first objects are known nothing is taken from anybody, and whoever asks is told what is missing.

use std::time::Instant;

use anyhow::Result;
use tokio::sync::mpsc;

use super::signals::{Asked, Signals};
use super::socket::Answer;
use super::status;
use super::tables::Tables;

/// Waits until enough objects are known to put something in force. False: asked to end.
pub async fn for_objects(
    tables: &mut Tables,
    requests: &mut mpsc::Receiver<(String, Answer)>,
    signals: &mut Signals,
    started: Instant,
) -> Result<bool> {
    if !tables.complete() {
        tracing::info!("waiting for objects: {}", tables.missing());
    }
    while !tables.complete() {
        tokio::select! {
            changed = tables.changed() => drop(changed?),
            Some((_, answer)) = requests.recv() => {
                let status = status::waiting(&tables.missing(), tables.source_status(), started.elapsed().as_secs());
                answer.send(status.to_string());
            }
            asked = signals.next() => if asked == Asked::ToEnd {
                return Ok(false);
            },
        }
    }
    Ok(true)
}
