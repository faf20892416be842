//! Lists: selectors, versions, pages.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Body;
use axum::http::Response;
use serde_json::{Value, json};

use crate::query::Query;
use crate::resources::ResourcePath;
use crate::response::{failure, json_response};
use crate::selector::Selector;
use crate::state::SharedState;
use crate::store::{ObjectKey, Store};

/// One page of a list.
struct ItemPage {
    version: u64,
    items: Vec<Arc<Value>>,
    /// The last key of the page, and the number of objects after it.
    more: Option<(ObjectKey, usize)>,
}

/// Handles `GET` of a collection.
pub(crate) fn handle(shared: &Arc<SharedState>, path: &ResourcePath, query: &Query) -> Response<Body> {
    let selector = match Selector::parse(query.text("labelSelector"), query.text("fieldSelector")) {
        Ok(selector) => selector,
        Err(message) => return failure(shared, 400, &message),
    };
    let page = page(&shared.state().store, path, query, &selector);
    match page {
        Ok(page) => json_response(shared, 200, &list(path, page)),
        Err((code, message)) => failure(shared, code, &message),
    }
}

fn list(path: &ResourcePath, page: ItemPage) -> Value {
    let mut metadata = json!({"resourceVersion": page.version.to_string()});
    if let Some((last, more)) = page.more {
        metadata["continue"] = json!(token(page.version, &last));
        metadata["remainingItemCount"] = json!(more);
    }
    let items: Vec<Value> = page.items.iter().map(|o| without_kind(o)).collect();
    json!({"kind": format!("{}List", path.resource.kind()), "apiVersion": path.resource.version(), "metadata": metadata, "items": items})
}

/// Items of typed lists have neither `kind` nor `apiVersion`.
fn without_kind(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("kind");
        fields.remove("apiVersion");
    }
    object
}

fn page(store: &Store, path: &ResourcePath, query: &Query, selector: &Selector) -> Result<ItemPage, (u16, String)> {
    let limit = query.number("limit").unwrap_or(0) as usize;
    let expired = || (410, "The provided continue parameter is too old to display a consistent list result.".to_owned());
    let (version, after) = match query.text("continue") {
        "" => (version(store, query)?, None),
        token => {
            let (version, key) = read_token(token, path).ok_or((400, "continue key is not valid".to_owned()))?;
            (version, Some(key))
        }
    };
    let objects: BTreeMap<ObjectKey, Arc<Value>> = store.at(path.resource, version).ok_or_else(expired)?;
    let selected = |key: &ObjectKey, object: &Value| path.namespace.as_ref().is_none_or(|n| *n == key.1) && selector.matches(object);
    let mut left: Vec<(ObjectKey, Arc<Value>)> =
        objects.into_iter().filter(|(key, o)| after.as_ref().is_none_or(|a| key > a) && selected(key, o)).collect();
    // The real server's watch cache ignores the limit for version 0.
    let whole = limit == 0 || limit >= left.len() || query.text("resourceVersion") == "0";
    let rest = if whole { 0 } else { left.len() - limit };
    left.truncate(left.len() - rest);
    let more = left.last().filter(|_| rest > 0).map(|(key, _)| (key.clone(), rest));
    Ok(ItemPage { version, items: left.into_iter().map(|(_, o)| o).collect(), more })
}

/// The version of a list without a continue token.
fn version(store: &Store, query: &Query) -> Result<u64, (u16, String)> {
    let now = store.version();
    let (text, how) = (query.text("resourceVersion"), query.text("resourceVersionMatch"));
    if text.is_empty() || text == "0" {
        return Ok(now);
    }
    let requested: u64 = text.parse().map_err(|_| (400, format!("invalid resource version {text:?}")))?;
    match how {
        _ if requested > now => Err((504, format!("Too large resource version: {requested}, current: {now}"))),
        "" | "NotOlderThan" => Ok(now),
        "Exact" if requested < store.compacted() => {
            Err((410, format!("The resourceVersion for the provided list is too old: {requested}")))
        }
        "Exact" => Ok(requested),
        other => Err((400, format!("invalid resourceVersionMatch {other:?}"))),
    }
}

/// The continue token for the next page.
fn token(version: u64, last: &ObjectKey) -> String {
    format!("{version}:{}:{}", last.1, last.2)
}

fn read_token(token: &str, path: &ResourcePath) -> Option<(u64, ObjectKey)> {
    let mut parts = token.splitn(3, ':');
    let version = parts.next()?.parse().ok()?;
    Some((version, (path.resource, parts.next()?.into(), parts.next()?.into())))
}
