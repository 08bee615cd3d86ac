//! Drives the lines of a device: sockets on both sides, and the choice of the pod.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use crate::attach::relay::blank::{BlankError, is_blank};
use crate::attach::relay::hello::{Export, HelloError};
use crate::attach::relay::line::{DENIED, FrontError, Line, PodError};
use crate::attach::relay::pods::{OpenError, Opened, Opener, PodAddress, Wire};
use crate::control::catalog::chain;
use crate::front::nbd::LineNumber;

/// Room for one receive.
const RECEIVE_BYTES: usize = 64 << 10;
/// Bytes that are read of a client whose requests have to wait.
const LOOK_AHEAD_BYTES: usize = 1 << 20;
/// Pieces of one send.
const PIECES_MAX: usize = 64;
/// Before all pods are tried again. Doubles up to [`SEARCH_PAUSE_MAX`].
const SEARCH_PAUSE: Duration = Duration::from_millis(50);
const SEARCH_PAUSE_MAX: Duration = Duration::from_secs(1);
/// A course that fails sooner was of no use, and its pod comes last for a while.
const SHORT: Duration = Duration::from_secs(5);
const BARRED_FOR: Duration = Duration::from_secs(30);
/// A pod that has not answered for so long is looked at.
const QUIET_AFTER: Duration = Duration::from_secs(2);
/// Longest wait for a pod to ask.
const POD_WITHIN: Duration = Duration::from_secs(20);
/// Longest wait for pods that know of a volume's new size.
const GROW_WITHIN: Duration = Duration::from_secs(20);
const GROW_LOOK: Duration = Duration::from_millis(200);
/// Interval at which the first pod of the list is looked at while another one is used.
const RETURN_LOOK: Duration = Duration::from_secs(5);

/// The pod that all lines of a device use. Another number: begin anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Course {
    number: u64,
    /// `None`: no pod can be reached, and requests wait.
    pub pod: Option<PodAddress>,
    /// As the pod says.
    pub export: Option<Export>,
    /// No pod opens the export any more: requests fail.
    pub is_refused: bool,
}

/// Why a line ends.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    #[error("the client's connection broke")]
    Client(#[from] io::Error),
    #[error("the client broke the protocol")]
    Protocol(#[from] FrontError),
}

/// Why a device does not use more of its volume.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    #[error("no pod can be reached now")]
    NoPod,
    #[error("the pod does not answer for its part of the volume")]
    Pod(#[from] OpenError),
    #[error("the pod knows of {has} bytes of the volume, not of {wanted}")]
    Smaller { has: u64, wanted: u64 },
    #[error("no pod took the requests over within {} seconds", GROW_WITHIN.as_secs())]
    Late,
}

/// The relay of one device. Ends with the last clone.
#[derive(Clone)]
pub struct Relay {
    shared: Arc<Shared>,
}

struct Shared {
    opener: Opener,
    course: watch::Receiver<Course>,
    /// What lines say of the pod.
    news: mpsc::Sender<News>,
    /// By the number of a line: the course whose pod it uses.
    lines: watch::Sender<BTreeMap<LineNumber, u64>>,
    /// The lowest number of a line.
    first_line: u64,
    pilot: JoinHandle<()>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.pilot.abort();
    }
}

impl Relay {
    /// Uses the first of `pods` that can be used, and goes back to the very first when it can be
    /// used again. `first_line`: no other relay that lives may use the numbers from there on. One
    /// that takes over the requests of another one uses the same.
    pub fn start(opener: Opener, pods: watch::Receiver<Vec<PodAddress>>, first_line: u64) -> Relay {
        let (set_course, course) = watch::channel(Course::default());
        let (news, heard) = mpsc::channel(64);
        let pilot = Pilot { opener: opener.clone(), pods, set_course, heard, barred: None };
        let pilot = tokio::spawn(pilot.steer());
        let lines = watch::Sender::default();
        let shared = Shared { opener, course, news, lines, first_line, pilot };
        Relay { shared: Arc::new(shared) }
    }

    /// Which pod is used, now and later.
    pub fn course(&self) -> watch::Receiver<Course> {
        self.shared.course.clone()
    }

    /// The export, as soon as a pod has opened it; `None`: the relay ends.
    pub async fn export(&self) -> Option<Export> {
        let mut course = self.course();
        let found = course.wait_for(|course| course.export.is_some()).await;
        found.ok()?.export
    }

