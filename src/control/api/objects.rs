//! Reads of all kinds of objects, carried out by the catalog's leader: one, a page, or a watch.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::control::api::errors::{Refusal, no_such, of_query};
use crate::control::api::route::{Failure, applied};
use crate::control::catalog::Catalog;
use crate::control::node::Node;
use crate::control::objects::cursor::Mark;
use crate::control::objects::describe::{Describe, Object};
use crate::control::objects::key::{Kind, ObjectKey};
use crate::control::objects::observer::{Changed, Gone, Observer};
use crate::control::objects::query::{Filter, Page, list};
use crate::control::objects::ring::TooOld;
use crate::control::objects::source::{Keys, Source};
use crate::control::observed::is_telling;
use crate::control::proto::{Change, Meta, Query, View};
use crate::control::reason::Reason;

/// Interval of checks while a new leader has not heard from all pods.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Objects that a watch describes at once, before it waits until the client has taken them.
const AT_ONCE: usize = 256;
/// Changes that may wait for one client.
const WAITING_MAX: usize = 32;
/// So often a watch without changes that fit tells how far it has come.
const BOOKMARK_EVERY: Duration = Duration::from_secs(10);

/// What a watch tells.
#[derive(Clone, Debug)]
pub struct Event<T> {
    pub change: Change,
    pub object: Option<T>,
    pub resume_token: String,
}

/// What a watch gives its client.
pub type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Reads the leader's state and describes it. A new leader first listens to the pods.
pub async fn describe<T>(
    node: &Node,
    catalog: &Catalog,
    with: impl FnOnce(&Describe<'_>, &Observer) -> T,
) -> Result<T, Failure> {
    catalog.barrier().await?;
    describe_applied(node, catalog, with).await
}

/// As [`describe`], of the state that has what this call has changed: without asking the others
/// once more whether this pod leads.
pub async fn describe_applied<T>(
    node: &Node,
    catalog: &Catalog,
    with: impl FnOnce(&Describe<'_>, &Observer) -> T,
) -> Result<T, Failure> {
    loop {
        let (state, published) = applied(catalog)?;
        let is_telling = node.reports.with(|pods| is_telling(&state, pods));
        if is_telling {
            return Ok(node.observed.look(&state, &node.reports, |observer, now_ms| {
                let (source, me) = (Source::new(&state), node.identity.pod);
                let describe = Describe::new(source, observer, &published.group, me, now_ms);
                with(&describe, observer)
            }));
        }
        sleep(LOOK_EVERY).await;
        // It may lead no more.
        catalog.barrier().await?;
    }
}

/// The object of this name.
pub async fn get<T: Object>(node: &Node, catalog: &Catalog, name: &str) -> Result<T, Failure> {
    let found = describe(node, catalog, |from, _| {
        let key = from.source.key_of(T::KIND, name)?;
        T::describe(from, &key, View::Full)
    });
    found.await?.ok_or_else(|| no_such(T::KIND, name).into())
}

/// All objects of a kind.
pub fn all<'a, T: Object>(source: Source<'a>, after: Option<&ObjectKey>) -> Keys<'a> {
    source.keys_after(T::KIND, after)
}

/// One page. `within`: what the request demands besides the query; `of`: the objects in question.
pub async fn page<T: Object>(
    node: &Node,
    catalog: &Catalog,
    query: Option<Query>,
    within: &str,
    of: impl for<'a> FnOnce(Source<'a>, Option<&ObjectKey>) -> Result<Keys<'a>, Status>,
) -> Result<Page<T>, Failure> {
    let filter = Filter::new(query, within).map_err(|error| of_query(&error))?;
    let after = filter.after(T::KIND).map_err(|error| of_query(&error))?;
    let listed = describe(node, catalog, |from, observer| {
        let keys = of(from.source, after.as_ref())?;
        list(from, &filter, observer.mark(), keys).map_err(|error| of_query(&error))
    });
    Ok(listed.await??)
}

/// Begins a watch, or goes on with one.
pub async fn watch<T: Object>(
    node: &Arc<Node>,
    catalog: Arc<Catalog>,
    query: Option<Query>,
    resume_token: &str,
) -> Result<Events<Event<T>>, Failure> {
    watch_within(node, catalog, query, "", resume_token).await
}

