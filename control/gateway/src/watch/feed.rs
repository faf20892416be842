//! The control loop's end of the watch: messages become changes of the index, and an account of how the watch fares.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use anyhow::{Result, bail};
use nomagic_api::{ApiWatch, KindWatch, WatchState};
use nomagic_table::index::Index;
use nomagic_table::objects::{Kind, Object, Unread};
use nomagic_table::problem::{Origin, Problem};
use tokio::sync::mpsc;

use super::Message;

/// Messages taken in one go, so that a flood of them becomes few tables and the loop still turns.
const TAKEN_MAX: usize = 4_096;
/// Objects that cannot be read and are remembered by name, at the most.
const UNREAD_MAX: usize = 1_000;

/// How the watch of one kind fares.
#[derive(Debug)]
struct Course {
    /// A list was complete once.
    listed: bool,
    /// It cannot be had, although Services and EndpointSlices can.
    refused: bool,
    connected: bool,
    /// Why it is, or was last, away.
    error: Option<String>,
    /// Since when it is connected, or is not.
    since: Instant,
    /// When the server was last heard of.
    heard: Option<Instant>,
    lists: u64,
    events: u64,
    faults: u64,
}

/// What the watching thread tells, and what became of it.
pub struct Feed {
    messages: mpsc::Receiver<Message>,
    server: String,
    objects_max: usize,
    /// By [`Kind`].
    courses: [Course; Kind::ALL.len()],
    /// Objects that could not be read, by kind and name.
    unread: BTreeMap<(Kind, String), Problem>,
}

impl Feed {
    pub(super) fn new(messages: mpsc::Receiver<Message>, server: String, objects_max: usize) -> Feed {
        let courses = Kind::ALL.map(|_| Course {
            listed: false,
            refused: false,
            connected: false,
            error: None,
            since: Instant::now(),
            heard: None,
            lists: 0,
            events: 0,
            faults: 0,
        });
        Feed { messages, server, objects_max, courses, unread: BTreeMap::new() }
    }

    /// Waits for something to be told, and applies all that is waiting. True when objects or their problems have changed. Cancel-safe.
    ///
    /// # Errors
    /// When the watching thread is gone.
    pub async fn changed(&mut self, index: &mut Index) -> Result<bool> {
        let Some(first) = self.messages.recv().await else { bail!("the thread that watches {} has ended", self.server) };
        let mut changed = self.take(first, index);
        for _ in 1..TAKEN_MAX {
            let Ok(next) = self.messages.try_recv() else { break };
            changed |= self.take(next, index);
        }
        Ok(changed)
    }

    /// Services and EndpointSlices were both listed once, and the Node and the ServiceCIDRs were as well, or cannot be. Before, nothing
    /// may be put in force.
    pub fn complete(&self) -> bool {
        self.courses().all(|(_, c)| c.listed || c.refused) && self.main_kinds_listed()
    }

    fn main_kinds_listed(&self) -> bool {
        [Kind::Service, Kind::EndpointSlice].into_iter().all(|kind| self.courses[kind as usize].listed)
    }

    fn courses(&self) -> impl Iterator<Item = (Kind, &Course)> {
        Kind::ALL.into_iter().zip(&self.courses)
    }

    /// What has not been listed yet, and why.
    pub fn missing(&self) -> String {
        let missing = self.courses().filter(|(_, c)| !c.listed);
        let words = missing.map(|(kind, c)| match &c.error {
            Some(error) => format!("{kind}s ({error})"),
            None => format!("{kind}s"),
        });
        format!("not listed yet at {}: {}", self.server, words.collect::<Vec<_>>().join(", "))
    }

