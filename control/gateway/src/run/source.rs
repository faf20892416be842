//! The source of objects: polled files or a watched API server. Both update one index.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;

use anyhow::{Result, anyhow, bail};
use nomagic_api::ApiWatch;
use tokio::sync::oneshot;

use crate::config::Config;
use crate::manifests::{self, Fingerprint, ManifestSet};
use crate::net::local::BYPASS_MARK;
use crate::watch::{self, Feed, WatchTarget};
use nomagic_table::index::Index;
use nomagic_table::objects::Kind;
use nomagic_table::problem::Problem;

pub enum ObjectSource {
    Manifests(Box<Manifests>),
    Api(Box<Feed>),
}

/// The manifest files as read last.
pub struct Manifests {
    path: PathBuf,
    fingerprint: Fingerprint,
    loaded: Arc<ManifestSet>,
    /// A thread reads the files.
    reading: Option<oneshot::Receiver<Result<ManifestSet, Problem>>>,
    /// Read them again then, changed or not.
    again: bool,
    /// They are as they were the last time, when one of them could not be read.
    unchanged: bool,
    /// The path could not be read the last time.
    missing: bool,
}

impl ObjectSource {
    /// Reads the configured files into the index, or starts the watch of the configured API server. `read_cluster_uid`: the objects are
    /// complete only after an API server's answer about the cluster's UID, or too long a wait for it.
    pub fn open(config: &Config, read_cluster_uid: bool, index: &mut Index) -> Result<ObjectSource> {
        match (&config.manifests, &config.kubernetes) {
            (Some(path), _) => {
                let fingerprint = manifests::fingerprint(path);
                let loaded = manifests::load(path, None).map_err(|problem| anyhow!("{problem}"))?;
                // The tables would lack Services that the process before carried.
                if let Some(problem) = &loaded.shortage {
                    bail!("{problem}");
                }
                // Nothing at all could be read.
                if let Some(problem) = loaded.problems.first().filter(|_| loaded.unread && loaded.objects.is_empty()) {
                    bail!("{problem}");
                }
                *index = Index::of(loaded.objects.iter().cloned());
                let (path, loaded) = (path.clone(), Arc::new(loaded));
                let files = Manifests { path, fingerprint, loaded, reading: None, again: false, unchanged: false, missing: false };
                Ok(ObjectSource::Manifests(Box::new(files)))
            }
            (None, Some(server)) => {
                let mark = Some(BYPASS_MARK);
                let target = WatchTarget { read_cluster_uid, mark, ..WatchTarget::new(server.clone(), config.node_name()) };
                Ok(ObjectSource::Api(Box::new(watch::start(target)?)))
            }
            (None, None) => bail!("neither manifests nor kubernetes is configured"),
        }
    }

    /// The cluster's UID, or why it cannot be read; `None` for files, or if it was not asked for.
    pub fn cluster_uid(&self) -> Option<Result<&str, &str>> {
        match self {
            ObjectSource::Manifests(_) => None,
            ObjectSource::Api(feed) => feed.cluster_uid(),
        }
    }

    /// The addresses of the API server that are known now; none for files.
    pub fn server_addresses(&self) -> Vec<SocketAddr> {
        match self {
            ObjectSource::Manifests(_) => Vec::new(),
            ObjectSource::Api(feed) => feed.server_addresses(),
        }
    }

    /// Reports whether enough objects are known for a first table.
    pub fn complete(&self) -> bool {
        match self {
            ObjectSource::Manifests(_) => true,
            ObjectSource::Api(feed) => feed.complete(),
        }
    }

    /// Waits until an API server has changed the index, or files that [`ObjectSource::poll`] found changed are read. Cancel-safe.
    ///
    /// # Errors
    /// If the watch has ended for good.
    pub async fn changed(&mut self, index: &mut Index) -> Result<bool> {
        match self {
            ObjectSource::Manifests(files) => files.read(index).await,
            ObjectSource::Api(feed) => feed.changed(index).await,
        }
    }

    /// Starts to read the files again if they have changed, or if `always`.
    pub fn poll(&mut self, always: bool) {
        if let ObjectSource::Manifests(files) = self {
            files.poll(always);
        }
    }

    /// Whether the objects come from files.
    pub fn is_files(&self) -> bool {
        matches!(self, ObjectSource::Manifests(_))
    }

    /// Problems of objects that were not added to the index.
    pub fn problems(&self) -> Vec<&Problem> {
        match self {
            ObjectSource::Manifests(files) => files.loaded.problems.iter().collect(),
            ObjectSource::Api(feed) => feed.problems().collect(),
        }
    }

    /// Whether there may be Services of which nothing is known.
    pub fn incomplete(&self) -> bool {
        match self {
            ObjectSource::Manifests(files) => files.loaded.incomplete,
            ObjectSource::Api(feed) => feed.incomplete(),
        }
    }

    /// Describes the objects that are still missing.
    pub fn missing(&self) -> String {
        match self {
            ObjectSource::Manifests(_) => String::new(),
            ObjectSource::Api(feed) => feed.missing(),
        }
    }

    /// The state of the API server's watch; `None` for files.
    pub fn status(&self, index: &Index) -> Option<ApiWatch> {
        match self {
            ObjectSource::Manifests(_) => None,
            ObjectSource::Api(feed) => Some(feed.status(index)),
        }
    }
}

impl Manifests {
    /// A large file takes seconds, so a thread reads.
    fn poll(&mut self, always: bool) {
        self.again |= always;
        if self.reading.is_some() {
            return;
        }
        // Taken before reading, so that the next poll detects a change during the read.
        let fingerprint = manifests::fingerprint(&self.path);
        let unchanged = !self.again && fingerprint == self.fingerprint;
        if unchanged && !self.loaded.unread {
            return;
        }
        self.unchanged = unchanged;
        let (told, reading) = oneshot::channel();
        let (path, previous) = (self.path.clone(), self.loaded.clone());
        let work = move || drop(told.send(manifests::load(&path, Some(&previous))));
        match thread::Builder::new().name("nm-read".into()).spawn(work) {
            Ok(_) => (self.fingerprint, self.again, self.reading) = (fingerprint, false, Some(reading)),
            Err(e) => tracing::warn!("cannot start the thread nm-read, which reads the changed manifests; trying again: {e}"),
        }
    }

    /// Waits for the files that are being read. True: the index may have changed.
    async fn read(&mut self, index: &mut Index) -> Result<bool> {
        let Some(reading) = &mut self.reading else { std::future::pending().await };
        let loaded = reading.await.map_err(|_| anyhow!("the thread nm-read has panicked: see its message above"))?;
        self.reading = None;
        match loaded {
            // The same files cannot be read.
            Ok(loaded) if self.unchanged && loaded.problems == self.loaded.problems => return Ok(false),
            Ok(loaded) => self.loaded = Arc::new(loaded),
            Err(problem) => {
                if !std::mem::replace(&mut self.missing, true) {
                    tracing::warn!("{problem}; the objects read before stay in force");
                }
                return Ok(false);
            }
        }
        self.missing = false;
        for kind in Kind::ALL {
            index.replace(kind, self.loaded.objects.iter().cloned(), &BTreeSet::new());
        }
        Ok(true)
    }
}
