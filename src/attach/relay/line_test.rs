use proptest::prelude::*;

use super::*;
use crate::front::nbd::wire::put_request;
use crate::planted::{Mistake, assert_found};

fn request(command: u16, cookie: u64, length: u32) -> Vec<u8> {
    let (magic, flags, offset) = (REQUEST_MAGIC, 0, 4096 * cookie);
    let mut bytes = Vec::new();
    put_request(&mut bytes, &RequestHeader { magic, flags, command, cookie, offset, length });
    if command == command::WRITE {
        bytes.extend((0..length).map(|at| cookie as u8 ^ at as u8));
    }
    bytes
}

fn reply(cookie: u64, error: u32, data: &[u8]) -> Vec<u8> {
    let mut out = BytesMut::new();
    put_simple_reply(&mut out, cookie, error);
    out.extend_from_slice(data);
    out.to_vec()
}

fn for_front(line: &mut Line) -> Vec<u8> {
    let all: Vec<u8> = line.to_front().flat_map(|bytes| bytes.to_vec()).collect();
    line.front_sent(all.len());
    assert_eq!((line.to_front().count(), line.to_front_bytes), (0, 0));
    all
}

fn for_pod(line: &mut Line) -> Vec<u8> {
    let all: Vec<u8> = line.to_pod().flat_map(|bytes| bytes.to_vec()).collect();
    line.pod_sent(all.len());
    assert_eq!(line.to_pod().count(), 0);
    all
}

fn ask(line: &mut Line, bytes: &[u8]) {
    line.front_came(&mut BytesMut::from(bytes)).unwrap();
}

fn answer(line: &mut Line, bytes: &[u8]) -> Result<(), PodError> {
    line.pod_came(&mut BytesMut::from(bytes))
}

/// A pod goes in the middle of a reply, and another one answers.
fn requests_survive_their_pod() {
    let mut line = Line::default();
    line.pod_found();
    let (write, read) = (request(command::WRITE, 1, 8), request(command::READ, 2, 4));
    ask(&mut line, &[write.clone(), read.clone()].concat());
    assert_eq!(for_pod(&mut line), [write.clone(), read.clone()].concat());
    answer(&mut line, &reply(2, 0, b"ab")[..17]).unwrap();
    assert_eq!(line.to_front().count(), 0, "a part of a reply does not go on");
    line.pod_lost();
    let flush = request(command::FLUSH, 3, 0);
    ask(&mut line, &flush);
    assert_eq!(line.to_pod().count(), 0);
    line.pod_found();
    assert_eq!(for_pod(&mut line), [write, read, flush].concat(), "in their order");
    let answers = [reply(3, 0, &[]), reply(2, 0, b"abcd"), reply(1, 28, &[])].concat();
    answer(&mut line, &answers).unwrap();
    assert_eq!(for_front(&mut line), answers);
    assert_eq!((line.pending(), line.pending_bytes), (0, 0));
}

#[test]
fn what_a_pod_did_not_answer_goes_to_the_next_one() {
    requests_survive_their_pod();
}

#[test]
fn a_relay_that_forgets_is_found() {
    assert_found(Mistake::RelayForgets, requests_survive_their_pod);
}

#[test]
fn nonsense_ends_the_connection_that_it_came_from() {
    let mut line = Line::default();
    let mut came = |bytes: &[u8]| line.front_came(&mut BytesMut::from(bytes));
    assert_eq!(came(&[0; 28]), Err(FrontError::Magic));
    let length = REQUEST_BYTES_MAX as u32 + 1;
    assert_eq!(came(&request(command::READ, 1, length)), Err(FrontError::Length(length)));
    came(&request(command::READ, 1, 4096)).unwrap();
    assert_eq!(came(&request(command::READ, 1, 4096)), Err(FrontError::Cookie(1)));
    assert_eq!(answer(&mut line, &[1; 16]), Err(PodError::Magic));
    assert_eq!(answer(&mut line, &reply(7, 0, &[])), Err(PodError::Cookie(7)));
}

#[test]
fn a_client_that_asks_too_much_waits() {
    let mut line = Line::default();
    let mut bytes = BytesMut::new();
    for cookie in 0..3 {
        bytes.extend(request(command::READ, cookie, REQUEST_BYTES_MAX as u32));
    }
    line.front_came(&mut bytes).unwrap();
    assert!(!line.wants_front());
    assert_eq!((line.pending(), bytes.len()), (2, REQUEST_HEADER_BYTES));
    answer(&mut line, &reply(0, 5, &[])).unwrap();
    assert!(line.wants_front());
    line.front_came(&mut bytes).unwrap();
    assert_eq!(line.pending(), 2);
}

