//! A YAML document as nothing but values and their places.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

/// A value of any type.
#[derive(Debug)]
pub(crate) enum Tree {
    /// `null`, `~`, or nothing.
    Null,
    /// `true` or `false`.
    Flag(bool),
    /// A whole number.
    Whole(i128),
    /// Another number.
    Number(f64),
    /// Text.
    Text(String),
    /// Values one after another.
    List(Vec<Spanned<Tree>>),
    /// Values by name, in the order of the document.
    Mapping(Vec<(String, Spanned<Tree>)>),
}

/// The value of a field (`node.ips[2]`) below this one.
pub(crate) fn find<'t>(root: &'t Spanned<Tree>, field: &str) -> Option<&'t Spanned<Tree>> {
    let mut place = root;
    for step in field.split(['.', '[']).filter(|s| !s.is_empty()) {
        place = match (&place.value, step.strip_suffix(']')) {
            (Tree::List(list), Some(index)) => list.get(index.parse::<usize>().ok()?)?,
            (Tree::Mapping(entries), _) => &entries.iter().find(|(key, _)| key == step)?.1,
            _ => return None,
        };
    }
    Some(place)
}

/// Where the value of a field stands, if the text can be read at all.
pub(super) fn place_of(text: &str, field: &str) -> Option<Location> {
    let root: Spanned<Tree> = serde_saphyr::from_str(text).ok()?;
    find(&root, field).map(|value| value.referenced)
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Tree, D::Error> {
        struct Anything;

        impl<'de> Visitor<'de> for Anything {
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

        d.deserialize_any(Anything)
    }
}