    /// True when nothing of the export is allocated, as the pod in use says.
    pub async fn is_blank(&self) -> Result<bool, BlankError> {
        let mut course = self.course();
        let pod = timeout(POD_WITHIN, course.wait_for(|course| course.pod.is_some())).await;
        let pod = pod.ok().and_then(|found| found.ok()?.pod.clone()).ok_or(BlankError::Late)?;
        is_blank(&self.shared.opener, &pod).await
    }

    /// Lets the lines use all that the volume has by now, `wanted` bytes at least, and returns its
    /// size. Requests behind the old end go to pods that know of the new one.
    pub async fn grow(&self, wanted: u64) -> Result<u64, GrowError> {
        let until = Instant::now() + GROW_WITHIN;
        // A pod hears of it a little later than who has asked for it.
        let size_bytes = loop {
            match self.size_bytes().await? {
                has if has >= wanted => break has,
                has if Instant::now() > until => return Err(GrowError::Smaller { has, wanted }),
                _ => sleep(GROW_LOOK).await,
            }
        };
        self.shared.opener.grow(size_bytes);
        self.say(News::Grown(size_bytes)).await;
        match timeout_at(until, self.all_use(size_bytes)).await {
            Ok(()) => Ok(size_bytes),
            Err(_) => Err(GrowError::Late),
        }
    }

    /// What the pod that is used has of the volume now.
    async fn size_bytes(&self) -> Result<u64, GrowError> {
        let pod = self.shared.course.borrow().pod.clone().ok_or(GrowError::NoPod)?;
        Ok(self.shared.opener.look(&pod).await?.size_bytes)
    }

    /// Waits until all lines use a pod that knows of so many bytes.
    async fn all_use(&self, size_bytes: u64) {
        let mut course = self.course();
        let knows = |course: &Course| course.export.is_some_and(|it| it.size_bytes >= size_bytes);
        // Both live as long as this.
        let number = course.wait_for(knows).await.map_or(u64::MAX, |course| course.number);
        let mut lines = self.shared.lines.subscribe();
        let _all = lines.wait_for(|lines| lines.values().all(|used| *used >= number)).await;
    }

    /// Carries one connection of the device, which is past its handshake, until the client ends it.
    /// `front_bytes`: the bytes behind the handshake.
    pub async fn carry(&self, front: impl Wire, front_bytes: BytesMut) -> Result<(), LineError> {
        let (from_front, to_front) = split(front);
        let mut carried = Carried {
            line: Line::default(),
            from_front,
            to_front,
            front_bytes,
            pod_bytes: BytesMut::new(),
            pod: None,
            heard: Instant::now(),
            unflushed: false,
        };
        carried.line.front_came(&mut carried.front_bytes)?;
        let place = Place::new(&self.shared.lines, self.shared.first_line);
        let mut course = self.course();
        let mut left = None;
        loop {
            let now = course.borrow_and_update().clone();
            let moved = match now.is_refused {
                true => carried.refuse().await?,
                false => self.follow(&mut carried, &mut course, &now, &mut left, &place).await?,
            };
            carried.leave_pod();
            if moved == Moved::Over {
                return Ok(());
            }
        }
    }

    /// Carries a connection as long as a course lasts. `left`: the course whose pod was left.
    async fn follow<F: Wire>(
        &self,
        carried: &mut Carried<F>,
        course: &mut watch::Receiver<Course>,
        now: &Course,
        left: &mut Option<u64>,
        place: &Place<'_>,
    ) -> Result<Moved, LineError> {
        let opening = self.open(now, *left, place.number);
        tokio::pin!(opening);
        // Meanwhile the client is read, and gets the answers that are here.
        let opened = loop {
            tokio::select! {
                opened = &mut opening => break opened,
                _ = course.changed() => return Ok(Moved::On),
                moved = carried.turn() => if moved? == Moved::Over { return Ok(Moved::Over) },
            }
        };
        carried.use_pod(opened);
        let mut ask_at = Instant::now();
        place.uses(now.number);
        loop {
            let quiet_at = carried.heard + QUIET_AFTER;
            tokio::select! {
                _ = course.changed() => return Ok(Moved::On),
                () = sleep_until(quiet_at), if carried.line.pending() > 0 => {
                    self.say(News::Quiet(now.number)).await;
                    carried.heard = Instant::now();
                }
                moved = carried.turn() => match moved? {
                    Moved::On if carried.line.is_denied() && Instant::now() >= ask_at => {
                        // Perhaps the export is gone, or will be soon.
                        ask_at = Instant::now() + RETURN_LOOK;
                        self.say(News::Quiet(now.number)).await;
                    }
                    Moved::On => {}
                    Moved::Over => return Ok(Moved::Over),
                    Moved::PodLost(error) => {
                        tracing::info!("a pod is left: {error}");
                        *left = Some(now.number);
                        self.say(News::Failed(now.number)).await;
                        return Ok(Moved::On);
                    }
                },
            }
        }
    }

