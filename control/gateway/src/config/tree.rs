//! A YAML document as untyped values with their positions.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

/// A YAML value.
#[derive(Debug)]
pub(crate) enum Tree {
    /// `null`, `~`, or nothing.
    Null,
    /// `true` or `false`.
    Flag(bool),
    /// An integer.
    Whole(i128),
    /// Any other number.
    Number(f64),
    Text(String),
    List(Vec<Spanned<Tree>>),
    /// Entries in the order of the document.
    Mapping(Vec<(String, Spanned<Tree>)>),
}

/// The value of a nested field, such as `node.ips[2]`.
pub(crate) fn find<'t>(root: &'t Spanned<Tree>, field: &str) -> Option<&'t Spanned<Tree>> {
    let mut value = root;
    for step in field.split(['.', '[']).filter(|s| !s.is_empty()) {
        value = match (&value.value, step.strip_suffix(']')) {
            (Tree::List(list), Some(index)) => list.get(index.parse::<usize>().ok()?)?,
            (Tree::Mapping(entries), _) => &entries.iter().find(|(key, _)| key == step)?.1,
            _ => return None,
        };
    }
    Some(value)
}

/// The location of a field's value; `None` if the text is not valid YAML.
pub(super) fn location_of(text: &str, field: &str) -> Option<Location> {
    let root: Spanned<Tree> = serde_saphyr::from_str(text).ok()?;
    find(&root, field).map(|value| value.referenced)
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Tree, D::Error> {
        struct TreeVisitor;

        impl<'de> Visitor<'de> for TreeVisitor {
            type Value = Tree;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("anything")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Tree::Mapping(entries))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
                let mut list = Vec::new();
                while let Some(element) = seq.next_element()? {
                    list.push(element);
                }
                Ok(Tree::List(list))
            }

            fn visit_bool<E>(self, flag: bool) -> Result<Tree, E> {
                Ok(Tree::Flag(flag))
            }

            fn visit_i64<E>(self, n: i64) -> Result<Tree, E> {
                Ok(Tree::Whole(n.into()))
            }

            fn visit_u64<E>(self, n: u64) -> Result<Tree, E> {
                Ok(Tree::Whole(n.into()))
            }

            fn visit_i128<E>(self, n: i128) -> Result<Tree, E> {
                Ok(Tree::Whole(n))
            }

            fn visit_u128<E>(self, n: u128) -> Result<Tree, E> {
                Ok(i128::try_from(n).map_or(Tree::Number(n as f64), Tree::Whole))
            }

            fn visit_f64<E>(self, n: f64) -> Result<Tree, E> {
                Ok(Tree::Number(n))
            }

            fn visit_str<E>(self, text: &str) -> Result<Tree, E> {
                Ok(Tree::Text(text.into()))
            }

            fn visit_unit<E>(self) -> Result<Tree, E> {
                Ok(Tree::Null)
            }
        }

        d.deserialize_any(TreeVisitor)
    }
}