    /// Objects that could not be read.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.unread.values()
    }

    /// For `nomagic status`.
    pub fn status(&self, index: &Index) -> ApiWatch {
        let state = |c: &Course| match (c.connected, c.faults) {
            (true, _) => WatchState::Connected,
            (false, 0) => WatchState::Connecting,
            (false, _) => WatchState::Away,
        };
        let kinds = self.courses().map(|(kind, c)| KindWatch {
            kind: kind.to_string(),
            state: state(c),
            for_s: c.since.elapsed().as_secs(),
            listed: c.listed,
            objects: index.count(kind),
            heard_s_ago: c.heard.map(|h| h.elapsed().as_secs()),
            lists: c.lists,
            events: c.events,
            faults: c.faults,
            error: c.error.clone(),
        });
        ApiWatch { server: self.server.clone(), kinds: kinds.collect() }
    }

    fn take(&mut self, message: Message, index: &mut Index) -> bool {
        match message {
            Message::Connected(kind) | Message::Quiet(kind) => {
                self.heard(kind, 0);
                false
            }
            Message::Listed(kind, objects, unread) => {
                let course = self.heard(kind, 0);
                course.listed = true;
                course.lists += 1;
                tracing::debug!("{kind}: {} listed", objects.len());
                if kind == Kind::Node && objects.is_empty() && unread.is_empty() {
                    tracing::warn!("{} has no Node of this node's name: node.name must be the Node object's name", self.server);
                }
                let before = self.unread.len();
                self.unread.retain(|(k, _), _| *k != kind);
                let cleared = before != self.unread.len();
                let kept: BTreeSet<_> = unread.iter().filter_map(|u| u.key.clone()).collect();
                let noted = !unread.is_empty();
                unread.into_iter().for_each(|u| self.note(u));
                index.replace(kind, objects, &kept) | cleared | noted
            }
            Message::Applied(object) => {
                let (kind, key) = (object.kind(), object.key().clone());
                self.heard(kind, 1);
                let mended = self.unread.remove(&(kind, key.to_string())).is_some();
                if index.count(kind) >= self.objects_max && !index.knows(kind, &key) {
                    self.note(one_too_many(&object, self.objects_max));
                    return true;
                }
                index.apply(object) | mended
            }
            Message::Unreadable(unread) => {
                self.heard(unread.kind, 1);
                self.note(unread);
                true
            }
            Message::Deleted(kind, key) => {
                self.heard(kind, 1);
                let mended = self.unread.remove(&(kind, key.to_string())).is_some();
                index.delete(kind, &key) | mended
            }
            Message::Away(kind, error) => {
                self.away(kind, error);
                false
            }
        }
    }

    fn heard(&mut self, kind: Kind, events: u64) -> &mut Course {
        let (server, course) = (&self.server, &mut self.courses[kind as usize]);
        course.heard = Some(Instant::now());
        course.events += events;
        if !course.connected {
            course.connected = true;
            course.since = Instant::now();
            tracing::info!("{kind}s are followed at {server}");
        }
        course
    }

    fn away(&mut self, kind: Kind, error: String) {
        let refused = self.main_kinds_listed();
        let course = &mut self.courses[kind as usize];
        course.refused |= refused;
        course.faults += 1;
        // Said once for each cause, not for each attempt.
        if course.connected || course.error.as_ref() != Some(&error) {
            let known = if course.listed { "; what was known stays in force" } else { "" };
            tracing::warn!("{kind}s at {}: {error}{known}", self.server);
        }
        if course.connected {
            course.connected = false;
            course.since = Instant::now();
        }
        course.error = Some(error);
    }

    fn note(&mut self, unread: Unread) {
        let name = unread.key.map_or_else(|| format!("?{}", unread.problem), |k| k.to_string());
        if self.unread.len() < UNREAD_MAX {
            self.unread.insert((unread.kind, name), unread.problem);
        }
    }
}

fn one_too_many(object: &Object, max: usize) -> Unread {
    let (kind, key) = (object.kind(), object.key().clone());
    let message = format!("one more than the {max} {kind}s that are kept; it is skipped");
    let problem = Problem { origin: Origin::default(), object: format!("{kind} {key}"), field: String::new(), message };
    Unread { kind, key: Some(key), problem }
}

#[cfg(test)]
mod tests {
    use nomagic_table::objects::{Key, read};
    use serde_json::json;

