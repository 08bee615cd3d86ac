//! The history of objects: what was decided, and which conditions have become others. It is part of
//! the state, so every member has the same, and a new leader goes on where the last one was.
//!
//! It is bounded for each object and for each kind; the oldest goes first. So volumes that lose
//! replicas by the thousand do not push out the pod that was lost. A condition that changes to and
//! fro counts up one event instead of pushing out others.

use crate::control::command::Sighting;
use crate::control::state::rows::Event;
use crate::control::state::tables::{Tables, take};

/// Events of one kind of object that are kept; of volumes, which are many, four times as many.
pub const EVENTS_OF_KIND_MAX: usize = 1024;
/// Events of one object that are kept.
pub const EVENTS_OF_ONE_MAX: usize = 32;
/// The same condition within this time of the last one is counted there.
const SAME_WITHIN_MS: u64 = 10 * 60 * 1000;
/// The newest events of an object among which the same one is looked for.
const SAME_AMONG: usize = 8;
/// Longest message.
const MESSAGE_BYTES_MAX: usize = 512;

/// Records what the leader has seen, as far as it is new.
pub(super) fn see(tables: &mut Tables, now_ms: u64, seen: Vec<Sighting>) {
    for sighting in seen {
        if is_new(tables, &sighting) {
            let Sighting { kind, name, uid, condition, reason, message, well } = sighting;
            let warns = !well;
            let event =
                Event { kind, name, uid, condition, reason, message, warns, ..Event::default() };
            record(tables, now_ms, event);
        }
    }
}

/// True when the last event about this condition says something else. An object about which
/// nothing is known counts as well.
pub fn is_new(tables: &Tables, seen: &Sighting) -> bool {
    let about = |event: &&Event| event.condition == seen.condition && event.uid == seen.uid;
    match events_of(tables, &seen.kind, &seen.name).rev().find(about) {
        Some(last) => last.reason != seen.reason,
        None => !seen.well,
    }
}

/// The events of an object, the oldest first.
pub fn events_of<'a>(
    tables: &'a Tables,
    kind: &str,
    name: &str,
) -> impl DoubleEndedIterator<Item = &'a Event> {
    let numbers = tables.index.events_of.get(&(kind.to_owned(), name.to_owned()));
    numbers.into_iter().flat_map(|numbers| numbers.iter()).map(|number| &tables.events[number])
}

/// Appends an event, and forgets what is too much. The event has no times and no count yet.
pub(super) fn record(tables: &mut Tables, now_ms: u64, mut event: Event) {
    let object = (event.kind.clone(), event.name.clone());
    let numbers = tables.index.events_of.get(&object).cloned().unwrap_or_default();
    event.message.truncate(boundary(&event.message, MESSAGE_BYTES_MAX));
    (event.count, event.first_ms, event.last_ms) = (1, now_ms, now_ms);
    let is_same = |other: &Event| {
        (&other.uid, &other.condition, &other.reason)
            == (&event.uid, &event.condition, &event.reason)
            && now_ms.saturating_sub(other.last_ms) < SAME_WITHIN_MS
    };
    let newest = numbers.iter().rev().take(SAME_AMONG);
    let same = newest.copied().find(|number| is_same(&tables.events[number]));
    if let Some(number) = same.filter(|_| !event.condition.is_empty()) {
        let same = &tables.events[&number];
        (event.count, event.first_ms) = (same.count.saturating_add(1), same.first_ms);
        tables.remove::<Event>(&number);
    } else if numbers.size() >= EVENTS_OF_ONE_MAX {
        let oldest = *numbers.first().expect("there are some");
        tables.remove::<Event>(&oldest);
    }
    if let Some(oldest) = oldest_if_full(tables, &event.kind) {
        tables.remove::<Event>(&oldest);
    }
    let number = take(&mut tables.head.next.event);
    tables.put(number, event);
}

/// True when older events of this kind have been forgotten, or are about to be.
pub fn is_full(tables: &Tables, kind: &str) -> bool {
    oldest_if_full(tables, kind).is_some()
}

fn oldest_if_full(tables: &Tables, kind: &str) -> Option<u64> {
    let kept = if kind == "volume" { 4 * EVENTS_OF_KIND_MAX } else { EVENTS_OF_KIND_MAX };
    let numbers = tables.index.events_of_kind.get(kind)?;
    numbers.first().copied().filter(|_| numbers.size() >= kept)
}

/// The last place at or before `at` where a character begins.
fn boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

#[cfg(test)]
#[path = "events_test.rs"]
mod tests;
