//! Directories, documents, faults and what stays in force.

use std::fs;

use super::*;

const GOOD: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}
";

fn service(name: &str, ip: &str) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n")
}

fn slice(name: &str) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: IPv4\nports: [{{port: 8080}}]\nendpoints: [{{addresses: [10.1.0.1]}}]\n"
    )
}

fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    files.iter().for_each(|(name, text)| fs::write(dir.path().join(name), text).unwrap());
    dir
}

fn object_names(loaded: &Loaded) -> Vec<String> {
    loaded.objects.iter().map(|o| o.key().to_string()).collect()
}

fn problems(loaded: &Loaded) -> Vec<String> {
    let short = |p: &Problem| {
        p.to_string().rsplit_once("/").map_or(p.to_string(), |_| {
            let file = p.origin.file.as_ref().unwrap().file_name().unwrap().to_string_lossy().into_owned();
            format!("{file}:{} {} {}: {}", p.origin.line, p.object, p.field, p.message)
        })
    };
    loaded.problems.iter().map(short).collect()
}

#[test]
fn a_directory_in_order_of_names() {
    let d = dir(&[
        ("b.yml", &service("b", "10.0.0.2")),
        ("a.yaml", &format!("# first\n{}---\n{}", service("a", "10.0.0.1"), slice("web-1"))),
        ("c.json", r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"c"},"spec":{"clusterIP":"10.0.0.3","ports":[{"port":1}]}}"#),
        ("notes.txt", "not: yaml: at all"),
        (".hidden.yaml", "{"),
    ]);
    fs::create_dir(d.path().join("sub.yaml")).unwrap();
    let loaded = load(d.path(), None).unwrap();
    assert_eq!(object_names(&loaded), ["default/a", "default/web-1", "default/b", "default/c"]);
    assert_eq!((loaded.files, loaded.ignored, problems(&loaded)), (3, 0, vec![]));
    assert_eq!(loaded.objects[1].origin().line, 7);
    let Object::Slice(s) = &loaded.objects[1] else { panic!("a slice") };
    assert_eq!(s.ports[0].name, "", "a port without a name gets the API server's default");
}

#[test]
fn a_single_file_and_nothing_at_all() {
    let d = dir(&[("x.conf", GOOD)]);
    assert_eq!(object_names(&load(&d.path().join("x.conf"), None).unwrap()), ["default/web"]);
    assert!(load(&d.path().join("nowhere"), None).unwrap_err().to_string().contains("nowhere: the manifests cannot be read"));
    assert!(load(d.path(), None).unwrap().problems[0].message.contains("no *.yaml"));
}

#[test]
fn lists_of_every_kind() {
    let list = "
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Service
  metadata: {name: a}
  spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}
- apiVersion: v1
  kind: ConfigMap
  metadata: {name: ignored}
- apiVersion: v1
  kind: ServiceList
  items: [{metadata: {name: b}, spec: {clusterIP: 10.0.0.2, ports: [{port: x}]}}, {metadata: {name: c}, spec: {clusterIP: 10.0.0.3, ports: [{port: 80}]}}]
";
    let loaded = load(dir(&[("l.yaml", list)]).path(), None).unwrap();
    assert_eq!(object_names(&loaded), ["default/a", "default/c"]);
    assert_eq!((loaded.objects[0].origin().line, loaded.objects[1].origin().line, loaded.ignored), (5, 12, 1));
    let [problem] = &problems(&loaded)[..] else { panic!("{:?}", loaded.problems) };
    assert!(problem.starts_with("l.yaml:12 Service default/b spec.ports[0].port: invalid type: string \"x\""), "{problem}");
}

