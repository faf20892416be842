//! The protocol on the wire, one rule per test.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nomagic_fake_apiserver::{End, FakeApiServer, Gone, Resource, Streaming};
use serde_json::{Value, json};

/// Time limit for an expected response.
const SOON: Duration = Duration::from_secs(10);

fn server() -> FakeApiServer {
    FakeApiServer::start("127.0.0.1:0".parse().unwrap(), None).unwrap()
}

fn service(name: &str, labels: &Value, cluster_ip: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": labels}, "spec": {"clusterIP": cluster_ip}})
}

/// Sends a request and reads the head: `(status, body reader)`. HTTP/1.0, so that bodies end with their connection.
fn request(server: &FakeApiServer, method: &str, path: &str, headers: &str, body: &str) -> (u16, BufReader<TcpStream>) {
    let mut stream = TcpStream::connect(server.url().strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(stream, "{method} {path} HTTP/1.0\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "the connection was closed: {head}");
    }
    (head.split(' ').nth(1).unwrap().parse().unwrap(), reader)
}

fn get(server: &FakeApiServer, path: &str) -> (u16, Value) {
    let (status, mut body) = request(server, "GET", path, "", "");
    let mut text = String::new();
    body.read_to_string(&mut text).unwrap();
    (status, serde_json::from_str(&text).unwrap())
}

/// An open watch.
struct Watch(BufReader<TcpStream>);

impl Watch {
    fn start(server: &FakeApiServer, query: &str) -> Watch {
        let (status, body) = request(server, "GET", &format!("/api/v1/services?watch=true&{query}"), "", "");
        assert_eq!(status, 200);
        Watch(body)
    }

    /// The next line; "" at the end.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// `TYPE name`, or `TYPE code` of an error.
    fn event(&mut self) -> String {
        let line = self.line();
        if line.is_empty() {
            return "end".into();
        }
        let event: Value = serde_json::from_str(&line).unwrap();
        let object = &event["object"];
        let what = object["metadata"]["name"].as_str().map_or_else(|| object["code"].to_string(), str::to_owned);
        format!("{} {what}", event["type"].as_str().unwrap())
    }
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|o| o["metadata"]["name"].as_str().unwrap()).collect()
}

#[test]
fn lists_with_selectors() {
    let s = server();
    for (name, labels, ip) in [("a", json!({}), "10.0.0.1"), ("b", json!({"x/y": ""}), "10.0.0.2"), ("c", json!({}), "None")] {
        s.put(service(name, &labels, ip)).unwrap();
    }
    assert_eq!(names(&get(&s, "/api/v1/services").1), ["a", "b", "c"]);
    let (status, list) = get(&s, "/api/v1/services?labelSelector=%21x%2Fy&fieldSelector=spec.clusterIP%21%3DNone");
    assert_eq!((status, names(&list)), (200, vec!["a"]));
    assert_eq!(list["kind"], "ServiceList");
    assert_eq!(list["metadata"]["resourceVersion"], s.version().to_string());
    assert!(list["items"][0]["kind"].is_null());
    assert_eq!(get(&s, "/api/v1/services?fieldSelector=spec.ports%3D1").0, 400);
    assert_eq!(get(&s, "/api/v1/namespaces/other/services").1["items"], json!([]));
    assert_eq!(get(&s, "/api/v1/pods").0, 404);
    s.set_unknown(&[Resource::ServiceCidrs]);
    assert_eq!(get(&s, "/apis/networking.k8s.io/v1/servicecidrs").0, 404);
    s.set_unknown(&[]);
    assert_eq!(get(&s, "/apis/networking.k8s.io/v1/servicecidrs").0, 200);
}

#[test]
fn pages_show_one_version_until_it_is_compacted() {
    let s = server();
    (0..5).for_each(|i| {
        s.put(service(&format!("s{i}"), &json!({}), "")).unwrap();
    });
    let (_, first) = get(&s, "/api/v1/services?limit=2");
    assert_eq!((names(&first), &first["metadata"]["remainingItemCount"]), (vec!["s0", "s1"], &json!(3)));
    assert!(s.delete(Resource::Services, "default", "s3"));
    s.put(service("s9", &json!({}), "")).unwrap();
    let token = first["metadata"]["continue"].as_str().unwrap();
    let (_, second) = get(&s, &format!("/api/v1/services?limit=2&continue={token}"));
    assert_eq!(names(&second), ["s2", "s3"], "as it was");
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    s.compact();
    let token = second["metadata"]["continue"].as_str().unwrap();
    let (status, gone) = get(&s, &format!("/api/v1/services?limit=2&continue={token}"));
    assert_eq!((status, gone["reason"].as_str()), (410, Some("Expired")));
    assert_eq!(names(&get(&s, "/api/v1/services?limit=2&resourceVersion=0").1).len(), 5, "version 0 comes in one go");
    assert_eq!(get(&s, "/api/v1/services?limit=2&continue=x").0, 400);
}

