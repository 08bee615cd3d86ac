//! Messages from a member of the catalog: one bounded queue per receiver, each with its own task.
//! Messages to a full queue or an unreachable receiver are dropped; Raft sends again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use protobuf::Message as _;
use raft::eraftpb::Message;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::control::catalog_member::Outbound;
use crate::control::node::Node;
use crate::control::proto::internal::{InstallHead, InstallPiece, RaftBatch, StateRow};
use crate::control::storage::Snapshot;
use crate::types::MemberId;

/// Messages that may wait for one receiver.
const QUEUE_MAX: usize = 256;
/// Messages that one call sends at most.
const BATCH_MAX: usize = 64;

/// The queues of one member, by receiver.
pub struct Queues {
    node: Weak<Node>,
    runtime: Handle,
    queues: Mutex<HashMap<MemberId, mpsc::Sender<Message>>>,
}

impl Queues {
    /// Call it on the runtime that will send.
    pub fn new(node: &Arc<Node>) -> Queues {
        Queues { node: Arc::downgrade(node), runtime: Handle::current(), queues: Mutex::default() }
    }
}

impl Outbound for Queues {
    fn send(&self, message: Message) {
        let to = MemberId(message.to);
        let mut queues = self.queues.lock().expect("nothing panics while it holds this");
        let queue = queues.entry(to).or_insert_with(|| {
            let (queue, waiting) = mpsc::channel(QUEUE_MAX);
            self.runtime.spawn(send_all(self.node.clone(), to, waiting));
            queue
        });
        if queue.try_send(message).is_err() {
            tracing::debug!(member = to.0, "dropped a message to a slow or unreachable receiver");
        }
    }

    fn install(&self, member: MemberId, snapshot: Snapshot) {
        let node = self.node.clone();
        self.runtime.spawn(async move {
            let Some(node) = node.upgrade() else { return };
            let done = install(&node, member, snapshot).await;
            if let Err(error) = &done {
                tracing::warn!(member = member.0, "could not send the catalog's state: {error}");
            }
            if let Some(catalog) = node.catalog() {
                catalog.resync_ended(member, done.is_ok());
            }
        });
    }
}

/// Sends until the queue or the node is gone.
async fn send_all(node: Weak<Node>, to: MemberId, mut waiting: mpsc::Receiver<Message>) {
    let mut messages = Vec::with_capacity(BATCH_MAX);
    while waiting.recv_many(&mut messages, BATCH_MAX).await > 0 {
        let Some(node) = node.upgrade() else { return };
        let encoded = messages.drain(..).map(|message| {
            let bytes = message.write_to_bytes().expect("our own messages can be encoded");
            Bytes::from(bytes)
        });
        let batch = RaftBatch {
            cluster: node.identity.cluster.to_string(),
            from_pod: node.identity.pod.0,
            from_api: node.addresses.api.to_string(),
            to_member: to.0,
            messages: encoded.collect(),
        };
        if let Err(error) = send(&node, to, batch).await {
            tracing::debug!(member = to.0, "could not send to a member of the catalog: {error}");
            if let Some(catalog) = node.catalog() {
                catalog.unreachable(to);
            }
        }
    }
}

async fn send(node: &Node, to: MemberId, batch: RaftBatch) -> Result<(), tonic::Status> {
    let api = node.peers.pod_of(to).and_then(|pod| node.peers.api_of(pod));
    let api = api.ok_or_else(|| tonic::Status::unavailable("its address is not known"))?;
    let mut request = tonic::Request::new(batch);
    request.set_timeout(SEND_WITHIN);
    node.peers.catalog(api).raft(request).await?;
    Ok(())
}

/// After this time the messages are outdated.
const SEND_WITHIN: std::time::Duration = std::time::Duration::from_secs(1);

async fn install(node: &Node, to: MemberId, snapshot: Snapshot) -> Result<(), tonic::Status> {
    let api = node.peers.pod_of(to).and_then(|pod| node.peers.api_of(pod));
    let api = api.ok_or_else(|| tonic::Status::unavailable("its address is not known"))?;
    let Snapshot { index, term, meta, state } = snapshot;
    let state = state.ok_or_else(|| tonic::Status::internal("there is no state to send"))?;
    let head = InstallHead {
        cluster: node.identity.cluster.to_string(),
        to_member: to.0,
        index,
        term,
        meta,
        rows: state.rows().count() as u64,
    };
    let (pieces, waiting) = mpsc::channel(PIECES_AHEAD);
    // Ends with the receiver: the call failed, or has all pieces.
    tokio::task::spawn_blocking(move || {
        let mut piece = InstallPiece { head: Some(head), rows: Vec::new() };
        let mut bytes = 0;
        for (key, row) in state.rows() {
            let key = Bytes::from(key.encode());
            bytes += key.len() + row.len();
            piece.rows.push(StateRow { key, row });
            if bytes >= PIECE_BYTES {
                bytes = 0;
                if pieces.blocking_send(std::mem::take(&mut piece)).is_err() {
                    return;
                }
            }
        }
        let _gone = pieces.blocking_send(piece);
    });
    let mut request = tonic::Request::new(ReceiverStream::new(waiting));
    request.set_timeout(INSTALL_WITHIN);
    node.peers.streaming(api).install(request).await?;
    Ok(())
}

/// Bytes of one piece of a state, and pieces that wait to be sent.
const PIECE_BYTES: usize = 256 << 10;
const PIECES_AHEAD: usize = 4;
/// A state that takes longer is sent anew.
const INSTALL_WITHIN: std::time::Duration = std::time::Duration::from_secs(300);