    use super::*;

    fn feed() -> (mpsc::Sender<Message>, Feed) {
        let (sender, messages) = mpsc::channel(8);
        (sender, Feed::new(messages, "https://a".into(), 10_000))
    }

    fn service(name: &str) -> Object {
        read(
            Kind::Service,
            json!({"metadata": {"name": name}, "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}}),
            &Origin::default(),
        )
        .unwrap()
    }

    fn unread(name: &str) -> Unread {
        *read(Kind::Service, json!({"metadata": {"name": name}, "spec": 7}), &Origin::default()).unwrap_err()
    }

    fn key(name: &str) -> Key {
        Key { namespace: "default".into(), name: name.into() }
    }

    #[test]
    fn complete_means_services_and_slices_listed_and_the_rest_listed_or_refused() {
        let (_sender, mut feed) = feed();
        let mut index = Index::default();
        let mut tell = |feed: &mut Feed, message| {
            feed.take(message, &mut index);
            feed.complete()
        };
        let away = |kind| Message::Away(kind, "no".into());
        assert!(!tell(&mut feed, away(Kind::Node)) && !tell(&mut feed, away(Kind::ServiceCidr)));
        assert!(!tell(&mut feed, Message::Listed(Kind::Service, vec![], vec![])));
        assert!(!tell(&mut feed, Message::Listed(Kind::EndpointSlice, vec![], vec![])), "an older fault does not count");
        assert_eq!(feed.missing(), "not listed yet at https://a: Nodes (no), ServiceCIDRs (no)");
        assert!(!tell(&mut feed, Message::Listed(Kind::Node, vec![], vec![])));
        assert!(tell(&mut feed, away(Kind::ServiceCidr)));
        assert!(tell(&mut feed, away(Kind::Service)), "what was listed once stays");
    }

    #[test]
    fn only_changes_are_changes() {
        let (_sender, mut feed) = feed();
        let mut index = Index::default();
        let mut tell = |message| feed.take(message, &mut index);
        assert!(tell(Message::Listed(Kind::Service, vec![service("a")], vec![])));
        assert!(!tell(Message::Listed(Kind::Service, vec![service("a")], vec![])));
        assert!(!tell(Message::Applied(service("a"))) && tell(Message::Applied(service("b"))));
        assert!(!tell(Message::Quiet(Kind::Service)) && !tell(Message::Connected(Kind::Service)));
        assert!(!tell(Message::Away(Kind::Service, "no".into())));
        assert!(tell(Message::Unreadable(unread("a"))) && tell(Message::Applied(service("a"))), "a problem is gone");
        assert!(tell(Message::Unreadable(unread("c"))) && tell(Message::Deleted(Kind::Service, key("c"))));
        assert!(tell(Message::Deleted(Kind::Service, key("a"))) && !tell(Message::Deleted(Kind::Service, key("a"))));
        assert_eq!((index.count(Kind::Service), feed.problems().count()), (1, 0));
    }

    #[test]
    fn problems_have_a_limit() {
        let (_sender, mut feed) = feed();
        let mut index = Index::default();
        for i in 0..UNREAD_MAX + 5 {
            feed.take(Message::Unreadable(unread(&format!("s{i}"))), &mut index);
        }
        assert_eq!(feed.problems().count(), UNREAD_MAX);
        feed.take(Message::Listed(Kind::Service, vec![], vec![unread("s1")]), &mut index);
        assert_eq!(feed.problems().count(), 1);
    }

    #[tokio::test]
    async fn a_flood_is_taken_in_one_go_and_the_end_is_an_error() {
        let (sender, mut feed) = feed();
        let mut index = Index::default();
        for name in ["a", "b", "c"] {
            sender.send(Message::Applied(service(name))).await.unwrap();
        }
        assert!(feed.changed(&mut index).await.unwrap());
        assert_eq!(index.count(Kind::Service), 3);
        drop(sender);
        assert!(feed.changed(&mut index).await.unwrap_err().to_string().contains("https://a"));
    }
}
