//! Directories, documents, errors, and objects that stay in force.

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

fn object_names(loaded: &ManifestSet) -> Vec<String> {
    let read = |o: &&Object| !matches!(o, Object::Service(s) if s.stands_in());
    loaded.objects.iter().filter(read).map(|o| o.key().to_string()).collect()
}

fn problems(loaded: &ManifestSet) -> Vec<String> {
    let short = |p: &Problem| {
        p.to_string().rsplit_once("/").map_or(p.to_string(), |_| {
            let file = p.origin.file.as_ref().unwrap().file_name().unwrap().to_string_lossy().into_owned();
            format!("{file}:{} {} {}: {}", p.origin.line, p.object, p.field, p.message)
        })
    };
    loaded.problems.iter().map(short).collect()
}

#[test]
fn a_directory_is_read_in_order_of_names() {
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
fn a_single_file_and_a_missing_one() {
    let d = dir(&[("x.conf", GOOD)]);
    assert_eq!(object_names(&load(&d.path().join("x.conf"), None).unwrap()), ["default/web"]);
    assert!(load(&d.path().join("nowhere"), None).unwrap_err().to_string().contains("nowhere: the manifests cannot be read"));
    assert!(load(d.path(), None).unwrap().problems[0].message.contains("no *.yaml"));
}

#[test]
fn nested_and_typed_lists() {
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
    assert!(problem.starts_with("l.yaml:12 Service default/b spec.ports[0].port: the text \"x\": a number"), "{problem}");
}

#[test]
fn an_invalid_document_does_not_affect_the_others() {
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
        ("apiVersion: v1\nkind: Service\nmetadata: [x]\n", "metadata: a list: a mapping is expected"),
        ("apiVersion: v2\nkind: Service\nmetadata: {name: x}\n", "\"v2\" is not supported, only v1"),
        ("apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\nmetadata: {name: x}\n", "only discovery.k8s.io/v1;"),
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
fn documents_are_split_as_yaml_does() {
    let text = "%YAML 1.2\n---\n# nothing\n--- {apiVersion: v1, kind: Secret}\n---\napiVersion: v1\nkind: ConfigMap\ndata:\n  x: |\n    a\n    ---\n    b\n...\n---\n---suffix: 1\n";
    let content = documents::read(text, Path::new("x.yaml"));
    assert_eq!((content.ignored, content.problems.len()), (2, 1), "{:?}", content.problems);
    assert!(content.problems[0].field == "kind" && content.problems[0].origin.line == 15, "{:?}", content.problems);
}

#[test]
fn an_alias_bomb_is_rejected() {
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
fn unreadable_files_are_reported() {
    let d = dir(&[("good.yaml", GOOD)]);
    fs::write(d.path().join("binary.yaml"), [0xc3, 0x28, 0x00]).unwrap();
    std::os::unix::fs::symlink("gone", d.path().join("dangling.yaml")).unwrap();
    std::os::unix::net::UnixListener::bind(d.path().join("socket.yaml")).unwrap();
    fs::File::create(d.path().join("huge.yaml")).unwrap().set_len(FILE_MAX + 1).unwrap();
    let loaded = load(d.path(), None).unwrap();
    assert_eq!(object_names(&loaded), ["default/web"]);
    let found = problems(&loaded);
    for (i, expected) in ["binary.yaml:1", "dangling.yaml:0", "huge.yaml:0", "socket.yaml:0"].iter().enumerate() {
        assert!(found[i].starts_with(expected), "{found:?}");
    }
}

#[test]
fn yaml_1_1_words_are_truth_values_where_one_is_expected() {
    let names = service("on", "10.0.0.1").replace("{name: on}", "{name: on, namespace: n}").replace("{port: 80}", "{name: y, port: 80}");
    let rows = [
        ("yes", Some(true)),
        ("Off", Some(false)),
        ("n", Some(false)),
        ("true", Some(true)),
        ("\"yes\"", None),
        ("maybe", None),
        ("1", None),
    ];
    for (word, ready) in rows {
        let endpoints = format!("[10.1.0.1]}}, {{addresses: [10.1.0.2], conditions: {{ready: {word}}}}}");
        let text = format!("{names}---\n{}", slice("web-1").replace("[10.1.0.1]}", &endpoints));
        let loaded = load(dir(&[("x.yaml", &text)]).path(), None).unwrap();
        assert_eq!(object_names(&loaded), ["n/on", "default/web-1"], "{word}: {:?}", problems(&loaded));
        let Object::Slice(s) = &loaded.objects[1] else { panic!("a slice") };
        assert_eq!(s.endpoints.get(1).map(|e| e.ready), ready, "{word}: {:?}", s.problems);
        assert_eq!(
            s.problems.iter().filter(|p| p.field == "endpoints[1].conditions.ready").count(),
            usize::from(ready.is_none()),
            "{word}"
        );
    }
}

#[test]
fn numbers_are_those_of_kubectl() {
    for (text, port) in
        [("0120", 80), ("0x50", 80), ("0o120", 80), ("0b1010000", 80), ("8_0", 80), ("80.0", 80), ("8e1", 80), ("+80", 80), ("080", 80)]
    {
        let loaded =
            load(dir(&[("x.yaml", &service("a", "10.0.0.1").replace("port: 80", &format!("port: {text}")))]).path(), None).unwrap();
        let Some(Object::Service(s)) = loaded.objects.first() else { panic!("{text}: {:?}", problems(&loaded)) };
        assert_eq!((s.ports[0].port, problems(&loaded)), (port, vec![]), "{text}");
    }
    // Values that fit no number do not matter where none is read.
    for text in ["1e999", ".inf", ".nan", "123456789012345678901234567890", "0x", "1:30", "2026-01-01", "!!str 5", "!x y", "!!binary eA=="]
    {
        let object = service("a", "10.0.0.1").replace("{name: a}", &format!("{{name: a, labels: {{x: {text}}}}}"));
        let loaded = load(dir(&[("x.yaml", &object)]).path(), None).unwrap();
        assert_eq!((object_names(&loaded), problems(&loaded)), (vec!["default/a".to_owned()], vec![]), "{text}");
    }
}

/// A Service as JSON.
fn json(name: &str, ip: &str) -> String {
    format!(
        "{{\"apiVersion\": \"v1\", \"kind\": \"Service\",\n \"metadata\": {{\"name\": \"{name}\"}},\n \"spec\": {{\"clusterIP\": \"{ip}\", \"ports\": [{{\"port\": 80}}]}}}}"
    )
}

#[test]
fn json_and_yaml_in_any_order() {
    let (a, b, c) = (json("a", "10.0.0.1"), json("b", "10.0.0.2"), service("c", "10.0.0.3"));
    let list = format!("{{\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [{a}, {b}]}}");
    let rows: [(&str, String, &[&str]); 9] = [
        ("two.json", format!("{a}\n{b}\n"), &["default/a", "default/b"]),
        ("close.json", format!("{a}{b}"), &["default/a", "default/b"]),
        ("two.yaml", format!("\n\n{a}\n\n\n{b}"), &["default/a", "default/b"]),
        ("mixed.yaml", format!("{a}\n{b}\n---\n{c}---\n{}", json("d", "10.0.0.4")), &["default/a", "default/b", "default/c", "default/d"]),
        ("mixed.json", format!("---\n{c}---\n{a}\n"), &["default/c", "default/a"]),
        ("yaml.json", c, &["default/c"]),
        ("list.yaml", list.clone(), &["default/a", "default/b"]),
        ("lists.json", format!("{list}\n{}", json("d", "10.0.0.4")), &["default/a", "default/b", "default/d"]),
        ("comma.json", a.replace("80}]}", "80},]}"), &["default/a"]),
    ];
    for (name, text, expected) in rows {
        let loaded = load(dir(&[(name, &text)]).path(), None).unwrap();
        assert_eq!((object_names(&loaded), problems(&loaded)), (expected.iter().map(ToString::to_string).collect(), vec![]), "{name}");
    }
    let d = dir(&[("lines.json", &format!("\n{a}\n\n{b}"))]);
    let lines: Vec<u32> = load(d.path(), None).unwrap().objects.iter().map(|o| o.origin().line).collect();
    assert_eq!(lines, [2, 6]);
}

#[test]
fn an_unreadable_json_object_costs_no_other() {
    let (a, b) = (json("a", "10.0.0.1"), json("b", "10.0.0.2"));
    let rows = [
        ("{\"kind\": \"Service\" \"x\": 1}", "x.json:4  : not readable as JSON: a comma or a closing bracket is missing here"),
        ("{\"kind\" \"Service\"}", "a colon is missing behind a key"),
        ("{\"kind\": }", "a value is missing here"),
        ("{\"kind\": \"x}", "its closing quote is missing"),
        ("{\"kind\": [1, 2}", "a comma or a closing bracket is missing here"),
        ("{\"kind\": {\"a\": 1}", "a comma or a closing bracket is missing here"),
        ("{kind: {\"a\": 1}}", "a key is missing, or not in double quotes"),
        ("text", "after a JSON object only another one, or a line `---`, may follow"),
    ];
    for (bad, words) in rows {
        let loaded = load(dir(&[("x.json", &format!("{a}\n{bad}\n{b}\n"))]).path(), None).unwrap();
        let found = problems(&loaded);
        assert_eq!(object_names(&loaded), ["default/a", "default/b"], "{bad}: {found:?}");
        assert!(found.len() == 1 && found[0].contains(words) && found[0].ends_with("; this document is skipped"), "{bad}: {found:?}");
    }
    let loaded = load(dir(&[("x.json", &format!("{a}\n{{\"kind\": [1"))]).path(), None).unwrap();
    assert!(problems(&loaded)[0].contains("it ends in the middle: a closing bracket or quote is missing"), "{:?}", problems(&loaded));
}

#[test]
fn files_of_other_encodings() {
    let text = format!("# Größe\n{}", service("a", "10.0.0.1"));
    let utf16 = |mark: [u8; 2], to: fn(u16) -> [u8; 2]| [mark.to_vec(), text.encode_utf16().flat_map(to).collect()].concat();
    let latin1: Vec<u8> = text.chars().map(|c| c as u8).collect();
    let all =
        [utf16([0xff, 0xfe], u16::to_le_bytes), utf16([0xfe, 0xff], u16::to_be_bytes), [b"\xef\xbb\xbf", text.as_bytes()].concat(), latin1];
    for bytes in all {
        let d = dir(&[]);
        fs::write(d.path().join("x.yaml"), &bytes).unwrap();
        let loaded = load(d.path(), None).unwrap();
        assert_eq!((object_names(&loaded), problems(&loaded)), (vec!["default/a".to_owned()], vec![]), "{:x?}", &bytes[..4]);
        assert_eq!(loaded.objects[0].origin().line, 2);
    }
}

#[test]
fn messages_are_for_people() {
    let helm = "`{{` looks like a Helm template: give nomagic the output of `helm template`";
    let table: &[(&str, &str)] = &[
        ("a: {x: 1\n", "not readable as YAML"),
        ("{{ include \"x\" . }}\n", helm),
        ("kind: Service\nmetadata: {name: {{ .Values.name }}}\n", helm),
        ("{{- if .Values.on }}\napiVersion: v1\nkind: Service\n{{- end }}\n", helm),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: '{{ .Values.name }}'}\nspec: {}\n", helm),
        ("apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {clusterIP: '{{ .ip }}', ports: [{port: 80}]}\n", helm),
        ("a: *b\n", "an alias (*name) without its anchor"),
        ("? [a, b]\n: c\n", "plain text is expected, such as a key"),
        (
            "apiVersion: v1\nkind: Service\nkind: Service\nmetadata: {name: x}\nspec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}\n",
            "m.yaml:3 Service default/x : the key \"kind\" is given twice in one mapping; as in kubectl, the last one counts",
        ),
        ("kind: Service\nmetadata: {name: x}\nspec: {}\n", "Service default/x apiVersion: missing: v1 is expected"),
        ("kind: EndpointSlice\nmetadata: {name: x}\n", "EndpointSlice default/x apiVersion: missing: discovery.k8s.io/v1 is expected"),
        ("- a\n- b\n", "a mapping with apiVersion and kind is expected"),
    ];
    for (text, expected) in table {
        let loaded = load(dir(&[("m.yaml", text)]).path(), None).unwrap();
        let mut found = problems(&loaded);
        found.extend(loaded.objects.iter().flat_map(Object::problems).map(ToString::to_string));
        assert!(found.iter().any(|p| p.contains(expected)), "{text:?}: {found:?}");
        for word in ["Policy", "Options", "i32", "scalar", "sequence", "trailing", "invalid type", "expected value"] {
            assert!(!found.iter().any(|p| p.contains(word)), "{word}: {found:?}");
        }
    }
    // Silence about kinds of other groups, and about templates in texts that are not read.
    for text in ["apiVersion: serving.knative.dev/v1\nkind: Service\n", "apiVersion: v1\nkind: ConfigMap\ndata: {x: '{{ y }}'}\n"] {
        let loaded = load(dir(&[("m.yaml", text)]).path(), None).unwrap();
        assert_eq!((problems(&loaded), loaded.ignored), (vec![], 1), "{text}");
    }
}

#[test]
fn problems_of_a_file_are_limited() {
    let loaded = load(dir(&[("x.json", &"{}\n".repeat(5_000))]).path(), None).unwrap();
    assert_eq!(loaded.problems.len(), 1_001);
    assert!(loaded.problems[1_000].message.contains("4000 more problems"), "{:?}", loaded.problems[1_000]);
}

fn endpoints(name: &str, addr: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Endpoints\nmetadata: {{name: {name}}}\nsubsets: [{{addresses: [{{ip: {addr}}}], ports: [{{port: 8080}}]}}]\n"
    )
}

/// The endpoints in force, by the object that has them.
fn in_force(loaded: &ManifestSet) -> Vec<String> {
    let slices = loaded.objects.iter().filter_map(|o| if let Object::Slice(s) = o { Some(s) } else { None });
    slices.filter(|s| s.ignored.is_none()).flat_map(|s| s.endpoints.iter().map(move |e| format!("{s} {}", e.addr))).collect()
}

#[test]
fn endpoints_count_unless_there_are_slices() {
    let d = dir(&[("a.yaml", &endpoints("web", "10.1.0.9"))]);
    let alone = load(d.path(), None).unwrap();
    assert_eq!((in_force(&alone), alone.ignored), (vec!["Endpoints default/web 10.1.0.9".to_owned()], 0));
    fs::write(d.path().join("b.yaml"), slice("web-1")).unwrap();
    let both = load(d.path(), Some(&alone)).unwrap();
    assert_eq!((in_force(&both), problems(&both)), (vec!["EndpointSlice default/web-1 10.1.0.1".to_owned()], vec![]));
    fs::remove_file(d.path().join("b.yaml")).unwrap();
    assert_eq!(in_force(&load(d.path(), Some(&both)).unwrap()), ["Endpoints default/web 10.1.0.9"]);

    // Lists, duplicates, and an edit that makes them unreadable.
    let list = "apiVersion: v1\nkind: EndpointsList\nitems:\n- {metadata: {name: a}, subsets: [{addresses: [{ip: 10.1.0.1}, {ip: 'fd00::1'}], ports: [{port: 80}]}]}\n";
    let d = dir(&[("a.yaml", list), ("b.yaml", &endpoints("a", "10.1.0.9")), ("c.yaml", &endpoints("c", "10.1.0.3"))]);
    let first = load(d.path(), None).unwrap();
    let expected = ["Endpoints default/a 10.1.0.1", "Endpoints default/a fd00::1", "Endpoints default/c 10.1.0.3"];
    assert_eq!(in_force(&first), expected);
    assert!(problems(&first).len() == 1 && problems(&first)[0].contains("b.yaml:1 Endpoints default/a"), "{:?}", problems(&first));
    fs::write(d.path().join("a.yaml"), list.replace("[{addresses", "[7, {addresses: 5}, 8]}#")).unwrap();
    fs::remove_file(d.path().join("b.yaml")).unwrap();
    let kept = load(d.path(), Some(&first)).unwrap();
    let mut now = in_force(&kept);
    now.sort();
    assert_eq!(now, expected);
    assert!(problems(&kept).iter().any(|p| p.contains("stays in force: Endpoints default/a")), "{:?}", problems(&kept));
}

#[test]
fn the_first_of_two_duplicates_is_kept() {
    let d = dir(&[("a.yaml", &service("web", "10.0.0.1")), ("b.yaml", &service("web", "10.0.0.2"))]);
    let loaded = load(d.path(), None).unwrap();
    let Object::Service(s) = &loaded.objects[0] else { panic!("a Service") };
    assert_eq!((loaded.objects.len(), s.cluster_ips[0].to_string().as_str()), (1, "10.0.0.1"));
    assert!(problems(&loaded)[0].contains("b.yaml:1 Service default/web") && loaded.problems[0].message.contains("a.yaml:1"));
}

#[test]
fn an_invalid_edit_removes_nothing() {
    let both = format!("{}---\n{}", service("a", "10.0.0.1"), service("b", "10.0.0.2"));
    let d = dir(&[("x.yaml", &both), ("y.yaml", &service("other", "10.0.0.9"))]);
    let first = load(d.path(), None).unwrap();
    let x = d.path().join("x.yaml");

    // Garbage in the whole file, then in one document, then a value of the wrong type.
    fs::write(&x, "}{").unwrap();
    let garbage = load(d.path(), Some(&first)).unwrap();
    assert_eq!(object_names(&garbage), ["default/other", "default/a", "default/b"]);
    assert!(
        problems(&garbage)[1].contains("the last valid version stays in force: Service default/a, Service default/b"),
        "{:?}",
        problems(&garbage)
    );

    fs::write(&x, format!("{}---\n}}{{\n", service("a", "10.0.0.7"))).unwrap();
    let half = load(d.path(), Some(&garbage)).unwrap();
    assert_eq!(object_names(&half), ["default/a", "default/other", "default/b"]);
    let Object::Service(a) = &half.objects[0] else { panic!("a Service") };
    assert_eq!(a.cluster_ips[0].to_string(), "10.0.0.7", "a readable object is in force");

    fs::write(&x, service("b", "10.0.0.2").replace("port: 80", "port: eighty")).unwrap();
    let typed = load(d.path(), Some(&half)).unwrap();
    assert_eq!(object_names(&typed), ["default/other", "default/b"], "a was removed from the file, b has a wrong type");

    // Fixed: no earlier object is left. Deleting a file removes its objects.
    fs::write(&x, service("c", "10.0.0.3")).unwrap();
    let fixed = load(d.path(), Some(&typed)).unwrap();
    assert_eq!((object_names(&fixed), problems(&fixed)), (vec!["default/c".to_string(), "default/other".into()], vec![]));
    fs::remove_file(&x).unwrap();
    assert_eq!(object_names(&load(d.path(), Some(&fixed)).unwrap()), ["default/other"]);
}

#[test]
fn what_is_known_of_unreadable_objects_is_kept() {
    let broken = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: 10.96.0.7, ports: 7}\n";
    let dir = dir(&[("a.yaml", broken)]);
    let first = load(dir.path(), None).unwrap();
    let Some(Object::Service(stand_in)) = first.objects.first() else { panic!("{:?}", problems(&first)) };
    assert!(stand_in.stands_in() && stand_in.cluster_ips.len() == 1 && !first.incomplete);
    // A valid version replaces it, and stays in force when the object is unreadable again.
    for text in [service("a", "10.96.0.7"), broken.into()] {
        fs::write(dir.path().join("a.yaml"), text).unwrap();
        let loaded = load(dir.path(), Some(&first)).unwrap();
        assert_eq!(loaded.objects.len(), 1, "{:?}", problems(&loaded));
    }
    let valid = {
        fs::write(dir.path().join("a.yaml"), service("a", "10.96.0.7")).unwrap();
        load(dir.path(), Some(&first)).unwrap()
    };
    fs::write(dir.path().join("a.yaml"), broken).unwrap();
    let after = load(dir.path(), Some(&valid)).unwrap();
    assert!(matches!(&after.objects[..], [Object::Service(s)] if !s.stands_in()), "{:?}", problems(&after));
    // Of a document that is no YAML nothing is known.
    fs::write(dir.path().join("b.yaml"), "kind: [").unwrap();
    assert!(load(dir.path(), Some(&valid)).unwrap().incomplete);
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
