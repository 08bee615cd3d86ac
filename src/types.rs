//! The shared types: ids, positions, requests and errors of all modules. No logic.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

/// Bytes in a block: the unit of checksums, of atomicity and of the log.
pub const BLOCK_BYTES: usize = 4096;
/// Bytes in an extent: the unit of allocation, copy-on-write and resync.
pub const EXTENT_BYTES: usize = 65536;
/// Blocks in an extent.
pub const BLOCKS_PER_EXTENT: u32 = (EXTENT_BYTES / BLOCK_BYTES) as u32;

/// Charged for each extent of a zero write or a trim: memory that the overlay may take for it.
pub const ZERO_EXTENT_BYTES: usize = 128;

const _: () = assert!(BLOCKS_PER_EXTENT == 16, "the masks of the index are 16 bits wide");

macro_rules! id_u64 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
            serde::Serialize, serde::Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id_u64!(
    /// A storage pod: one `holdfast serve` process.
    PodId
);
id_u64!(
    /// A volume; also the *birth volume* that seeds the checksums of its blocks.
    VolumeId
);
id_u64!(
    /// A shard of a volume: one Raft group.
    ShardId
);
id_u64!(
    /// One member of a shard. The catalog assigns the id and never reuses it.
    MemberId
);
id_u64!(
    /// A node's right to use a volume. The catalog assigns the id from the volume's counter and
    /// never reuses it. 0 is no attachment: the volume is open.
    AttachmentId
);
id_u64!(
    /// Counts the changes of who may use a volume, from the same counter as its attachments.
    Generation
);

impl AttachmentId {
    /// Without an attachment: for open volumes only.
    pub const NONE: AttachmentId = AttachmentId(0);
}

/// A random 128-bit identity (of a cluster or a disk), written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Uuid(pub [u8; 16]);

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl std::str::FromStr for Uuid {
    type Err = ParseUuidError;

    fn from_str(text: &str) -> Result<Uuid, ParseUuidError> {
        if text.len() != 32 || !text.is_ascii() {
            return Err(ParseUuidError);
        }
        let mut bytes = [0u8; 16];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[index * 2..index * 2 + 2], 16)
                .map_err(|_| ParseUuidError)?;
        }
        Ok(Uuid(bytes))
    }
}

/// The text was not 32 hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("an identity is 32 hexadecimal digits")]
pub struct ParseUuidError;

impl serde::Serialize for Uuid {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Uuid {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Uuid, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Index of a block in its shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block(pub u32);

impl Block {
    /// The extent that holds this block.
    pub fn extent(self) -> Extent {
        Extent(self.0 / BLOCKS_PER_EXTENT)
    }

    /// Position within its extent, 0 to 15.
    pub fn in_extent(self) -> u32 {
        self.0 % BLOCKS_PER_EXTENT
    }
}

/// Index of an extent in its shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent(pub u32);

impl Extent {
    /// The first block of this extent.
    pub fn first_block(self) -> Block {
        Block(self.0 * BLOCKS_PER_EXTENT)
    }
}

/// A run of whole blocks of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockRange {
    pub first: Block,
    /// Number of blocks, at least 1.
    pub count: u32,
}

impl BlockRange {
    /// One past the last block.
    pub fn end(self) -> u32 {
        self.first.0 + self.count
    }

    /// True when the ranges share a block.
    pub fn overlaps(self, other: BlockRange) -> bool {
        self.first.0 < other.end() && other.first.0 < self.end()
    }

    /// Every block of the range, in order.
    pub fn blocks(self) -> impl Iterator<Item = Block> {
        (self.first.0..self.end()).map(Block)
    }

    /// Every extent that the range touches, in order.
    pub fn extents(self) -> impl Iterator<Item = Extent> {
        let last = Block(self.end().max(1) - 1).extent();
        (self.first.extent().0..=last.0).map(Extent)
    }

    /// Length in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.count) * BLOCK_BYTES as u64
    }

    /// Number of extents that the range touches.
    pub fn extent_count(self) -> u64 {
        let last = Block(self.end().max(1) - 1).extent();
        u64::from(last.0 - self.first.extent().0) + 1
    }
}

/// A point of a pod's monotonic clock (BOOTTIME), in nanoseconds. Never compared across pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mono(pub u64);

