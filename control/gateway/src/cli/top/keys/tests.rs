//! Keys, one after the other.

use super::super::model::table::{Cell, Column, Row};
use super::*;

/// Rows with these names; each opens the backends of its Service.
fn body(names: &[&str], place: &Place) -> Body {
    let row = |name: &&str| {
        Row::new((*name).into(), vec![Cell::Text((*name).into()), Cell::Count(1)]).opening(View::Backends(Some((*name).into())))
    };
    let columns = vec![Column::text("Service", "service", 0), Column::number("backends", "backends", 0)];
    Body::Table(Table::new(columns, names.iter().map(row).collect(), place, 0))
}

struct User {
    state: State,
    names: Vec<&'static str>,
}

impl User {
    fn new() -> User {
        User { state: State::new(View::Services), names: vec!["a/a", "a/b", "a/c", "a/d"] }
    }

    fn press(&mut self, code: KeyCode) -> &mut User {
        let body = body(&self.names, &self.state.top);
        self.state.press(KeyEvent::new(code, KeyModifiers::NONE), &body, 2);
        self
    }

    fn keys(&mut self, keys: &str) -> &mut User {
        for c in keys.chars() {
            self.press(KeyCode::Char(c));
        }
        self
    }

    fn selected(&self) -> usize {
        self.state.top.position(&body(&self.names, &self.state.top))
    }
}

#[test]
fn enter_goes_down_and_escape_comes_back_to_the_same_row() {
    let mut user = User::new();
    user.press(KeyCode::Down).press(KeyCode::Enter);
    assert_eq!(user.state.top.view, View::Backends(Some("a/b".into())));
    assert!(user.state.way().eq([&View::Services, &View::Backends(Some("a/b".into()))]));
    // The order may change meanwhile.
    user.names = vec!["a/0", "a/a", "a/b"];
    user.press(KeyCode::Esc);
    assert_eq!((user.state.top.view.clone(), user.selected()), (View::Services, 2));
    user.names = vec!["a/0"];
    assert_eq!(user.selected(), 0, "its row is gone");
    user.press(KeyCode::Esc).press(KeyCode::Esc);
    assert!(!user.state.is_over && user.state.top.view == View::Services);
    user.names.clear();
    user.press(KeyCode::Enter).press(KeyCode::Down).press(KeyCode::End);
    assert_eq!((user.state.top.view.clone(), user.selected()), (View::Services, 0));
}

#[test]
fn the_selection_stays_within_the_rows() {
    let mut user = User::new();
    for (code, position) in [
        (KeyCode::Up, 0),
        (KeyCode::PageDown, 2),
        (KeyCode::PageDown, 3),
        (KeyCode::Down, 3),
        (KeyCode::PageUp, 1),
        (KeyCode::End, 3),
        (KeyCode::Home, 0),
        (KeyCode::Char('j'), 1),
        (KeyCode::Char('k'), 0),
    ] {
        user.press(code);
        assert_eq!(user.selected(), position, "{code:?}");
    }
}

#[test]
fn a_filter_is_typed_kept_and_cleared() {
    let mut user = User::new();
    user.keys("/aq");
    assert!(user.state.is_typing && !user.state.is_over, "q is a letter of the filter");
    user.press(KeyCode::Backspace).keys("/c").press(KeyCode::Enter);
    assert_eq!((user.state.top.filter.as_str(), user.state.is_typing, user.selected()), ("a/c", false, 0));
    user.press(KeyCode::Enter);
    assert_eq!(user.state.top.view, View::Backends(Some("a/c".into())));
    user.press(KeyCode::Esc).press(KeyCode::Esc);
    assert_eq!((user.state.top.filter.as_str(), user.state.top.view.clone()), ("", View::Services));
    user.keys("/");
    user.keys(&"x".repeat(200));
    assert_eq!(user.state.top.filter.len(), FILTER_MAX);
    user.press(KeyCode::Esc);
    assert_eq!((user.state.top.filter.as_str(), user.state.is_typing), ("", false));
}

#[test]
fn sorting_goes_through_the_columns() {
    let mut user = User::new();
    user.keys("r");
    assert!(user.state.top.is_reversed);
    user.keys("s");
    assert_eq!((user.state.top.sort, user.state.top.is_reversed), (Some(1), false));
    user.keys("s");
    assert_eq!(user.state.top.sort, Some(0));
}

#[test]
fn numbers_and_tab_change_the_view_and_forget_the_way() {
    let mut user = User::new();
    user.press(KeyCode::Enter).keys("4");
    assert_eq!((user.state.top.view.clone(), user.state.way().count()), (View::Reasons, 1));
    user.press(KeyCode::Tab).press(KeyCode::Tab);
    assert_eq!(user.state.top.view, View::Tables);
    user.press(KeyCode::Tab);
    assert_eq!(user.state.top.view, View::Services);
    user.press(KeyCode::BackTab);
    assert_eq!(user.state.top.view, View::Tables);
}

#[test]
fn clients_are_those_of_the_service() {
    let mut user = User::new();
    user.press(KeyCode::Down).keys("c");
    assert_eq!(user.state.top.view, View::Clients(Some("a/b".into())));
    user.press(KeyCode::Esc).press(KeyCode::Enter).keys("c");
    assert_eq!(user.state.top.view, View::Clients(Some("a/b".into())));
}

#[test]
fn it_ends_by_q_and_by_control_c_in_any_mode() {
    let mut user = User::new();
    user.keys("p?");
    assert!(user.state.is_paused && user.state.shows_help);
    user.keys("x");
    assert!(!user.state.shows_help && !user.state.is_over);
    assert!(user.keys("?q").state.is_over);
    let mut user = User::new();
    user.keys("/");
    let shown = body(&user.names, &user.state.top);
    user.state.press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL), &shown, 2);
    assert!(user.state.is_over);
}

#[test]
fn a_text_scrolls() {
    let mut state = State::new(View::Explain("tcp".into()));
    let text = Body::Text((0..9).map(|n| n.to_string()).collect());
    let mut press = |code| {
        state.press(KeyEvent::new(code, KeyModifiers::NONE), &text, 4);
        state.top.position(&text)
    };
    assert_eq!([press(KeyCode::Down), press(KeyCode::PageDown), press(KeyCode::End), press(KeyCode::Up)], [1, 5, 8, 7]);
    press(KeyCode::Char('/'));
    assert!(!state.is_typing);
}
