//! A lane: what joins log, overlay, write-back, index and allocator.

use bytes::Bytes;

use crate::io::buffer::Pool;
use crate::store::seam::*;
use crate::types::*;

/// Blocking access to a disk's files, for opening only.
pub trait LaneFiles {
    /// Exactly `len` bytes, in aligned memory.
    fn read(&mut self, file: LaneFile, offset: u64, len: usize) -> std::io::Result<Bytes>;
    /// Durable when it returns.
    fn write(&mut self, file: LaneFile, offset: u64, bytes: &[u8]) -> std::io::Result<()>;
    fn size_bytes(&mut self, file: LaneFile) -> std::io::Result<u64>;
}

/// What a lane is opened with.
#[derive(Clone, Debug)]
pub struct LaneConfig {
    /// Bytes of slots that the data file may grow to.
    pub data_bytes_max: u64,
    /// Memory for payloads of the overlay.
    pub overlay_cache_bytes: usize,
    /// Memory for extent records.
    pub index_cache_bytes: usize,
    /// Payloads of applied entries that are handed out at start, for followers, in all.
    pub log_tail_bytes: usize,
}

/// A member as it was found.
#[derive(Debug)]
pub struct RecoveredMember {
    pub record: MemberRecord,
    pub hard: HardState,
    /// From `record.flushed_index + 1` on, contiguous. The caller decodes and applies the ones up
    /// to `hard.commit` (see [`Lane::apply`]) before anything else.
    pub entries: Vec<RecoveredEntry>,
    /// It may have forgotten a vote or an acknowledgement.
    pub faulted: bool,
}

#[derive(Debug)]
pub struct RecoveredEntry {
    /// `payload` is empty unless `loaded`.
    pub entry: LogEntry,
    pub payload_bytes: u32,
    /// False for an applied entry whose payload was left in the log.
    pub loaded: bool,
}

/// Why a change is not accepted now (rules R9, R10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The log is full until write-back or images have made room: retry.
    LogFull,
    /// The data file has no slot left for it.
    NoSpace,
}

/// See the module.
pub struct Lane {
    _private: (),
}

#[allow(unused_variables)]
impl Lane {
    /// Opens a formatted disk's lane: reads superblock, log and index, raises the incarnation.
    pub fn open(
        config: LaneConfig,
        pool: Pool,
        files: &mut dyn LaneFiles,
        index: &mut dyn crate::store::index::IndexStore,
    ) -> Result<(Lane, Vec<RecoveredMember>), crate::store::OpenError> {
        todo!()
    }

    /// This disk's identity and incarnation.
    pub fn superblock(&self) -> &crate::store::superblock::Superblock {
        todo!()
    }

    /// A new, empty member. `Event::MemberDurable` follows; nothing else may be asked before.
    pub fn create_member(&mut self, record: MemberRecord) {
        todo!()
    }

    /// Forgets a member for ever. `Event::MemberDurable` follows; its space comes back.
    pub fn destroy_member(&mut self, member: MemberId) {
        todo!()
    }

    /// Queues an append. `Event::Appended` follows, in order.
    pub fn append(&mut self, request: AppendRequest) {
        todo!()
    }

    /// Whether changes of these blocks may be appended (or proposed) now; keeps nothing.
    pub fn admit(
        &self,
        member: MemberId,
        payload_bytes: u64,
        ranges: &[BlockRange],
    ) -> Result<(), Refusal> {
        todo!()
    }

    /// A committed entry, in order. At replay the same call, with `payload` empty, skips what the
    /// index already has (rule R3).
    pub fn apply(&mut self, member: MemberId, request: ApplyRequest) {
        todo!()
    }

    /// Reads whole blocks as of everything applied.
    pub fn read(&mut self, read: ReadId, member: MemberId, range: BlockRange) {
        todo!()
    }

    pub fn status(&mut self, read: ReadId, member: MemberId, range: BlockRange) {
        todo!()
    }

    /// The list of extents from `from` on, as of everything applied.
    pub fn manifest(&mut self, read: ReadId, member: MemberId, from: Extent) {
        todo!()
    }

    pub fn fetch_extent(&mut self, read: ReadId, member: MemberId, extent: Extent, layer: u32) {
        todo!()
    }

    /// Sets the durable *resyncing* mark and writes the member's overlay back;
    /// `Event::MemberDurable` follows.
    pub fn begin_resync(&mut self, member: MemberId) {
        todo!()
    }

    /// Puts whole extents in place and deletes others; `Event::Installed` follows.
    pub fn install_extents(
        &mut self,
        read: ReadId,
        member: MemberId,
        extents: Vec<ExtentContent>,
        delete: Vec<(Extent, u32)>,
    ) {
        todo!()
    }

    /// Everything up to `index` is in place: makes that durable, with the metadata as of it;
    /// `Event::MemberDurable` follows. The mark stays until `clear_resync`.
    pub fn finish_resync(&mut self, member: MemberId, index: u64, term: u64, meta: Bytes) {
        todo!()
    }

    /// Clears the *resyncing* mark; `Event::MemberDurable` follows.
    pub fn clear_resync(&mut self, member: MemberId) {
        todo!()
    }

    /// An effect ended.
    pub fn complete(&mut self, op: OpId, done: Done) {
        todo!()
    }

    /// Once per round, after every input: what to do and what happened.
    pub fn poll(&mut self, now: Mono, effects: &mut Vec<Effect>, events: &mut Vec<Event>) {
        todo!()
    }

    /// When `poll` wants to be called again although nothing happens (idle mark, pacing).
    pub fn deadline(&self) -> Option<Mono> {
        todo!()
    }

    pub fn space(&self) -> Space {
        todo!()
    }
}

/// For reports and admission.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    /// Free and not reserved.
    pub free_bytes: u64,
    pub log_bytes: u64,
    pub log_used_bytes: u64,
    pub overlay_blocks: u64,
}