    /// Opens the export at the pod of a course. Never returns for a course without one, and for one
    /// whose pod cannot be used.
    async fn open(&self, course: &Course, left: Option<u64>, line: LineNumber) -> Opened {
        if let Some(pod) = course.pod.as_ref().filter(|_| left != Some(course.number)) {
            match self.shared.opener.open_line(pod, line).await {
                Ok(opened) => return opened,
                Err(error) => {
                    say(pod, &error);
                    self.say(News::Failed(course.number)).await;
                }
            }
        }
        std::future::pending().await
    }

    async fn say(&self, news: News) {
        // The pilot lives as long as this.
        let _sent = self.shared.news.send(news).await;
    }
}

/// A line's place in the list of all, until it ends.
struct Place<'a> {
    lines: &'a watch::Sender<BTreeMap<LineNumber, u64>>,
    number: LineNumber,
}

impl Place<'_> {
    /// A number that no other line has. A line that ends frees its own: the next one takes the
    /// place of what may be left of it in pods.
    fn new(lines: &watch::Sender<BTreeMap<LineNumber, u64>>, first: u64) -> Place<'_> {
        let mut number = LineNumber(first);
        lines.send_modify(|lines| {
            let mut numbers = (first..).map(LineNumber);
            number = numbers.find(|number| !lines.contains_key(number)).expect("few are taken");
            lines.insert(number, 0);
        });
        Place { lines, number }
    }

    fn uses(&self, course: u64) {
        self.lines.send_modify(|lines| {
            lines.insert(self.number, course);
        });
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.lines.send_modify(|lines| {
            lines.remove(&self.number);
        });
    }
}

/// A line's news of the pod of a course.
#[derive(Clone, Copy, Debug)]
enum News {
    /// It cannot be used.
    Failed(u64),
    /// It has not answered for a while, or has denied something. Perhaps a volume has no majority,
    /// the pod hangs, or the export is gone.
    Quiet(u64),
    /// The volume has grown to so many bytes, and the client is about to use them.
    Grown(u64),
}

/// What a turn brought.
#[derive(Debug)]
enum Moved {
    On,
    Over,
    PodLost(PodLoss),
}