#[test]
fn versions_of_lists() {
    let s = server();
    let first = s.put(service("a", &json!({}), "")).unwrap();
    s.put(service("b", &json!({}), "")).unwrap();
    let list = |how: &str, version: u64| get(&s, &format!("/api/v1/services?resourceVersion={version}{how}"));
    assert_eq!(names(&list("", first).1), ["a", "b"]);
    assert_eq!(names(&list("&resourceVersionMatch=Exact", first).1), ["a"]);
    assert_eq!(list("", 10_000).0, 504);
    assert_eq!(list("&resourceVersionMatch=Exact", 1).0, 410);
}

#[test]
fn a_watch_reports_what_the_selectors_match() {
    let s = server();
    s.put(service("old", &json!({}), "10.0.0.1")).unwrap();
    let mut w = Watch::start(&s, &format!("resourceVersion={}&labelSelector=%21hidden", s.version()));
    s.put(service("a", &json!({}), "10.0.0.2")).unwrap();
    s.put(service("a", &json!({"x": "y"}), "10.0.0.2")).unwrap();
    s.put(service("a", &json!({"hidden": ""}), "10.0.0.2")).unwrap();
    s.put(service("a", &json!({"hidden": "still"}), "10.0.0.2")).unwrap();
    s.put(service("a", &json!({}), "10.0.0.2")).unwrap();
    s.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "not here"}})).unwrap();
    assert!(s.delete(Resource::Services, "default", "old"));
    let events: Vec<String> = (0..5).map(|_| w.event()).collect();
    assert_eq!(events, ["ADDED a", "MODIFIED a", "DELETED a", "ADDED a", "DELETED old"]);
    assert_eq!(Watch::start(&s, "").event(), "ADDED a", "without a version: first what is there");
}

#[test]
fn bookmarks_are_sent_on_request() {
    let s = server();
    s.set_bookmark_interval(Duration::from_millis(20));
    let mut with = Watch::start(&s, &format!("allowWatchBookmarks=true&resourceVersion={}", s.version()));
    let mut without = Watch::start(&s, &format!("timeoutSeconds=1&resourceVersion={}", s.version()));
    s.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}})).unwrap();
    let end = Instant::now() + SOON;
    let shown = s.version().to_string();
    while !with.line().contains(&format!("\"resourceVersion\":\"{shown}\"")) {
        assert!(Instant::now() < end, "no bookmark of version {shown}");
    }
    assert_eq!(without.event(), "end", "timeoutSeconds");
}

#[test]
fn streaming_lists_and_servers_without_them() {
    let s = server();
    s.put(service("a", &json!({}), "")).unwrap();
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&resourceVersion=";
    let mut w = Watch::start(&s, query);
    assert_eq!(w.event(), "ADDED a");
    let bookmark: Value = serde_json::from_str(&w.line()).unwrap();
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    assert_eq!(bookmark["object"]["metadata"]["resourceVersion"], s.version().to_string());
    s.put(service("b", &json!({}), "")).unwrap();
    assert_eq!(w.event(), "ADDED b");
    s.set_streaming(Streaming::Invalid);
    assert_eq!(get(&s, &format!("/api/v1/services?watch=true&{query}")).0, 422);
    s.set_streaming(Streaming::ErrorInStream);
    let mut w = Watch::start(&s, query);
    assert_eq!((w.event(), w.event()), ("ERROR 500".into(), "end".into()));
}

#[test]
fn compacted_versions_get_410() {
    let s = server();
    let old = s.put(service("a", &json!({}), "")).unwrap();
    let mut running = Watch::start(&s, &format!("resourceVersion={old}"));
    s.put(service("b", &json!({}), "")).unwrap();
    assert_eq!(running.event(), "ADDED b");
    s.compact();
    let mut w = Watch::start(&s, &format!("resourceVersion={old}"));
    assert_eq!((w.event(), w.event()), ("ERROR 410".into(), "end".into()));
    s.set_gone(Gone::Status);
    assert_eq!(get(&s, &format!("/api/v1/services?watch=true&resourceVersion={old}")).0, 410);
    s.put(service("c", &json!({}), "")).unwrap();
    assert_eq!(running.event(), "ADDED c", "a watch that runs has seen it all");
}

