//! Files of Kubernetes objects: any text, YAML or JSON. An invalid document does not affect the others, and every object that is read compiles.

use nomagic::config::Config;
use nomagic::manifests;
use nomagic_table::compile::{Compiler, TARGETS_MAX};
use nomagic_table::index::Index;

/// Behind any document, this Service is read.
const GOOD: &str =
    "\n---\napiVersion: v1\nkind: Service\nmetadata: {name: good, namespace: fuzz}\nspec: {clusterIP: 10.96.0.77, ports: [{port: 80}]}\n";

/// Runs one input. Its first byte chooses the file's format; the file is then read a second time, followed by a good Service.
pub fn run(data: &[u8]) {
    let Some((kind, text)) = data.split_first() else { return };
    let json = kind % 2 == 1;
    let file = tempfile::Builder::new().suffix(if json { ".json" } else { ".yaml" }).tempfile().expect("a scratch file");
    std::fs::write(file.path(), text).expect("a scratch file");
    let loaded = manifests::load(file.path(), None).expect("the file is there");
    crate::assert_readable(loaded.problems.iter());
    let index = Index::of(loaded.objects.iter().cloned());
    let settings = Config::default().settings_for(&["10.0.0.1".parse().expect("an address")], &index);
    let compiled = Compiler::new(TARGETS_MAX).compile(&index, &settings);
    crate::assert_readable(compiled.problems.iter());
    crate::explain(&index, &settings, &compiled);
    // Read again, nothing changes, whatever was wrong.
    let again = manifests::load(file.path(), Some(&loaded)).expect("the file is there");
    assert!(Index::of(again.objects) == index, "the same file is read differently");
    if !json && std::str::from_utf8(text).is_ok() {
        std::fs::write(file.path(), [text, GOOD.as_bytes()].concat()).expect("a scratch file");
        let both = manifests::load(file.path(), Some(&loaded)).expect("the file is there");
        assert!(both.objects.iter().any(|object| object.key().name == "good"), "the document behind it is lost");
    }
}