impl PartialEq for Moved {
    fn eq(&self, other: &Moved) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

#[derive(Debug, thiserror::Error)]
enum PodLoss {
    #[error("the connection ended")]
    Ended,
    #[error("the connection broke: {0}")]
    Broke(#[from] io::Error),
    #[error("it broke the protocol: {0}")]
    Protocol(#[from] PodError),
}

type PodHalves = (ReadHalf<Box<dyn Wire>>, WriteHalf<Box<dyn Wire>>);

/// A line with its sockets.
struct Carried<F> {
    line: Line,
    from_front: ReadHalf<F>,
    to_front: WriteHalf<F>,
    front_bytes: BytesMut,
    pod_bytes: BytesMut,
    pod: Option<PodHalves>,
    /// When the pod was heard last, or asked about.
    heard: Instant,
    /// The connection to the pod may hold bytes back, as TLS does.
    unflushed: bool,
}

impl<F: AsyncRead + AsyncWrite + Send + Unpin> Carried<F> {
    /// Answers everything with an error until the client goes.
    async fn refuse(&mut self) -> Result<Moved, LineError> {
        loop {
            self.line.refuse_all(DENIED);
            if self.turn().await? == Moved::Over {
                return Ok(Moved::Over);
            }
        }
    }

    fn leave_pod(&mut self) {
        self.pod = None;
        self.unflushed = false;
        self.pod_bytes.clear();
        self.line.pod_lost();
    }

    fn use_pod(&mut self, opened: Opened) {
        self.pod = Some(split(opened.wire));
        self.heard = Instant::now();
        self.line.pod_found();
    }

    /// Sends or receives once, whatever is possible first. Safe to be dropped.
    async fn turn(&mut self) -> Result<Moved, LineError> {
        if self.line.is_over() {
            return Ok(Moved::Over);
        }
        let Carried { line, from_front, to_front, front_bytes, pod_bytes, pod, heard, unflushed } =
            self;
        if line.pending() == 0 {
            *heard = Instant::now();
        }
        let answers: Vec<Bytes> = line.to_front().take(PIECES_MAX).cloned().collect();
        let requests: Vec<Bytes> = line.to_pod().take(PIECES_MAX).cloned().collect();
        let (from_pod, to_pod) = match pod {
            Some((from, to)) => (Some(from), Some(to)),
            None => (None, None),
        };
        front_bytes.reserve(RECEIVE_BYTES);
        pod_bytes.reserve(RECEIVE_BYTES);
        tokio::select! {
            sent = send(to_front, &answers), if !answers.is_empty() => {
                line.front_sent(sent?);
            }
            sent = to_pod_of(to_pod, &requests), if !requests.is_empty() || *unflushed => {
                match sent {
                    Ok(count) => {
                        line.pod_sent(count);
                        // TLS may have kept some of it.
                        *unflushed = !requests.is_empty();
                    }
                    Err(error) => return Ok(Moved::PodLost(error.into())),
                }
            }
            came = receive(from_pod, pod_bytes), if line.wants_pod() => match came {
                Ok(0) => return Ok(Moved::PodLost(PodLoss::Ended)),
                Ok(_) => {
                    *heard = Instant::now();
                    if let Err(error) = line.pod_came(pod_bytes) {
                        return Ok(Moved::PodLost(error.into()));
                    }
                }
                Err(error) => return Ok(Moved::PodLost(error.into())),
            },
            // Also when its requests have to wait: a client that is gone has to be noticed, or its
            // requests would be sent again behind those of the next one.
            came = from_front.read_buf(front_bytes),
                if line.wants_front() || front_bytes.len() < LOOK_AHEAD_BYTES =>
            {
                if came? == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
                line.front_came(front_bytes)?;
            }
        }
        // Requests that waited for room.
        line.front_came(front_bytes)?;
        Ok(Moved::On)
    }
}

/// Sends some of it. Dropped before its end, it has sent nothing.
async fn send(to: &mut (impl AsyncWrite + Unpin), pieces: &[Bytes]) -> io::Result<usize> {
    let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
    match to.write_vectored(&slices).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        count => Ok(count),
    }
}

/// The same to a pod. Without pieces it flushes the connection.
async fn to_pod_of(
    to: Option<&mut WriteHalf<Box<dyn Wire>>>,
    pieces: &[Bytes],
) -> io::Result<usize> {
    match to {
        Some(to) if pieces.is_empty() => to.flush().await.map(|()| 0),
        Some(to) => send(to, pieces).await,
        None => std::future::pending().await,
    }
}

async fn receive(
    from: Option<&mut ReadHalf<Box<dyn Wire>>>,
    bytes: &mut BytesMut,
) -> io::Result<usize> {
    match from {
        Some(from) => from.read_buf(bytes).await,
        None => std::future::pending().await,
    }
}

/// Chooses the pod of a device.
struct Pilot {
    opener: Opener,
    pods: watch::Receiver<Vec<PodAddress>>,
    set_course: watch::Sender<Course>,
    heard: mpsc::Receiver<News>,
    /// A pod that failed soon, and until when others are preferred.
    barred: Option<(PodAddress, Instant)>,
}

/// The result of a search.
enum Found {
    Pod(PodAddress, Export),
    /// Most pods say that there is no such export any more.
    Nothing,
}

impl Pilot {
    async fn steer(mut self) {
        let (mut number, mut pause) = (0, SEARCH_PAUSE);
        loop {
            let Found::Pod(pod, export) = self.search().await else {
                tracing::warn!("no pod opens the export any more: requests fail");
                let course = Course { number: number + 1, is_refused: true, ..Course::default() };
                self.set_course.send_replace(course);
                return;
            };
            number += 1;
            tracing::info!(%pod, "requests go to this pod");
            let began = Instant::now();
            let (known, is_refused) = (Some(export), false);
            let course = Course { number, pod: Some(pod.clone()), export: known, is_refused };
            self.set_course.send_replace(course);
            let ended = self.stay(number, &pod, export).await;
            if ended == Ended::Gone {
                return;
            }
            number += 1;
            self.set_course.send_replace(Course { number, ..Course::default() });
            match ended == Ended::Failed && began.elapsed() < SHORT {
                // It opens the export, and is of no use: others first, and no hurry.
                true => {
                    self.barred = Some((pod, Instant::now() + BARRED_FOR));
                    sleep(pause).await;
                    pause = (pause * 2).min(SEARCH_PAUSE_MAX);
                }
                false => pause = SEARCH_PAUSE,
            }
        }
    }