impl Mono {
    /// Time from `earlier` to this point; zero when `earlier` is later.
    pub fn since(self, earlier: Mono) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Mono {
    type Output = Mono;

    fn add(self, duration: Duration) -> Mono {
        Mono(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

/// A front end's use of one shard. A shard records one for each attachment, and only a higher one
/// replaces it (rule `sessions-only-grow`). Counter 0: none was recorded.
///
/// The low bits of a counter are the tag of the process, drawn when it started. So two processes
/// under one identity never have the same session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Session {
    pub counter: u64,
    /// The pod of the front end.
    pub pod: PodId,
}

impl Session {
    /// The bits of a counter that are the process's tag.
    pub const TAG_MASK: u64 = (1 << 24) - 1;

    /// True when one process has both.
    pub fn is_of_the_process_of(self, other: Session) -> bool {
        self.pod == other.pod && (self.counter ^ other.counter) & Session::TAG_MASK == 0
    }
}

/// The sender of a request, kept in every log entry (rule `session-checked-at-apply`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    pub attachment: AttachmentId,
    pub session: Session,
}

/// What an attachment may do.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum AccessMode {
    /// One node reads and writes.
    ReadWrite,
    /// Many nodes read. Shards refuse their writes.
    ReadOnly,
    /// Many nodes read and write, and coordinate their writes themselves.
    Raw,
}

/// A file system that nodes make of volumes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileSystemKind {
    Ext4,
    Xfs,
}

impl FileSystemKind {
    /// As mount(8) and blkid(8) call it.
    pub fn name(self) -> &'static str {
        match self {
            FileSystemKind::Ext4 => "ext4",
            FileSystemKind::Xfs => "xfs",
        }
    }

    /// The one that has a name.
    pub fn named(name: &str) -> Option<FileSystemKind> {
        [FileSystemKind::Ext4, FileSystemKind::Xfs].into_iter().find(|kind| kind.name() == name)
    }
}

impl fmt::Display for FileSystemKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An attachment that may use a volume.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Grant {
    pub attachment: AttachmentId,
    pub mode: AccessMode,
}

/// The attachments that may use a shard at a time. Their clients are few: nodes.
pub const GRANTS_MAX: usize = 256;

/// Who may use a volume: an access set, as the catalog wants it in every shard. A shard takes it
/// if its generation is higher than the shard's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct AccessSet {
    pub generation: Generation,
    /// Anybody may use it, without an attachment.
    pub open: bool,
    /// In the order of their ids.
    pub grants: Vec<Grant>,
}

impl Default for AccessSet {
    /// A volume that anybody may use.
    fn default() -> AccessSet {
        AccessSet { generation: Generation(0), open: true, grants: Vec::new() }
    }
}

impl AccessSet {
    /// False for what no catalog asks for. An id is not above the generation, because both are of
    /// one counter: so a shard that does not list an id knows whether it had it.
    pub fn is_valid(&self) -> bool {
        let in_order = self.grants.is_sorted_by(|one, next| one.attachment < next.attachment);
        let in_bounds = |grant: &Grant| (1..=self.generation.0).contains(&grant.attachment.0);
        in_order && self.grants.len() <= GRANTS_MAX && self.grants.iter().all(in_bounds)
    }
}

/// One operation on one shard, complete and validated. Offsets are relative to the shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardOp {
    /// Answered with [`ShardReply::Data`] for exactly the range.
    Read { range: BlockRange },
    /// Whole blocks. `data` is `range.count` blocks in memory aligned to 4 KiB; `crcs` holds one
    /// [`block_crc`] per block.
    Write { range: BlockRange, data: Bytes, crcs: Vec<u32> },
    /// A part of one block, never the whole: `offset_bytes + data.len() <= BLOCK_BYTES`.
    WritePartial { block: Block, offset_bytes: u32, data: Bytes },
    /// Whole blocks that read as zeroes from now on. With `trim` their space is freed; without it,
    /// whole extents keep their space.
    Zero { range: BlockRange, trim: bool },
    /// Answered with [`ShardReply::Status`] for exactly the range.
    Status { range: BlockRange },
    /// Records the session of its origin, before anything else is asked for in it. It `renews` when
    /// requests from before depend on it: then it must not follow another front end's session.
    Touch { renews: bool },
    /// Sets who may use the shard. Answered with [`ShardReply::Access`], whoever sends it. May be
    /// repeated.
    SetAccess(AccessSet),
}

impl ShardOp {
    /// Bytes of data in a successful answer.
    pub fn reply_bytes(&self) -> usize {
        match self {
            ShardOp::Read { range } => range.count as usize * BLOCK_BYTES,
            _ => 0,
        }
    }

    /// The blocks this operation touches; no block for those that touch none.
    pub fn range(&self) -> BlockRange {
        match self {
            ShardOp::Touch { .. } | ShardOp::SetAccess(_) => {
                BlockRange { first: Block(0), count: 0 }
            }
            ShardOp::Read { range }
            | ShardOp::Write { range, .. }
            | ShardOp::Zero { range, .. }
            | ShardOp::Status { range } => *range,
            ShardOp::WritePartial { block, .. } => BlockRange { first: *block, count: 1 },
        }
    }