#[test]
fn queued_failures_and_tokens() {
    let s = server();
    s.fail_next(1, 500);
    s.fail_next(1, 429);
    assert_eq!((get(&s, "/version").0, get(&s, "/version").0, get(&s, "/version").0), (500, 429, 200));
    s.set_token(Some("right"));
    assert_eq!(get(&s, "/api/v1/services").0, 401);
    assert_eq!(request(&s, "GET", "/api/v1/services", "Authorization: Bearer right\r\n", "").0, 200);
    assert_eq!(request(&s, "GET", "/api/v1/services", "Authorization: Bearer wrong\r\n", "").0, 401);
    assert_eq!(s.take_requests().len(), 6);
}

#[test]
fn watches_end_are_cut_and_receive_garbage() {
    let s = server();
    let mut w = Watch::start(&s, "");
    s.send_garbage("{\"type\": nonsense");
    assert_eq!(w.line(), "{\"type\": nonsense");
    s.end_watches(End::Orderly);
    assert_eq!(w.event(), "end");
    let mut w = Watch::start(&s, "");
    s.end_watches(End::Cut);
    assert!(matches!(w.0.read_to_end(&mut Vec::new()), Ok(0) | Err(_)));
}

#[test]
fn silent_slow_and_stopped_servers() {
    let mut s = server();
    s.put(service("a", &json!({}), "10.0.0.1")).unwrap();
    s.set_silent(true);
    let mut stream = TcpStream::connect(s.url().strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    stream.write_all(b"GET /version HTTP/1.0\r\n\r\n").unwrap();
    assert!(stream.read(&mut [0; 10]).is_err(), "silence");
    s.set_silent(false);
    stream.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(stream.read(&mut [0; 4]).unwrap(), 4);
    s.set_slow(Some(Duration::from_millis(20)));
    let start = Instant::now();
    assert_eq!(names(&get(&s, "/api/v1/services").1), ["a"]);
    assert!(start.elapsed() > Duration::from_millis(60), "a list of more than 192 bytes");
    s.set_slow(None);
    let mut w = Watch::start(&s, "");
    assert_eq!(w.event(), "ADDED a");
    s.stop();
    TcpStream::connect(s.url().strip_prefix("http://").unwrap()).unwrap_err();
    assert!(matches!(w.0.read(&mut [0; 1]), Ok(0) | Err(_)));
    s.resume().unwrap();
    assert_eq!(names(&get(&s, "/api/v1/services").1), ["a"], "the objects stay");
}

#[test]
fn a_namespace_is_served_by_name() {
    let s = server();
    let path = "/api/v1/namespaces/kube-system";
    assert_eq!(get(&s, path).0, 404);
    s.put_kube_system("b2f1").unwrap();
    let (status, object) = get(&s, path);
    assert_eq!((status, &object["kind"], &object["metadata"]["uid"]), (200, &json!("Namespace"), &json!("b2f1")));
    assert_eq!(names(&get(&s, "/api/v1/namespaces").1), ["kube-system"]);
    s.set_forbidden(&[Resource::Namespaces]);
    assert_eq!((get(&s, path).0, get(&s, "/api/v1/namespaces/kube-system/services").0), (403, 200));
    s.set_forbidden(&[]);
    s.set_unanswered(&[Resource::Namespaces]);
    let mut stream = TcpStream::connect(s.url().strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    assert!(stream.read(&mut [0; 10]).is_err(), "silence");
    assert_eq!(get(&s, "/api/v1/services").0, 200, "other kinds are answered");
    s.set_unanswered(&[]);
    stream.set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(stream.read(&mut [0; 4]).unwrap(), 4);
}

#[test]
fn objects_over_http_and_from_yaml() {
    let s = server();
    let body = service("web", &json!({}), "10.0.0.1").to_string();
    assert_eq!(request(&s, "POST", "/api/v1/namespaces/default/services", "", &body).0, 200);
    assert_eq!(request(&s, "PUT", "/api/v1/namespaces/default/services/web", "", "no").0, 400);
    assert_eq!(get(&s, "/api/v1/namespaces/default/services/web").1["spec"]["clusterIP"], "10.0.0.1");
    assert_eq!(request(&s, "DELETE", "/api/v1/namespaces/default/services/web", "", "").0, 200);
    assert_eq!(get(&s, "/api/v1/namespaces/default/services/web").0, 404);
    s.put_yaml("---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Service, metadata: {name: a}}\n---\n# nothing\n---\napiVersion: v1\nkind: Node\nmetadata: {name: gw}\n").unwrap();
    assert_eq!(names(&get(&s, "/api/v1/services").1), ["a"]);
    assert_eq!(names(&get(&s, "/api/v1/nodes?fieldSelector=metadata.name%3Dgw").1), ["gw"]);
    assert!(s.put_yaml("kind: Pod").is_err());
}