#[test]
fn one_bad_document_leaves_the_others() {
    // The middle document, its problem.
    let table: &[(&str, &str)] = &[
        ("kind: [", "m.yaml:7 "),
        ("a: b: c\n", "m.yaml:7 "),
        ("kind: Service\n\tx: 1\n", "found a tab"),
        ("just text\n", "not a Kubernetes object"),
        ("apiVersion: v1\nmetadata: {name: x}\n", "kind: missing"),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: x}\n", "Service default/x spec: missing"),
        ("apiVersion: v1\nkind: Service\nspec: {ports: []}\n", "metadata.name: missing"),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: [{port: 99999999999}]}\n",
            "m.yaml:7 Service default/x spec.ports[0].port:",
        ),
        ("apiVersion: v1\nkind: Service\nmetadata: [x]\n", "metadata: invalid type: sequence"),
        ("apiVersion: v2\nkind: Service\nmetadata: {name: x}\n", "\"v2\": v1 is read"),
        ("apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: x}\n", "discovery.k8s.io/v1 is read"),
    ];
    for (middle, expected) in table {
        let text = format!("---\n{}---\n{middle}\n--- # the last\n{}", service("a", "10.0.0.1"), service("b", "10.0.0.2"));
        let loaded = load(dir(&[("m.yaml", &text), ("n.yaml", GOOD)]).path(), None).unwrap();
        assert_eq!(object_names(&loaded), ["default/a", "default/b", "default/web"], "{middle}");
        let found = problems(&loaded);
        assert!(found.len() == 1 && found[0].contains(expected), "{middle:?}: {found:?}");
    }
}

#[test]
fn documents_are_cut_where_yaml_cuts_them() {
    let text = "%YAML 1.2\n---\n# nothing\n--- {apiVersion: v1, kind: Secret}\n---\napiVersion: v1\nkind: ConfigMap\ndata:\n  x: |\n    a\n    ---\n    b\n...\n---\n---suffix: 1\n";
    let content = documents::read(text, Path::new("x.yaml"));
    assert_eq!((content.ignored, content.problems.len()), (2, 1), "{:?}", content.problems);
    assert!(content.problems[0].field == "kind" && content.problems[0].origin.line == 15, "{:?}", content.problems);
}

#[test]
fn an_alias_bomb_is_refused() {
    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    (1..10).for_each(|i| bomb += &format!("a{i}: &a{i} [{}]\n", vec![format!("*a{}", i - 1); 10].join(",")));
    let loaded = load(dir(&[("bomb.yaml", &bomb), ("good.yaml", GOOD)]).path(), None).unwrap();
    assert_eq!(object_names(&loaded), ["default/web"]);
    assert!(loaded.problems[0].message.contains("not readable as YAML"), "{:?}", problems(&loaded));
    let deep = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
    for name in ["deep.yaml", "deep.json"] {
        assert_eq!(load(dir(&[(name, &deep)]).path(), None).unwrap().problems.len(), 1);
    }
}

#[test]
fn unreadable_files_are_named() {
    let d = dir(&[("good.yaml", GOOD)]);
    fs::write(d.path().join("binary.yaml"), [0xc3, 0x28, 0x00]).unwrap();
    std::os::unix::fs::symlink("gone", d.path().join("dangling.yaml")).unwrap();
    std::os::unix::net::UnixListener::bind(d.path().join("socket.yaml")).unwrap();
    fs::File::create(d.path().join("huge.yaml")).unwrap().set_len(FILE_MAX + 1).unwrap();
    let loaded = load(d.path(), None).unwrap();
    assert_eq!(object_names(&loaded), ["default/web"]);
    let found = problems(&loaded);
    for (i, expected) in ["binary.yaml:0", "dangling.yaml:0", "huge.yaml:0", "socket.yaml:0"].iter().enumerate() {
        assert!(found[i].starts_with(expected), "{found:?}");
    }
}

#[test]
fn only_true_and_false_are_booleans() {
    let text = service("on", "10.0.0.1").replace("{name: on}", "{name: on, namespace: n}").replace("{port: 80}", "{name: y, port: 80}");
    let bad = slice("web-1").replace("[10.1.0.1]}", "[10.1.0.1], conditions: {ready: yes}}");
    let loaded = load(dir(&[("x.yaml", &format!("{text}---\n{bad}"))]).path(), None).unwrap();
    assert_eq!(object_names(&loaded), ["n/on"]);
    assert!(problems(&loaded)[0].contains("endpoints[0].conditions.ready: invalid type: string \"yes\""), "{:?}", problems(&loaded));
}