    /// True when the operation changes bytes.
    pub fn is_write(&self) -> bool {
        match self {
            ShardOp::Write { .. } | ShardOp::WritePartial { .. } | ShardOp::Zero { .. } => true,
            ShardOp::Read { .. } | ShardOp::Status { .. } => false,
            ShardOp::Touch { .. } | ShardOp::SetAccess(_) => false,
        }
    }

    /// True when the operation is carried out by an entry of the log.
    pub fn is_logged(&self) -> bool {
        !matches!(self, ShardOp::Read { .. } | ShardOp::Status { .. })
    }

    /// Bytes of payload in the operation, for budgets.
    pub fn payload_bytes(&self) -> usize {
        match self {
            ShardOp::Write { data, .. } | ShardOp::WritePartial { data, .. } => data.len(),
            _ => 0,
        }
    }

    /// Extents that it zeroes or trims.
    pub fn zero_extents(&self) -> u64 {
        match self {
            ShardOp::Zero { range, .. } => range.extent_count(),
            _ => 0,
        }
    }

    /// What it costs, for budgets: its payload, and the memory for what it zeroes.
    pub fn charge_bytes(&self) -> usize {
        self.payload_bytes() + self.zero_extents() as usize * ZERO_EXTENT_BYTES
    }

    /// False for what needs no slot anywhere: where a part of a block becomes zeroes, the block has
    /// a slot, or is zero already and is not written.
    pub fn needs_space(&self) -> bool {
        match self {
            ShardOp::Write { .. } => true,
            ShardOp::WritePartial { data, .. } => data.iter().any(|byte| *byte != 0),
            ShardOp::Zero { .. } | ShardOp::Read { .. } | ShardOp::Status { .. } => false,
            ShardOp::Touch { .. } | ShardOp::SetAccess(_) => false,
        }
    }
}

/// A run of bytes in the answer to a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    Data(Bytes),
    /// This many bytes of zeroes.
    Zero(usize),
}

impl Segment {
    /// Length in bytes.
    pub fn len_bytes(&self) -> usize {
        match self {
            Segment::Data(data) => data.len(),
            Segment::Zero(len) => *len,
        }
    }
}

/// A run of blocks that share an allocation state (`base:allocation` of NBD).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatusRun {
    /// Number of blocks.
    pub count: u32,
    /// The run uses no space and reads as zeroes.
    pub hole: bool,
}

/// The answer of a shard to a successful operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShardReply {
    /// The change is durable on a majority and applied.
    Done,
    /// The data in order, with one checksum per block (0 for a block of zeroes that is recorded as
    /// zero and not stored).
    Data {
        segments: Vec<Segment>,
        crcs: Vec<u32>,
    },
    Status(Vec<StatusRun>),
    /// The generation of the shard's access set, which is applied on a majority. It is below the
    /// one that was asked for when the shard refused that.
    Access {
        generation: Generation,
    },
}

/// How to treat the space of blocks that will read as zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroHow {
    /// Free it. Partially covered blocks at the edges may keep their content.
    Trim,
    /// Free it. Every byte of the range reads as zero.
    Free,
    /// Keep allocated space, so that a later write needs none.
    Keep,
}

/// One operation of a client on a volume, validated against its size. Offsets and lengths are in
/// bytes, of any alignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockOp {
    Read {
        offset: u64,
        len: u32,
    },
    /// `data` starts in memory `offset % BLOCK_BYTES` bytes after a 4 KiB boundary, so that its
    /// whole blocks are aligned.
    Write {
        offset: u64,
        data: Bytes,
    },
    /// The bytes read as zeroes from now on.
    Zero {
        offset: u64,
        len: u32,
        how: ZeroHow,
    },
    /// Answered at once, because every acknowledged write is durable.
    Flush,
    Status {
        offset: u64,
        len: u32,
    },
}

/// What zeroing so many bytes costs, for budgets: memory of the overlay for each extent.
pub fn zero_charge_bytes(len_bytes: u64) -> usize {
    (len_bytes.div_ceil(EXTENT_BYTES as u64) + 1) as usize * ZERO_EXTENT_BYTES
}

/// The answer of a volume to a successful operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockReply {
    Done,
    /// Exactly the requested bytes, in order.
    Data(Vec<Segment>),
    /// Runs of (length in bytes, hole), in order, at least one, covering the requested range.
    Status(Vec<(u64, bool)>),
}