#[test]
fn when_no_pod_will_answer_everything_fails() {
    let mut line = Line::default();
    line.pod_found();
    ask(&mut line, &[request(command::WRITE, 1, 8), request(command::READ, 2, 4)].concat());
    line.refuse_all(1);
    assert_eq!(for_front(&mut line), [reply(1, 1, &[]), reply(2, 1, &[])].concat());
    ask(&mut line, &request(command::FLUSH, 1, 0));
    line.refuse_all(1);
    assert_eq!((for_front(&mut line), line.pending()), (reply(1, 1, &[]), 0));
}

#[test]
fn answers_that_a_client_does_not_take_are_bounded() {
    let mut line = Line::default();
    for cookie in 0..3 {
        ask(&mut line, &request(command::READ, cookie, REQUEST_BYTES_MAX as u32));
        if line.wants_pod() {
            answer(&mut line, &reply(cookie, 0, &vec![0; REQUEST_BYTES_MAX])).unwrap();
        }
    }
    assert!(!line.wants_pod());
    for_front(&mut line);
    assert!(line.wants_pod());
}

#[test]
fn a_client_that_goes_gets_its_answers_first() {
    let mut line = Line::default();
    ask(&mut line, &[request(command::FLUSH, 1, 0), request(command::DISC, 2, 0)].concat());
    assert!(!line.is_over() && !line.wants_front());
    answer(&mut line, &reply(1, 0, &[])).unwrap();
    for_front(&mut line);
    assert!(line.is_over());
}

proptest! {
    /// Whatever the pieces in which bytes come, and however often pods go: each request has one
    /// answer, the one that a pod gave, and a pod gets them in their order.
    #[test]
    fn each_request_has_one_answer(
        lengths in prop::collection::vec((any::<bool>(), 1u32..64), 1..24),
        cuts in prop::collection::vec((any::<bool>(), 1usize..60, any::<bool>()), 1..80),
    ) {
        let mut line = Line::default();
        let commands = |is_read| if is_read { command::READ } else { command::WRITE };
        let all: Vec<Vec<u8>> = lengths.iter().enumerate().map(|(cookie, (is_read, length))| {
            request(commands(*is_read), cookie as u64, *length)
        }).collect();
        let mut rest: VecDeque<u8> = all.concat().into();
        let (mut front, mut pod) = (BytesMut::new(), BytesMut::new());
        let (mut asked, mut answers, mut got) = (Vec::new(), VecDeque::new(), Vec::new());
        let mut has_pod = false;
        let endless = std::iter::repeat((false, 64, true));
        for (goes, count, answers_now) in cuts.into_iter().chain(endless) {
            if goes && has_pod {
                line.pod_lost();
                pod.clear();
                answers.clear();
                asked.clear();
                has_pod = false;
                continue;
            }
            if !has_pod {
                line.pod_found();
                has_pod = true;
            }
            front.extend(rest.drain(..count.min(rest.len())).collect::<Vec<_>>());
            line.front_came(&mut front).unwrap();
            asked.extend(for_pod(&mut line));
            while let Ok(header) = RequestHeader::decode(&asked) {
                let writes = header.command == command::WRITE;
                let len = REQUEST_HEADER_BYTES + if writes { header.length as usize } else { 0 };
                prop_assert!(asked.len() >= len);
                let whole: Vec<u8> = asked.drain(..len).collect();
                prop_assert_eq!(&whole, &all[header.cookie as usize]);
                let data = if writes { 0 } else { header.length as usize };
                answers.extend(reply(header.cookie, 0, &vec![header.cookie as u8; data]));
            }
            if answers_now {
                pod.extend(answers.drain(..count.min(answers.len())).collect::<Vec<_>>());
                line.pod_came(&mut pod).unwrap();
            }
            got.extend(for_front(&mut line));
            if rest.is_empty() && line.pending() == 0 {
                break;
            }
        }
        let mut seen = vec![0; all.len()];
        let mut got = BytesMut::from(&got[..]);
        while let Ok(reply) = SimpleReply::decode(&got) {
            let (is_read, length) = lengths[reply.cookie as usize];
            let data = if is_read { length as usize } else { 0 };
            let whole = got.split_to(SIMPLE_REPLY_BYTES + data);
            prop_assert!(whole[SIMPLE_REPLY_BYTES..].iter().all(|it| *it == reply.cookie as u8));
            seen[reply.cookie as usize] += 1;
        }
        prop_assert!(got.is_empty() && seen.iter().all(|times| *times == 1), "{seen:?}");
    }
}