#[test]
fn of_two_with_one_name_the_first_stays() {
    let d = dir(&[("a.yaml", &service("web", "10.0.0.1")), ("b.yaml", &service("web", "10.0.0.2"))]);
    let loaded = load(d.path(), None).unwrap();
    let Object::Service(s) = &loaded.objects[0] else { panic!("a Service") };
    assert_eq!((loaded.objects.len(), s.cluster_ips[0].to_string().as_str()), (1, "10.0.0.1"));
    assert!(problems(&loaded)[0].contains("b.yaml:1 Service default/web") && loaded.problems[0].message.contains("a.yaml:1"));
}

#[test]
fn a_bad_edit_takes_nothing_down() {
    let both = format!("{}---\n{}", service("a", "10.0.0.1"), service("b", "10.0.0.2"));
    let d = dir(&[("x.yaml", &both), ("y.yaml", &service("other", "10.0.0.9"))]);
    let first = load(d.path(), None).unwrap();
    let x = d.path().join("x.yaml");

    // Garbage in the whole file, then in one document, then a value of the wrong type.
    fs::write(&x, "}{").unwrap();
    let garbage = load(d.path(), Some(&first)).unwrap();
    assert_eq!(object_names(&garbage), ["default/other", "default/a", "default/b"]);
    assert!(problems(&garbage)[1].contains("stays in force: Service default/a, Service default/b"), "{:?}", problems(&garbage));

    fs::write(&x, format!("{}---\n}}{{\n", service("a", "10.0.0.7"))).unwrap();
    let half = load(d.path(), Some(&garbage)).unwrap();
    assert_eq!(object_names(&half), ["default/a", "default/other", "default/b"]);
    let Object::Service(a) = &half.objects[0] else { panic!("a Service") };
    assert_eq!(a.cluster_ips[0].to_string(), "10.0.0.7", "what can be read is in force");

    fs::write(&x, service("b", "10.0.0.2").replace("port: 80", "port: eighty")).unwrap();
    let typed = load(d.path(), Some(&half)).unwrap();
    assert_eq!(object_names(&typed), ["default/other", "default/b"], "a is gone from the file, b is only mistyped");

    // Mended: nothing of before is left; a deleted file takes its objects along.
    fs::write(&x, service("c", "10.0.0.3")).unwrap();
    let mended = load(d.path(), Some(&typed)).unwrap();
    assert_eq!((object_names(&mended), problems(&mended)), (vec!["default/c".to_string(), "default/other".into()], vec![]));
    fs::remove_file(&x).unwrap();
    assert_eq!(object_names(&load(d.path(), Some(&mended)).unwrap()), ["default/other"]);
}

#[test]
fn the_fingerprint_changes_with_the_files() {
    let d = dir(&[("a.yaml", GOOD)]);
    let before = fingerprint(d.path());
    assert_eq!(before, fingerprint(d.path()));
    fs::write(d.path().join("ignored.txt"), "x").unwrap();
    assert_eq!(before, fingerprint(d.path()));
    fs::write(d.path().join("a.yaml"), format!("{GOOD}\n")).unwrap();
    let longer = fingerprint(d.path());
    assert_ne!(before, longer);
    // Replaced by a file of equal length (an editor's rename): another inode.
    fs::write(d.path().join("tmp"), format!("{GOOD}\n")).unwrap();
    fs::rename(d.path().join("tmp"), d.path().join("a.yaml")).unwrap();
    let renamed = fingerprint(d.path());
    assert_ne!(longer, renamed);
    fs::remove_file(d.path().join("a.yaml")).unwrap();
    assert_ne!(renamed, fingerprint(d.path()));
    assert_ne!(fingerprint(&d.path().join("nowhere")), fingerprint(d.path()));
}