/// Why a block operation did not succeed. Each front end maps these errors in one table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// This member does not lead, and nothing was proposed. Retry at the hint.
    #[error("this replica does not lead its shard")]
    NotLeader { hint: Option<MemberId>, term: u64 },
    /// A queue is full, and nothing was proposed. Retry.
    #[error("the shard is busy")]
    Busy,
    /// The outcome is unknown, because the leader or the connection was lost. Retry under a higher
    /// session.
    #[error("the outcome of the request is not known yet")]
    Unknown,
    /// A higher session was recorded for the attachment. The change was certainly not applied.
    #[error("a newer session of pod {} is in use", recorded.pod)]
    StaleSession { recorded: Session },
    /// No session was recorded yet, or a lower one. The change was certainly not applied.
    #[error("the session was not recorded yet")]
    NotTouched,
    /// The shard has not heard of the attachment yet. The change was certainly not applied.
    #[error("the shard has not heard of the attachment yet")]
    NotYet,
    /// The attachment may not use the shard any more. The change was not applied, and never will
    /// be.
    #[error("this client is fenced: it may not use the volume any more")]
    Fenced,
    #[error("the request reaches beyond the end of the volume")]
    OutOfRange,
    #[error("the volume is read-only")]
    ReadOnly,
    #[error("there is no space left on the disks of this shard")]
    NoSpace,
    /// No intact copy could be read here.
    #[error("no intact copy of the data can be read")]
    MediaFault,
    /// The volume is being deleted, or this pod does not know it.
    #[error("the volume does not exist")]
    NoSuchVolume,
    #[error("the request is malformed")]
    Invalid,
    /// The request has waited for as long as its volume lets requests wait. Its outcome is unknown.
    /// Only front ends say that.
    #[error("the volume did not answer within its timeout for I/O")]
    TimedOut,
}

impl BlockError {
    /// True when the router retries by itself and does not tell the client.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            BlockError::NotLeader { .. }
                | BlockError::Busy
                | BlockError::Unknown
                | BlockError::StaleSession { .. }
                | BlockError::NotTouched
                | BlockError::NotYet
        )
    }

    /// True when a shard with a leader says it.
    pub fn is_answer(&self) -> bool {
        let is_judged = matches!(self, BlockError::StaleSession { .. } | BlockError::NotTouched);
        is_judged || !self.is_retryable()
    }
}

/// A part of the manifest of a member (the list of all its extents), as of `applied_index`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestChunk {
    /// In order, one per existing extent.
    pub extents: Vec<ManifestEntry>,
    /// Start of the next chunk; `None`: this is the last.
    pub next: Option<Extent>,
    pub applied_index: u64,
    pub applied_term: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestEntry {
    pub extent: Extent,
    pub layer: u32,
    pub last_changed: u64,
    pub present: u16,
    pub zero: u16,
}

/// One whole extent in transfer to another member. `data` holds the present blocks, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentContent {
    pub extent: Extent,
    pub layer: u32,
    pub last_changed: u64,
    pub present: u16,
    pub zero: u16,
    pub crcs: Vec<u32>,
    pub data: Bytes,
}

/// Checksum of one stored block: CRC-32 seeded with the birth volume and the block's number in that
/// volume. So the bytes of another block do not pass for this one's.
pub fn block_crc(birth: VolumeId, block_in_volume: u64, data: &[u8]) -> u32 {
    debug_assert_eq!(data.len(), BLOCK_BYTES);
    let mut hasher = crc32fast::Hasher::new_with_initial(crc_seed(birth, block_in_volume));
    hasher.update(data);
    hasher.finalize()
}

fn crc_seed(birth: VolumeId, block_in_volume: u64) -> u32 {
    let mixed = mix64(birth.0 ^ mix64(block_in_volume));
    (mixed ^ (mixed >> 32)) as u32
}

/// A fixed bijective mix of 64 bits (the finaliser of splitmix64). Part of the disk format.
pub fn mix64(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// Accepted writes not yet in a log (rules `log-reserve`, `space-before-append`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unappended {
    pub payload_bytes: u64,
    /// Upper bound of the number of extents that they touch.
    pub extents: u64,
}

impl Unappended {
    /// Adds one write of whole blocks, or of a part of one.
    pub fn add(&mut self, payload_bytes: usize) {
        self.payload_bytes += payload_bytes as u64;
        if payload_bytes > 0 {
            let others = payload_bytes.saturating_sub(BLOCK_BYTES).div_ceil(EXTENT_BYTES);
            self.extents += 1 + others as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_elsewhere_have_another_checksum() {
        let data = [7u8; BLOCK_BYTES];
        let here = block_crc(VolumeId(1), 5, &data);
        assert_ne!(here, block_crc(VolumeId(1), 6, &data));
        assert_ne!(here, block_crc(VolumeId(2), 5, &data));
        assert_eq!(here, block_crc(VolumeId(1), 5, &data));
    }

    #[test]
    fn an_identity_survives_its_text() {
        let uuid = Uuid(*b"0123456789abcdef");
        assert_eq!(uuid.to_string().parse::<Uuid>().unwrap(), uuid);
        assert!("xyz".parse::<Uuid>().is_err());
        assert!("é".repeat(16).parse::<Uuid>().is_err());
    }
}
