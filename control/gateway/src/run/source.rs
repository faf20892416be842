//! Where objects come from: files that are looked at, or an API server that is watched. Both feed one index.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use nomagic_api::ApiWatch;

use crate::config::Config;
use crate::manifests::{self, Fingerprint, Loaded};
use crate::watch::{self, Feed, Target};
use nomagic_table::index::Index;
use nomagic_table::objects::Kind;
use nomagic_table::problem::Problem;

/// Files or an API server.
pub enum Source {
    /// Files.
    Manifests(Box<Manifests>),
    /// An API server.
    Api(Box<Feed>),
}

/// Files, as they were read last.
pub struct Manifests {
    path: PathBuf,
    fingerprint: Fingerprint,
    loaded: Loaded,
    /// The path could not be read when it was last looked at.
    missing: bool,
}

impl Source {
    /// Opens what the configuration names: reads the files into the index, or starts to watch.
    pub fn open(config: &Config, index: &mut Index) -> Result<Source> {
        match (&config.manifests, &config.kubernetes) {
            (Some(path), _) => {
                let fingerprint = manifests::fingerprint(path);
                let loaded = manifests::load(path, None).map_err(|problem| anyhow!("{problem}"))?;
                *index = Index::of(loaded.objects.iter().cloned());
                Ok(Source::Manifests(Box::new(Manifests { path: path.clone(), fingerprint, loaded, missing: false })))
            }
            (None, Some(server)) => Ok(Source::Api(Box::new(watch::start(Target::new(server.clone(), config.node_name()))?))),
            (None, None) => bail!("neither manifests nor kubernetes is configured"),
        }
    }

    /// Whether enough is known to put something in force.
    pub fn complete(&self) -> bool {
        match self {
            Source::Manifests(_) => true,
            Source::Api(feed) => feed.complete(),
        }
    }

    /// Waits until the index has changed by what an API server told. Files are silent: [`Source::look`] at them. Cancel-safe.
    ///
    /// # Errors
    /// When nothing more can ever come.
    pub async fn changed(&mut self, index: &mut Index) -> Result<bool> {
        match self {
            Source::Manifests(_) => std::future::pending().await,
            Source::Api(feed) => feed.changed(index).await,
        }
    }

    /// Reads files again if they have changed (or `always`). True when the index may have changed.
    pub fn look(&mut self, always: bool, index: &mut Index) -> bool {
        match self {
            Source::Manifests(files) => files.look(always, index),
            Source::Api(_) => false,
        }
    }

    /// What is wrong with objects that did not make it into the index.
    pub fn problems(&self) -> Vec<&Problem> {
        match self {
            Source::Manifests(files) => files.loaded.problems.iter().collect(),
            Source::Api(feed) => feed.problems().collect(),
        }
    }

    /// What is still waited for, in words.
    pub fn missing(&self) -> String {
        match self {
            Source::Manifests(_) => String::new(),
            Source::Api(feed) => feed.missing(),
        }
    }

    /// How the watch of an API server fares; none for files.
    pub fn status(&self, index: &Index) -> Option<ApiWatch> {
        match self {
            Source::Manifests(_) => None,
            Source::Api(feed) => Some(feed.status(index)),
        }
    }
}

impl Manifests {
    fn look(&mut self, always: bool, index: &mut Index) -> bool {
        // Taken first: a change while reading is seen the next time.
        let fingerprint = manifests::fingerprint(&self.path);
        if !always && fingerprint == self.fingerprint {
            return false;
        }
        self.fingerprint = fingerprint;
        match manifests::load(&self.path, Some(&self.loaded)) {
            Ok(loaded) => self.loaded = loaded,
            Err(problem) => {
                if !std::mem::replace(&mut self.missing, true) {
                    tracing::warn!("{problem}; the objects that were read before stay in force");
                }
                return false;
            }
        }
        self.missing = false;
        for kind in Kind::ALL {
            index.replace(kind, self.loaded.objects.iter().cloned(), &BTreeSet::new());
        }
        true
    }
}