    /// Waits until the course is no good any more, or the first pod can be used again.
    async fn stay(&mut self, number: u64, pod: &PodAddress, export: Export) -> Ended {
        let mut look = Instant::now() + RETURN_LOOK;
        loop {
            match timeout_at(look, self.heard.recv()).await {
                Ok(None) => return Ended::Gone,
                Ok(Some(News::Failed(of))) if of == number => return Ended::Failed,
                Ok(Some(News::Grown(size_bytes))) if export.size_bytes < size_bytes => {
                    return Ended::Better;
                }
                // A pod that opens the export does not hang: then the volume has no majority.
                Ok(Some(News::Quiet(of))) if of == number => {
                    if let Err(error) = self.opener.open(pod).await {
                        say(pod, &error);
                        return Ended::Failed;
                    }
                }
                // Others are about courses before this one.
                Ok(Some(_)) => {}
                Err(_) => {
                    look = Instant::now() + RETURN_LOOK;
                    if self.is_better(pod).await {
                        return Ended::Better;
                    }
                }
            }
        }
    }

    /// True when the first pod of the list is another one, and can be used.
    async fn is_better(&self, pod: &PodAddress) -> bool {
        let first = self.pods.borrow().first().cloned();
        match first.filter(|first| first != pod && !self.is_barred(first)) {
            Some(first) => self.opener.open(&first).await.is_ok(),
            None => false,
        }
    }

    fn is_barred(&self, pod: &PodAddress) -> bool {
        let barred = self.barred.as_ref();
        barred.is_some_and(|(barred, until)| barred == pod && Instant::now() < *until)
    }

    /// Tries the pods in turn until one opens the export.
    async fn search(&mut self) -> Found {
        let mut pause = SEARCH_PAUSE;
        loop {
            let mut pods = self.pods.borrow_and_update().clone();
            // The order of the others stays.
            pods.sort_by_key(|pod| self.is_barred(pod));
            let mut unknown = 0;
            for pod in &pods {
                match self.opener.open(pod).await {
                    Ok(opened) => return Found::Pod(pod.clone(), opened.export),
                    Err(error) => {
                        unknown +=
                            usize::from(matches!(error, OpenError::Hello(HelloError::Unknown)));
                        say(pod, &error);
                    }
                }
            }
            if self.opener.was_open() && is_gone(unknown, pods.len()) {
                return Found::Nothing;
            }
            sleep(pause).await;
            pause = (pause * 2).min(SEARCH_PAUSE_MAX);
        }
    }
}

/// True when the export is gone for good. A pod says so when the catalog's leader has told it, and
/// no attachment comes back. One such word could be that of another cluster's pod. All of them
/// would never come while a pod is dead, and requests would wait for it.
fn is_gone(unknown: usize, pods: usize) -> bool {
    unknown * 2 > pods
}

fn say(pod: &PodAddress, error: &OpenError) {
    tracing::debug!(%pod, "a pod cannot be used: {}", chain(error));
}

/// Why a course is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Failed,
    /// The first pod of the list can be used again, or the same one for more of the volume.
    Better,
    /// Nobody uses the relay any more.
    Gone,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_is_gone_when_most_pods_say_so() {
        let gone = [(1, 1), (2, 2), (2, 3), (3, 3), (3, 5)];
        assert!(gone.iter().all(|(unknown, pods)| is_gone(*unknown, *pods)));
        let unsure = [(0, 0), (0, 3), (1, 2), (1, 3), (2, 4)];
        assert!(!unsure.iter().any(|(unknown, pods)| is_gone(*unknown, *pods)));
    }
}
