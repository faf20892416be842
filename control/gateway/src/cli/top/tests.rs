//! Arguments, and what is asked in an interval.

use clap::Parser;
use nomagic_api::flows::{FlowFilter, FlowsPage};
use nomagic_api::socket::{self, Request, Response};
use nomagic_api::{Conntrack, Status};

use super::super::{Cli, Command};
use super::walk::Progress;
use super::*;

fn args(words: &str) -> Result<TopArgs, String> {
    match Cli::try_parse_from(["nomagic", "top"].into_iter().chain(words.split_whitespace())) {
        Ok(Cli { command: Command::Top(args) }) => Ok(args),
        Ok(other) => panic!("{other:?}"),
        Err(e) => Err(e.to_string()),
    }
}

#[test]
fn the_first_view_is_the_arguments() {
    let view = |words| args(words).unwrap().view();
    let service = || Some("default/nginx".to_owned());
    assert_eq!(view(""), Ok(View::Services));
    assert_eq!(view("--service default/nginx"), Ok(View::Backends(service())));
    assert_eq!(view("--service default/nginx --view clients"), Ok(View::Clients(service())));
    assert_eq!(view("--view tables"), Ok(View::Tables));
    assert!(view("--service default/nginx --view workers").unwrap_err().starts_with("--service goes with"));
    for (words, said) in [
        ("--service nginx", "not a namespace and a name"),
        ("--every 0", "from 0.1 to 3600"),
        ("--every nan", "from 0.1 to 3600"),
        ("--width 100", "--once"),
        ("--format json", "--once"),
        ("--once --width 5", "5 is not in 20..=1000"),
    ] {
        let error = args(words).unwrap_err();
        assert!(error.contains(said), "{words}: {error}");
    }
}

/// Serves requests as a gateway with a table of this many slots does, until the client has what it needs. Returns the slots that it asked for.
fn serve<T>(capacity: u32, client: impl FnOnce(Asker) -> T) -> (T, Vec<u32>) {
    use std::io::{BufRead, BufReader, Write};
    let dir = tempfile::tempdir().unwrap();
    let listener = std::os::unix::net::UnixListener::bind(crate::run::socket::path(dir.path())).unwrap();
    let asked = std::thread::spawn(move || {
        let mut asked = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            let answer = match line.as_str() {
                "end\n" => return asked,
                line => match Request::parse(line).unwrap() {
                    Request::Status {} => {
                        let conntrack = Conntrack { capacity, ..Conntrack::default() };
                        Ok(Response::Status(Box::new(Status { conntrack, ..Status::default() })))
                    }
                    Request::Flows { from, .. } => {
                        asked.push(from);
                        let next = from.checked_add(nomagic_api::flows::SLOTS_MAX).filter(|next| *next < capacity);
                        Ok(Response::Flows(FlowsPage { matched: 1, groups: [("10.0.0.1".into(), 1)].into(), next, ..FlowsPage::default() }))
                    }
                    other => Err(format!("no {other:?} here")),
                },
            };
            stream.write_all(socket::reply(answer).as_bytes()).unwrap();
        }
        unreachable!("a listener does not end")
    });
    let done = client(Asker::new(dir.path().to_owned()));
    std::os::unix::net::UnixStream::connect(crate::run::socket::path(dir.path())).unwrap().write_all(b"end\n").unwrap();
    (done, asked.join().unwrap())
}

fn clients() -> Order {
    Order { question: Question::of(&View::Clients(None)), is_paused: false }
}

/// How far the walk among the answers has come.
fn progress(heard: &[Heard]) -> Option<(Progress, u64)> {
    heard.iter().find_map(|heard| match heard {
        Heard::Walk(walk) => Some((walk.progress, walk.matched)),
        _ => None,
    })
}

#[test]
fn a_walk_over_a_large_table_takes_several_intervals() {
    let slots = nomagic_api::flows::SLOTS_MAX;
    let (seen, asked) = serve(10 * slots, |mut asker| {
        asker.take_order(clients());
        assert!(asker.ask_question().is_empty(), "the interval has not begun");
        let first = progress(&asker.ask_again());
        // An order in the same interval does not lengthen it.
        asker.take_order(Order { question: Question::of(&View::Clients(Some("a/b".into()))), is_paused: false });
        assert!(asker.ask_question().is_empty());
        asker.take_order(clients());
        let second = progress(&asker.ask_again());
        [first, second, progress(&asker.ask_again()), progress(&asker.ask_again())]
    });
    let part = Some((Progress::UpTo(8 * slots), 8));
    assert_eq!(seen, [part, part, Some((Progress::Whole, 10)), part]);
    assert_eq!(asked.len(), 8 + 8 + 2 + 8);
}

#[test]
fn a_small_table_is_walked_once_an_interval() {
    let (seen, asked) = serve(1 << 20, |mut asker| {
        asker.take_order(clients());
        let seen = progress(&asker.ask_again());
        assert!(asker.ask_question().is_empty());
        seen
    });
    assert_eq!((seen, asked.len()), (Some((Progress::Whole, 4)), 4));
}

#[test]
fn a_pause_asks_nothing_but_a_new_question() {
    let ((), asked) = serve(1 << 20, |mut asker| {
        asker.take_order(Order { question: None, is_paused: true });
        assert!(asker.ask_again().is_empty());
        asker.take_order(Order { is_paused: true, ..clients() });
        assert_eq!(progress(&asker.ask_question()), Some((Progress::UpTo(1 << 18), 1)), "the size of the table is not known yet");
        assert_eq!(progress(&asker.ask_again()), Some((Progress::UpTo(1 << 19), 2)));
        let flow = Question::Explain("tcp 10.0.0.1:1 -> 10.0.0.2:2".into());
        asker.take_order(Order { question: Some(flow), is_paused: true });
        let heard = asker.ask_question();
        assert!(matches!(&heard[..], [Heard::Refused(why)] if why.starts_with("no Explain")), "{heard:?}");
        assert!(asker.ask_again().is_empty());
    });
    assert_eq!(asked, [0, 1 << 18]);
}

#[test]
fn silence_is_heard_when_nothing_listens() {
    let dir = tempfile::tempdir().unwrap();
    let mut asker = Asker::new(dir.path().to_owned());
    let filter = FlowFilter::default();
    asker.take_order(Order { question: Question::of(&View::Flows(filter)), is_paused: false });
    let heard = asker.ask_again();
    assert!(matches!(&heard[..], [Heard::Silence(why)] if why.contains("no nomagic answers on")), "{heard:?}");
}