/// As [`watch`], of objects that are [`Object::is_within`].
pub async fn watch_within<T: Object>(
    node: &Arc<Node>,
    catalog: Arc<Catalog>,
    query: Option<Query>,
    within: &str,
    resume_token: &str,
) -> Result<Events<Event<T>>, Failure> {
    let filter = Filter::new(query, within).map_err(|error| of_query(&error))?;
    let resume = match resume_token {
        "" => None,
        token => Some(Mark::decode(token).map_err(|error| {
            Status::from(Refusal::new(Reason::BadResumeToken, error.to_string()))
        })?),
    };
    let start = describe(node, &catalog, |from, observer| start(from, observer, resume, T::KIND));
    let start = start.await?.map_err(too_old)?;
    let (tell, told) = mpsc::channel(WAITING_MAX);
    let watcher = Watcher { node: Arc::downgrade(node), filter, tell };
    tokio::spawn(watcher.run(start));
    Ok(Box::pin(ReceiverStream::new(told)))
}

fn too_old(_: TooOld) -> Status {
    let message = "the changes since the resume token are no longer known; list again, or watch \
                   without a token";
    Refusal::new(Reason::WatchTooOld, message).into()
}

/// Where a watch begins.
enum Start {
    /// Behind this moment.
    Behind(Mark),
    /// With everything that is there. What is gone since the client's moment is told first.
    Present { gone: Vec<Gone> },
}

fn start(
    from: &Describe<'_>,
    observer: &Observer,
    resume: Option<Mark>,
    kind: Kind,
) -> Result<Start, TooOld> {
    let Some(mark) = resume else { return Ok(Start::Present { gone: Vec::new() }) };
    if observer.since(&mark).is_ok() {
        return Ok(Start::Behind(mark));
    }
    // Another pod led then. The records tell what is gone since; what is there is told again.
    if mark.history != from.source.history() || mark.revision > from.source.revision() {
        return Err(TooOld);
    }
    let changed = from.source.changed_since(mark.revision).ok_or(TooOld)?;
    let gone = changed.filter(|key| key.kind() == kind && !from.source.has(key));
    // Without its record, nobody knows the uid of an object that has another key.
    let gone = gone.map(|key| {
        let uid = key.uid().ok_or(TooOld)?;
        Ok(Gone { name: uid.clone(), uid })
    });
    Ok(Start::Present { gone: gone.collect::<Result<_, _>>()? })
}

fn deleted<T: Object>(gone: &Gone) -> (Change, Option<T>) {
    let Gone { uid, name } = gone.clone();
    (Change::Deleted, Some(T::of_meta(Meta { uid, name, ..Meta::default() })))
}

/// One client's watch. It keeps nothing but its place: how much waits for the client is bounded.
struct Watcher<T> {
    node: Weak<Node>,
    filter: Filter,
    tell: mpsc::Sender<Result<Event<T>, Status>>,
}

/// Why a watch ends.
enum End {
    /// The client or the pod is gone.
    Gone,
    Refused(Box<Status>),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> End {
        let status = match failure {
            Failure::Final(status) => status,
            Failure::NotLeader => {
                let message = "the catalog got another leader; resume the watch";
                Refusal::new(Reason::LeaderChanged, message).passing().into()
            }
        };
        End::Refused(Box::new(status))
    }
}

impl<T: Object> Watcher<T> {
    async fn run(self, start: Start) {
        if let Err(End::Refused(status)) = self.follow(start).await {
            // An error means that the client is gone, too.
            let _gone = self.tell.send(Err(*status)).await;
        }
    }

    async fn follow(&self, start: Start) -> Result<(), End> {
        let mut changes = self.node.upgrade().ok_or(End::Gone)?.observed.changes();
        let mut place = match start {
            Start::Behind(mark) => mark,
            Start::Present { gone } => {
                for gone in gone.iter().filter(|gone| self.filter.tells_end_of(&gone.name)) {
                    self.send(deleted(gone), String::new()).await?;
                }
                self.present().await?
            }
        };
        let mut bookmark_at = Instant::now() + BOOKMARK_EVERY;
        let mut told = place;
        loop {
            changes.mark_unchanged();
            let (events, now) = self.changes_since(&place).await?;
            let (last, token) = (events.len(), place.encode());
            for (position, event) in (1..).zip(events) {
                // Whoever resumes in between gets these changes again.
                let token = if position == last { now.encode() } else { token.clone() };
                self.send(event, token).await?;
                told = now;
            }
            place = now;
            if Instant::now() >= bookmark_at {
                if told != place {
                    self.bookmark(&place).await?;
                    told = place;
                }
                bookmark_at = Instant::now() + BOOKMARK_EVERY;
            }
            self.wait(&mut changes, bookmark_at).await?;
        }
    }

