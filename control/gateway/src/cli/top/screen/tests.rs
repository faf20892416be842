//! What is drawn, on screens of several sizes.

use nomagic_api::flows::{FLOW_SCHEMA, Flow, FlowFilter, FlowState};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::super::model::tests::status;
use super::super::walk::{Progress, Query, Question, Walk};
use super::*;

const SECOND: u64 = 1_000_000_000;

struct Shown {
    model: Model,
    state: State,
    size: (u16, u16),
    look: Look,
}

impl Shown {
    fn new(view: View, size: (u16, u16)) -> Shown {
        let mut model = Model::default();
        model.take_status(status(100, 1_000), 10 * SECOND);
        model.take_status(status(102, 1_100), 12 * SECOND);
        Shown { model, state: State::new(view), size, look: Look { has_colour: false } }
    }

    fn body(&self) -> Body {
        self.model.body(&self.state.top, self.size.0.into())
    }

    fn press(&mut self, code: KeyCode) {
        let body = self.body();
        self.state.press(KeyEvent::new(code, KeyModifiers::NONE), &body, page(&body, Rect::new(0, 0, self.size.0, self.size.1)));
    }

    fn buffer(&self) -> Buffer {
        let mut terminal = Terminal::new(TestBackend::new(self.size.0, self.size.1)).unwrap();
        let body = self.body();
        let picture = Picture { model: &self.model, state: &self.state, body: &body, look: self.look, every_s: 1.0, now_ns: 13 * SECOND };
        terminal.draw(|frame| picture.draw(frame.area(), frame.buffer_mut())).unwrap();
        terminal.backend().buffer().clone()
    }

    fn lines(&self) -> Vec<String> {
        lines(&self.buffer())
    }
}

/// Every view.
fn views() -> Vec<View> {
    let filter = FlowFilter { service: Some("default/nginx".into()), backend: Some("10.1.0.1:80".into()), ..FlowFilter::default() };
    let more = [View::Backends(Some("default/nginx".into())), View::Flows(filter), View::Explain("tcp 10.0.0.2:1 -> 10.96.0.1:80".into())];
    NUMBERED.iter().cloned().chain(more).collect()
}

#[test]
fn a_small_screen_shows_the_whole_overview() {
    let shown = Shown::new(View::Services, (80, 24)).lines();
    let expected = [
        "nomagic top  ready  up 102 s  workers 1 of 1  every 1 s",
        "in 200/s  out 0/s  kernel 0/s  dropped 0/s  flows 1600 +0/s",
        "",
        " 1 services  2 backends  3 clients  4 reasons  5 workers  6 tables",
        "services, by packets/s",
        "Service        packets/s  bytes/s  new flows/s  drops/s  backends  to backends/s",
        "default/nginx        225     165k           15        0         2            150",
        "shop/web              75    55.0k          5.0       25         1             50",
        "default/gone           0        0            0       50         0              0",
        "",
    ];
    assert_eq!(shown[..10], expected);
    assert_eq!(shown.len(), 24);
    assert_eq!(shown[23], KEYS);
}

#[test]
fn a_large_screen_shows_more_columns() {
    let shown = Shown::new(View::Services, (200, 50)).lines();
    assert!(shown[5].contains("bytes to clients/s") && shown[5].ends_with("flows since start"), "{}", shown[5]);
    assert_eq!(shown.len(), 50);
}

#[test]
fn every_view_fits_every_screen() {
    for size in [(200, 50), (80, 24), (40, 10), (20, 8), (9, 3), (1, 1)] {
        for view in views() {
            let mut shown = Shown::new(view, size);
            for mode in 0..3 {
                let lines = shown.lines();
                assert_eq!(lines.len(), usize::from(size.1));
                assert!(lines.iter().all(|line| line.is_ascii() && line.len() <= usize::from(size.0)), "{lines:#?}");
                shown.press(KeyCode::Char(if mode == 0 { 'p' } else { '?' }));
            }
        }
    }
    for view in views() {
        let shown = Shown::new(view, (80, 24)).lines();
        // Nothing is cut in the middle of a number: the titles are whole.
        assert!(shown[5].len() <= 80 && !shown[5].contains('~'), "{}", shown[5]);
    }
}

#[test]
fn names_cannot_command_the_terminal() {
    let mut shown = Shown::new(View::Services, (80, 24));
    let mut status = status(104, 1_200);
    status.targets[0].service = "x\x1b[2J\x1b]0;owned\x07\u{202e}".into();
    status.not_ready = vec!["port \x1b[31m is down".into()];
    shown.model.take_status(status, 14 * SECOND);
    let lines = shown.lines();
    assert!(lines.iter().all(|line| line.chars().all(|c| matches!(c, ' '..='~'))), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains("\\u{1b}")), "{lines:#?}");
    assert!(lines[2].starts_with("NOT READY: port \\u{1b}[31m"), "{}", lines[2]);
    // As a part of the way, too.
    shown.state = State::new(View::Backends(Some("default/\x1b[2J".into())));
    assert!(shown.lines()[4].starts_with("default/\\u{1b}[2J, by packets/s"), "{:?}", shown.lines()[4]);
}

