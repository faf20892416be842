//! Lines of the control socket: a client's requests, and a gateway's answers.

use nomagic::deny::parse_prefix;
use nomagic_api::socket::{REQUEST_MAX, Request, parse_reply, reply};
use nomagic_table::explain::parse_flow;

/// Runs one input: the same line as a request and as an answer.
pub fn run(data: &[u8]) {
    let Ok(line) = std::str::from_utf8(&data[..data.len().min(REQUEST_MAX as usize)]) else { return };
    match Request::parse(line) {
        Ok(request) => {
            assert_eq!(Request::parse(&request.line()).as_ref(), Ok(&request));
            if let Request::Explain { flow, .. } = &request
                && let Err(error) = parse_flow(flow)
            {
                one_line_back(error);
            }
            if let Request::DenyAdd { prefix, .. } | Request::DenyRemove { prefix } = &request
                && let Some(prefix) = parse_prefix(prefix)
            {
                assert_eq!(parse_prefix(&prefix.to_string()), Some(prefix), "a prefix is parsed as it is displayed");
            }
        }
        Err(error) => one_line_back(error),
    }
    if let Ok(response) = parse_reply(line) {
        let again = reply(Ok(response.clone()));
        assert_eq!(parse_reply(&again), Ok(response));
    }
}

/// An error reaches the client as it is, in one line.
fn one_line_back(error: String) {
    let line = reply(Err(error.clone()));
    assert_eq!(line.find('\n'), Some(line.len() - 1), "{line}");
    assert_eq!(parse_reply(&line), Err(error));
}