    /// Waits for a change, or until it is time for a look.
    async fn wait(
        &self,
        changes: &mut tokio::sync::watch::Receiver<u64>,
        until: Instant,
    ) -> Result<(), End> {
        let mut published = {
            let node = self.node.upgrade().ok_or(End::Gone)?;
            let catalog = node.leading().ok_or(Failure::NotLeader)?;
            catalog.published.clone()
        };
        let leads = |it: &crate::control::catalog_member::Published| it.role.serving;
        tokio::select! {
            changed = timeout_at(until, changes.changed()) => match changed {
                Ok(Err(_)) => Err(End::Gone),
                Ok(Ok(())) | Err(_) => Ok(()),
            },
            _ = published.wait_for(|it| !leads(it)) => Err(Failure::NotLeader.into()),
            () = self.tell.closed() => Err(End::Gone),
        }
    }

    /// Tells of everything that is there, and returns the moment behind which to go on.
    async fn present(&self) -> Result<Mark, End> {
        let (mut begin, mut after): (Option<Mark>, Option<ObjectKey>) = (None, None);
        loop {
            let (objects, mark, last) = self
                .look(|from, observer| {
                    let mut last = None;
                    let keys = all::<T>(from.source, after.as_ref());
                    let keys = self.filter.narrow(from.source, T::KIND, after.clone(), keys);
                    let objects: Vec<T> = keys
                        .take(AT_ONCE)
                        .filter_map(|key| {
                            let object = T::describe(from, &key, self.filter.view);
                            last = Some(key);
                            object.filter(|object| self.filter.fits(object))
                        })
                        .collect();
                    (objects, observer.mark(), last)
                })
                .await?;
            let begin = *begin.get_or_insert(mark);
            for object in objects {
                let event = (Change::Present, Some(object));
                self.send(event, String::new()).await?;
            }
            let Some(last) = last else {
                self.bookmark(&begin).await?;
                return Ok(begin);
            };
            after = Some(last);
        }
    }

    /// The changes that fit the filter, and the moment after them.
    async fn changes_since(&self, place: &Mark) -> Result<(Vec<(Change, Option<T>)>, Mark), End> {
        let found = self.look(|from, observer| {
            let changed: Vec<&Changed> = observer.since(place)?.collect();
            let (mut known, mut events) = (HashSet::new(), Vec::new());
            // The last change of an object tells all.
            for Changed { key, gone } in changed.into_iter().rev() {
                if key.kind() == T::KIND && known.insert(key) {
                    events.extend(self.event(from, key, gone.as_ref()));
                }
            }
            events.reverse();
            Ok((events, observer.mark()))
        });
        let found: Result<_, TooOld> = found.await?;
        found.map_err(|error| End::Refused(Box::new(too_old(error))))
    }

    /// `None`: the filter asks for another name.
    fn event(
        &self,
        from: &Describe<'_>,
        key: &ObjectKey,
        gone: Option<&Gone>,
    ) -> Option<(Change, Option<T>)> {
        match T::describe(from, key, self.filter.view) {
            Some(object) if self.filter.fits(&object) => Some((Change::Updated, Some(object))),
            // What belongs to something else was never told of.
            _ if self.filter.is_within_one() => None,
            Some(object) => {
                let meta = object.meta().clone();
                let is_named = self.filter.has_name(&meta.name);
                is_named.then(|| (Change::Deleted, Some(T::of_meta(meta))))
            }
            // A change before the last one may still have found it.
            None => gone.filter(|gone| self.filter.has_name(&gone.name)).map(deleted),
        }
    }

    async fn look<R>(&self, with: impl FnOnce(&Describe<'_>, &Observer) -> R) -> Result<R, End> {
        let node = self.node.upgrade().ok_or(End::Gone)?;
        let catalog = node.leading().ok_or(Failure::NotLeader)?;
        Ok(describe(&node, &catalog, with).await?)
    }

    async fn bookmark(&self, mark: &Mark) -> Result<(), End> {
        self.send((Change::Bookmark, None), mark.encode()).await
    }

    async fn send(&self, event: (Change, Option<T>), resume_token: String) -> Result<(), End> {
        let (change, object) = event;
        let event = Event { change, object, resume_token };
        self.tell.send(Ok(event)).await.map_err(|_| End::Gone)
    }
}