#[test]
fn the_selected_row_and_the_view_stand_out_without_colour() {
    let mut shown = Shown::new(View::Services, (80, 24));
    let reversed = |buffer: &Buffer| -> Vec<u16> {
        let is_reversed = |y: &u16| buffer.cell((1, *y)).unwrap().modifier.contains(Modifier::REVERSED);
        (0..24).filter(is_reversed).collect()
    };
    assert_eq!(reversed(&shown.buffer()), [3, 6]);
    shown.press(KeyCode::Down);
    let buffer = shown.buffer();
    assert_eq!(reversed(&buffer), [3, 7]);
    assert!(buffer.content.iter().all(|cell| (cell.fg, cell.bg) == (Color::Reset, Color::Reset)));
    shown.look.has_colour = true;
    assert!(shown.buffer().content.iter().any(|cell| cell.fg == Color::Red), "drops are red");
}

#[test]
fn the_way_the_filter_and_the_pause_are_shown() {
    let mut shown = Shown::new(View::Services, (80, 24));
    shown.press(KeyCode::Char('/'));
    "shop".chars().for_each(|c| shown.press(KeyCode::Char(c)));
    assert!(shown.lines()[23].starts_with("filter: shop_"), "{:?}", shown.lines());
    shown.press(KeyCode::Enter);
    shown.press(KeyCode::Char('r'));
    assert_eq!(shown.lines()[4], "services, by packets/s, reversed, 1 of 3 with `shop`");
    shown.press(KeyCode::Enter);
    shown.press(KeyCode::Char('p'));
    let lines = shown.lines();
    assert_eq!(lines[4], "services > shop/web, by packets/s");
    assert!(lines[0].ends_with("PAUSED, p goes on"), "{}", lines[0]);
    assert!(lines[6].starts_with("8080/TCP  10.1.0.3:80"), "{}", lines[6]);
    assert_eq!(lines[22], "80/TCP: rejects 0 packets/s, drops 25 packets/s");
}

#[test]
fn long_lists_turn_their_pages() {
    let mut shown = Shown::new(View::Services, (80, 24));
    let mut many = status(104, 1_200);
    let first = many.targets[0].clone();
    many.targets = (0..40).map(|n| nomagic_api::Target { service: format!("s{n:02}"), ..first.clone() }).collect();
    many.service_ports.clear();
    shown.model.take_status(many, 14 * SECOND);
    shown.press(KeyCode::Char('s'));
    (0..11).for_each(|_| shown.press(KeyCode::Char('s')));
    assert_eq!(shown.state.top.sort, Some(1), "all columns were gone through");
    assert!(shown.lines()[6].starts_with("default/s00") && shown.lines()[22].starts_with("default/s16"), "{:#?}", shown.lines());
    shown.press(KeyCode::PageDown);
    assert!(shown.lines()[6].starts_with("default/s17"), "{:#?}", shown.lines());
    shown.press(KeyCode::End);
    let lines = shown.lines();
    assert!(lines[6].starts_with("default/s34") && lines[11].starts_with("default/s39") && lines[12].is_empty(), "{lines:#?}");
}

#[test]
fn flows_keep_their_ends_on_a_narrow_screen() {
    let filter = FlowFilter { service: Some("default/nginx".into()), backend: Some("[fd00::1]:80".into()), ..FlowFilter::default() };
    let mut shown = Shown::new(View::Flows(filter.clone()), (80, 24));
    let flow = Flow {
        schema: FLOW_SCHEMA,
        proto: "TCP".into(),
        client: "[2001:db8:1111:2222:3333:4444:5555:6666]:40000".into(),
        destination: "[fd00:10:109:1111:2222:3333:4444:5555]:443".into(),
        service: Some("default/nginx:https".into()),
        backend: "[fd00::1]:80".into(),
        snat: None,
        state: FlowState::Established,
        idle_ms: 3_000,
        expires_in_ms: 86_400_000,
    };
    let query = Query { filter, count_by: None };
    assert_eq!(Question::of(&shown.state.top.view), Some(Question::Walk(query.clone())));
    shown.model.take_walk(Walk { flows: vec![flow], matched: 1, progress: Progress::Whole, ..Walk::new(query) }, 13 * SECOND);
    let lines = shown.lines();
    assert_eq!(lines[5].split_whitespace().collect::<Vec<_>>(), ["proto", "client", "destination", "state", "idle"]);
    for words in ["[2001:db8", "]:40000", "]:443", "ESTABLISHED", "3 s"] {
        assert!(lines[6].contains(words), "{words}: {}", lines[6]);
    }
    let wide = Shown { size: (200, 50), ..shown };
    assert!(wide.lines()[6].contains("[2001:db8:1111:2222:3333:4444:5555:6666]:40000"), "{:?}", wide.lines());
}

#[test]
fn before_the_first_answer_the_screen_says_what_it_waits_for() {
    let mut shown = Shown { model: Model::default(), ..Shown::new(View::Services, (80, 24)) };
    assert_eq!(shown.lines()[0], "nomagic top  waiting for the gateway");
    shown.model.take_silence("no nomagic answers on /run/nomagic/control.sock".into(), 11 * SECOND);
    assert_eq!(shown.lines()[2], "NO ANSWER for 2 s, still trying: no nomagic answers on /run/nomagic/control.sock");
    shown.model.take_silence("no nomagic answers on /run/nomagic/control.sock (is it running?)".into(), 11 * SECOND);
    assert_eq!(shown.lines()[2], "NO ANSWER for 2 s, still trying: no nomagic answers on /run/nomagic/control.soc~");
}

#[test]
fn the_sentence_of_the_selected_reason_is_on_every_screen() {
    let shown = Shown::new(View::Reasons, (80, 24)).lines();
    assert!(shown[6].starts_with("dropped  no_endpoints"), "{shown:#?}");
    assert_eq!(shown[22], "no_endpoints: the Service has no usable endpoint");
}
