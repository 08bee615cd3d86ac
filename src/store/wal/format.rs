//! The bytes of a batch: a pure codec, which knows neither places nor torn batches.
//!
//! A batch is *header pages*, then *payload pages*. A page is 4 KiB, all numbers are little
//! endian. The header pages hold, without gaps:
//!
//! | what | bytes |
//! |---|---|
//! | fixed part | 128 |
//! | item index: one record of 32 per run of items of one member | 32 x records |
//! | copy of the predecessor's item index | 32 x records |
//! | item bodies | as counted in the fixed part |
//! | zeroes up to the page | |
//!
//! Fixed part (offset, type, meaning):
//!
//! ```text
//!   0 [u8;8] magic "HOLDWAL\n"        64 u32 items
//!   8 u16    version, 1               68 u32 records of the item index
//!  10 u16    flags, 0                 72 u32 records of the predecessor's index
//!  12 u32    CRC of bytes 0..124      76 u32 bytes of item bodies
//!            without this field       80 u64 largest contiguous sequence known durable
//!  16 u64    sequence                 88 u64 sequence of the tail
//!  24 u64    incarnation              96 u64 base: last sequence that this incarnation kept
//!  32 uuid   disk                    104 u64 sequence of the predecessor
//!  48 u64    own offset in the ring  112 u64 sequence of the predecessor's predecessor
//!  56 u32    pages in all            120 u32 batch CRC of the predecessor (the chain)
//!  60 u32    header pages            124 u32 batch CRC: all header pages but this field
//! ```
//!
//! In every later version, bytes 0 to 64 keep their place and the CRC at 12 its meaning. So an old
//! program can tell a newer batch from a damaged one.
//!
//! Index record: member u64, kinds u8 (bit set, see [`kinds`]), 7 zeroes, first index u64, last
//! index u64 (both 0 without entries). A record of kind [`kinds::ANY`] stands for a lost
//! predecessor with unknown content: any member may have been in it.
//!
//! Item bodies, by their first byte:
//!
//! ```text
//! 1 HardState  kind u8, 0 x7, member u64, term u64, vote u64, commit u64
//! 2 entry      kind u8, Raft entry type u8, 0 x2, context bytes u32, member u64, index u64,
//!              term u64, payload bytes u32, payload CRC u32, first payload page u32 (counted
//!              from the first payload page of the batch), 0 u32, context
//! 3 reset      kind u8, 0 x7, member u64, index u64, term u64
//! 4 log        kind u8, 0 x3, entries u32, member u64, term u64, vote u64, commit u64,
//!   snapshot   compacted index u64, compacted term u64, then as many bodies of kind 2 or 5
//! 5 bypassed   kind u8, Raft entry type u8, slots u16, context bytes u32, member u64, index u64,
//!   entry      term u64, first extent u32, 0 u32, then per slot: slot u32, 16 x block CRC u32;
//!              then context
//! 6 fault      kind u8, 0 x7, member u64
//! ```
//!
//! Every CRC is CRC-32. Its start value is derived from the disk's secret seed, the incarnation,
//! the sequence and the place of the covered bytes. So bytes of clients, of other disks and of
//! earlier laps do not pass. Each payload starts at a page. The CRC in its entry's body covers it,
//! so the batch CRC vouches for payloads, too.
//!
//! A bypassed entry writes whole extents. Its payload is in slots of the data file, one per extent
//! from the first on. The slots are durable before the batch is written (rule
//! `bypass-before-batch`), so recovery only needs an intact batch. The block CRCs are those of the
//! index. A log may hold such entries only when the superblock has the feature
//! [`crate::store::superblock::FEATURE_BYPASS`].

use bytes::{BufMut, Bytes};

use crate::fields::{FieldError, Fields, PutFields};
use crate::log::{Bypass, BypassSlot, HardState, LogEntry, Slot};
use crate::types::{BLOCK_BYTES, EXTENT_BYTES, MemberId, Uuid, mix64};

use super::{BatchSeq, Item};

/// Bytes of the fixed part of a header.
pub const FIXED_BYTES: usize = 128;
/// Bytes of a record of the item index.
pub const RECORD_BYTES: usize = 32;
/// The largest header to write or read; bounds the decoder's allocations.
pub const HEADER_BYTES_MAX: usize = 64 << 20;

const MAGIC: [u8; 8] = *b"HOLDWAL\n";
const VERSION: u16 = 1;
const FIXED_CRC_AT: usize = 12;
const BATCH_CRC_AT: usize = 124;
const ENTRY_BODY_BYTES: usize = 48;
const BYPASS_BODY_BYTES: usize = 40;
const BYPASS_SLOT_BYTES: usize = 68;

/// Bits of an index record: the kinds of a member's items in a batch.
pub mod kinds {
    pub const HARD: u8 = 1;
    pub const ENTRY: u8 = 2;
    pub const RESET: u8 = 4;
    pub const LOG_SNAPSHOT: u8 = 8;
    pub const FAULT: u8 = 16;
    /// Unknown content: any item of any member.
    pub const ANY: u8 = 128;
}

mod body {
    pub const HARD: u8 = 1;
    pub const ENTRY: u8 = 2;
    pub const RESET: u8 = 3;
    pub const LOG_SNAPSHOT: u8 = 4;
    pub const BYPASS: u8 = 5;
    pub const FAULT: u8 = 6;
}

/// The identity of a disk, and the secret seed of its log's checksums.
#[derive(Clone, Copy, Debug)]
pub struct Keys {
    pub disk: Uuid,
    pub seed: u64,
}

impl Keys {
    fn crc_start(&self, incarnation: u64, seq: BatchSeq, place: u64) -> u32 {
        let mixed = mix64(mix64(mix64(self.seed ^ mix64(incarnation)) ^ seq.0) ^ place);
        (mixed ^ (mixed >> 32)) as u32
    }

    fn fixed_start(&self, incarnation: u64, seq: BatchSeq) -> u32 {
        self.crc_start(incarnation, seq, 1 << 32)
    }

    fn batch_start(&self, incarnation: u64, seq: BatchSeq) -> u32 {
        self.crc_start(incarnation, seq, 2 << 32)
    }

    /// Start value of a payload's CRC. It depends on the page, so that swapped payloads within a
    /// batch fail their checksums.
    pub fn payload_start(&self, incarnation: u64, seq: BatchSeq, payload_page: u32) -> u32 {
        self.crc_start(incarnation, seq, u64::from(payload_page))
    }
}

/// CRC of the concatenated `parts`, with start value `start` (see [`Keys`]).
pub fn crc_from(start: u32, parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(start);
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize()
}

/// The number of pages for `bytes` bytes.
pub fn pages(bytes: usize) -> usize {
    bytes.div_ceil(BLOCK_BYTES)
}

/// The fixed part of a batch's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    pub seq: BatchSeq,
    pub incarnation: u64,
    pub offset: u64,
    pub total_pages: u32,
    pub header_pages: u32,
    pub items: u32,
    pub index_records: u32,
    pub previous_records: u32,
    pub body_bytes: u32,
    pub durable_seq: BatchSeq,
    pub tail_seq: BatchSeq,
    pub base_seq: BatchSeq,
    pub previous_seq: BatchSeq,
    pub before_previous_seq: BatchSeq,
    pub previous_crc: u32,
    /// Filled in by [`encode`].
    pub crc: u32,
}

impl Header {
    pub fn header_bytes(&self) -> usize {
        self.header_pages as usize * BLOCK_BYTES
    }

    pub fn total_bytes(&self) -> u64 {
        u64::from(self.total_pages) * BLOCK_BYTES as u64
    }

    /// Bytes of the header pages that are not padding.
    fn used_bytes(&self) -> usize {
        FIXED_BYTES
            + (self.index_records as usize + self.previous_records as usize) * RECORD_BYTES
            + self.body_bytes as usize
    }

    pub(crate) fn write(&self, keys: &Keys, out: &mut [u8]) {
        let mut fields = &mut out[..BATCH_CRC_AT];
        fields.put_slice(&MAGIC);
        fields.put_u16_le(VERSION);
        // Flags, and the checksum that is filled in below.
        fields.put_bytes(0, 6);
        fields.put_u64s_le(&[self.seq.0, self.incarnation]);
        fields.put_slice(&keys.disk.0);
        fields.put_u64_le(self.offset);
        fields.put_u32s_le(&[
            self.total_pages,
            self.header_pages,
            self.items,
            self.index_records,
            self.previous_records,
            self.body_bytes,
        ]);
        fields.put_u64s_le(&[
            self.durable_seq.0,
            self.tail_seq.0,
            self.base_seq.0,
            self.previous_seq.0,
            self.before_previous_seq.0,
        ]);
        fields.put_u32_le(self.previous_crc);
        let crc = fixed_crc(keys, self.incarnation, self.seq, out);
        out[FIXED_CRC_AT..FIXED_CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    }

    /// The counterpart of `write`, from the own offset on.
    fn take(
        fields: &mut Fields<&[u8]>,
        seq: BatchSeq,
        incarnation: u64,
    ) -> Result<Header, FieldError> {
        Ok(Header {
            seq,
            incarnation,
            offset: fields.u64()?,
            total_pages: fields.u32()?,
            header_pages: fields.u32()?,
            items: fields.u32()?,
            index_records: fields.u32()?,
            previous_records: fields.u32()?,
            body_bytes: fields.u32()?,
            durable_seq: BatchSeq(fields.u64()?),
            tail_seq: BatchSeq(fields.u64()?),
            base_seq: BatchSeq(fields.u64()?),
            previous_seq: BatchSeq(fields.u64()?),
            before_previous_seq: BatchSeq(fields.u64()?),
            previous_crc: fields.u32()?,
            crc: fields.u32()?,
        })
    }
}

fn fixed_crc(keys: &Keys, incarnation: u64, seq: BatchSeq, page: &[u8]) -> u32 {
    let start = keys.fixed_start(incarnation, seq);
    crc_from(start, &[&page[..FIXED_CRC_AT], &page[FIXED_CRC_AT + 4..BATCH_CRC_AT]])
}

fn batch_crc(keys: &Keys, incarnation: u64, seq: BatchSeq, header: &[u8]) -> u32 {
    let start = keys.batch_start(incarnation, seq);
    crc_from(start, &[&header[..BATCH_CRC_AT], &header[FIXED_BYTES..]])
}

/// The reason why bytes are not a batch of this disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Not a header of this disk, or a damaged one.
    #[error("no batch header")]
    NoHeader,
    #[error("a batch of format version {version}, which this program does not know")]
    Version { version: u16, seq: BatchSeq },
    #[error("a batch header that fails its checksum")]
    Checksum,
    #[error("a batch header that contradicts itself: {0}")]
    Malformed(&'static str),
}

impl From<FieldError> for FormatError {
    fn from(error: FieldError) -> FormatError {
        FormatError::Malformed(match error {
            FieldError::Short => "an item reaches beyond the header",
            FieldError::Long => "bytes behind the last item",
            FieldError::Value { field, .. } => field,
        })
    }
}

/// Reads the fixed part of a header from the first page of a possible batch. The result has passed
/// the CRC of the fixed part, so its lengths can be used; [`decode`] checks the rest.
pub fn decode_fixed(keys: &Keys, page: &[u8]) -> Result<Header, FormatError> {
    if page.len() < FIXED_BYTES || page[..8] != MAGIC || page[32..48] != keys.disk.0 {
        return Err(FormatError::NoHeader);
    }
    let mut fields = Fields::new(&page[8..FIXED_BYTES]);
    let (version, flags, crc) = (fields.u16()?, fields.u16()?, fields.u32()?);
    let (seq, incarnation) = (BatchSeq(fields.u64()?), fields.u64()?);
    if crc != fixed_crc(keys, incarnation, seq, page) {
        return Err(FormatError::NoHeader);
    }
    if version != VERSION {
        return Err(FormatError::Version { version, seq });
    }
    fields.skip(keys.disk.0.len())?;
    let header = Header::take(&mut fields, seq, incarnation)?;
    if flags != 0 {
        return Err(FormatError::Malformed("unknown flags"));
    }
    if header.header_pages == 0 || header.header_pages > header.total_pages {
        return Err(FormatError::Malformed("lengths"));
    }
    if header.header_bytes() > HEADER_BYTES_MAX || header.used_bytes() > header.header_bytes() {
        return Err(FormatError::Malformed("header length"));
    }
    Ok(header)
}

/// A record of an item index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub member: MemberId,
    /// See [`kinds`].
    pub kinds: u8,
    /// Smallest and largest Raft index of entries, reset points and compacted points.
    pub first: u64,
    pub last: u64,
}

impl Summary {
    /// Stands for a batch with unknown content.
    pub const ANY: Summary = Summary { member: MemberId(0), kinds: kinds::ANY, first: 0, last: 0 };

    fn of(item: &Item) -> Summary {
        let (member, kinds, first, last) = match item {
            Item::Hard { member, .. } => (*member, kinds::HARD, 0, 0),
            Item::Entry { member, entry } => (*member, kinds::ENTRY, entry.index, entry.index),
            Item::Reset { member, index, .. } => (*member, kinds::RESET, *index, *index),
            Item::LogSnapshot { member, compacted_index, entries, .. } => {
                let last = entries.last().map_or(*compacted_index, |entry| entry.index);
                let kinds = kinds::LOG_SNAPSHOT | kinds::HARD;
                (*member, kinds, *compacted_index, last)
            }
            Item::Fault { member } => (*member, kinds::FAULT, 0, 0),
        };
        Summary { member, kinds, first, last }
    }

    /// One record for both, if they belong to the same member.
    fn merge(self, next: Summary) -> Option<Summary> {
        const INDEXED: u8 = kinds::ENTRY | kinds::RESET | kinds::LOG_SNAPSHOT;
        if self.member != next.member || self.kinds & kinds::ANY != 0 {
            return None;
        }
        let (first, last) = match (self.kinds & INDEXED != 0, next.kinds & INDEXED != 0) {
            (true, true) => (self.first.min(next.first), self.last.max(next.last)),
            (true, false) => (self.first, self.last),
            (false, _) => (next.first, next.last),
        };
        Some(Summary { member: self.member, kinds: self.kinds | next.kinds, first, last })
    }

    pub fn encode(self, out: &mut Vec<u8>) {
        out.put_u64_le(self.member.0);
        out.put_slice(&[self.kinds, 0, 0, 0, 0, 0, 0, 0]);
        out.put_u64s_le(&[self.first, self.last]);
    }

    fn take(fields: &mut Fields<&[u8]>) -> Result<Summary, FieldError> {
        let (member, kinds) = (fields.member()?, fields.u8()?);
        fields.skip(7)?;
        Ok(Summary { member, kinds, first: fields.u64()?, last: fields.u64()? })
    }
}

/// Encodes the item index of a batch with these items.
pub fn item_index<'a>(items: impl Iterator<Item = &'a Item>) -> Vec<u8> {
    let mut out = Vec::new();
    let mut run: Option<Summary> = None;
    for summary in items.map(Summary::of) {
        run = match run {
            None => Some(summary),
            Some(open) => Some(open.merge(summary).unwrap_or_else(|| {
                open.encode(&mut out);
                summary
            })),
        };
    }
    if let Some(open) = run {
        open.encode(&mut out);
    }
    out
}

/// Decodes an item index; its length is a multiple of [`RECORD_BYTES`].
pub fn decode_index(records: &[u8]) -> Vec<Summary> {
    let mut fields = Fields::new(records);
    std::iter::from_fn(|| Summary::take(&mut fields).ok()).collect()
}

/// Bytes of the body of an item.
pub fn body_bytes(item: &Item) -> usize {
    let fixed_bytes = |entry: &LogEntry| match &entry.bypass {
        None => ENTRY_BODY_BYTES,
        Some(bypass) => BYPASS_BODY_BYTES + bypass.slots.len() * BYPASS_SLOT_BYTES,
    };
    let entry_bytes = |entry: &LogEntry| fixed_bytes(entry) + entry.context.len();
    match item {
        Item::Hard { .. } => 40,
        Item::Entry { entry, .. } => entry_bytes(entry),
        Item::Reset { .. } => 32,
        Item::LogSnapshot { entries, .. } => 56 + entries.iter().map(entry_bytes).sum::<usize>(),
        Item::Fault { .. } => 16,
    }
}

/// The entries of an item.
pub fn entries_of(item: &Item) -> &[LogEntry] {
    match item {
        Item::Entry { entry, .. } => std::slice::from_ref(entry),
        Item::LogSnapshot { entries, .. } => entries,
        Item::Hard { .. } | Item::Reset { .. } | Item::Fault { .. } => &[],
    }
}

/// Writes the header pages into `out` (`header.header_bytes()` long, all overwritten) and returns
/// the batch CRC. `header` must agree with `index`, `previous` and `items`. Payloads take whole
/// pages, in the order of their entries.
pub fn encode<'a>(
    keys: &Keys,
    header: &Header,
    index: &[u8],
    previous: &[u8],
    items: impl Iterator<Item = &'a Item>,
    out: &mut [u8],
) -> u32 {
    assert_eq!(out.len(), header.header_bytes());
    header.write(keys, out);
    let mut writer = Writer { keys, header, out: &mut out[FIXED_BYTES..], payload_page: 0 };
    writer.out.put_slice(index);
    writer.out.put_slice(previous);
    let room = writer.out.len();
    let mut count = 0;
    for item in items {
        writer.item(item);
        count += 1;
    }
    assert_eq!(count, header.items);
    assert_eq!(room - writer.out.len(), header.body_bytes as usize);
    assert_eq!(writer.payload_page, header.total_pages - header.header_pages);
    writer.out.fill(0);
    seal(keys, header, out)
}

/// Fills in the batch CRC of header pages, and returns it.
pub(crate) fn seal(keys: &Keys, header: &Header, out: &mut [u8]) -> u32 {
    let crc = batch_crc(keys, header.incarnation, header.seq, out);
    out[BATCH_CRC_AT..FIXED_BYTES].copy_from_slice(&crc.to_le_bytes());
    crc
}

struct Writer<'a> {
    keys: &'a Keys,
    header: &'a Header,
    /// What is still to be written.
    out: &'a mut [u8],
    payload_page: u32,
}

impl Writer<'_> {
    fn item(&mut self, item: &Item) {
        match item {
            Item::Hard { member, hard } => {
                self.kind(body::HARD);
                self.out.put_u64s_le(&[member.0, hard.term, hard.vote, hard.commit]);
            }
            Item::Entry { member, entry } => self.entry(*member, entry),
            Item::Reset { member, index, term } => {
                self.kind(body::RESET);
                self.out.put_u64s_le(&[member.0, *index, *term]);
            }
            Item::LogSnapshot { member, hard, compacted_index, compacted_term, entries } => {
                self.out.put_slice(&[body::LOG_SNAPSHOT, 0, 0, 0]);
                self.out.put_count(entries.len());
                self.out.put_u64s_le(&[member.0, hard.term, hard.vote, hard.commit]);
                self.out.put_u64s_le(&[*compacted_index, *compacted_term]);
                entries.iter().for_each(|entry| self.entry(*member, entry));
            }
            Item::Fault { member } => {
                self.kind(body::FAULT);
                self.out.put_u64_le(member.0);
            }
        }
    }

    fn kind(&mut self, kind: u8) {
        self.out.put_slice(&[kind, 0, 0, 0, 0, 0, 0, 0]);
    }

    fn entry(&mut self, member: MemberId, entry: &LogEntry) {
        if let Some(bypass) = &entry.bypass {
            return self.bypassed(member, entry, bypass);
        }
        let (incarnation, seq) = (self.header.incarnation, self.header.seq);
        let start = self.keys.payload_start(incarnation, seq, self.payload_page);
        self.out.put_slice(&[body::ENTRY, entry.kind, 0, 0]);
        self.out.put_count(entry.context.len());
        self.out.put_u64s_le(&[member.0, entry.index, entry.term]);
        self.out.put_count(entry.payload.len());
        self.out.put_u32s_le(&[crc_from(start, &[&entry.payload]), self.payload_page, 0]);
        self.out.put_slice(&entry.context);
        self.payload_page += pages(entry.payload.len()) as u32;
    }

    fn bypassed(&mut self, member: MemberId, entry: &LogEntry, bypass: &Bypass) {
        assert!(entry.payload.is_empty(), "a payload is in one place");
        let slots = u16::try_from(bypass.slots.len()).expect("bounded by ENTRY_BYTES_MAX");
        self.out.put_slice(&[body::BYPASS, entry.kind]);
        self.out.put_u16_le(slots);
        self.out.put_count(entry.context.len());
        self.out.put_u64s_le(&[member.0, entry.index, entry.term, u64::from(bypass.first.0)]);
        for slot in &bypass.slots {
            self.out.put_u32_le(slot.slot.0);
            self.out.put_u32s_le(&slot.crcs);
        }
        self.out.put_slice(&entry.context);
    }
}

/// The decoded header pages of a batch. Does not keep the pages in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    pub header: Header,
    pub items: Vec<FoundItem>,
    /// Encoded item index.
    pub index: Bytes,
    /// Encoded item index of the predecessor.
    pub previous: Bytes,
}

/// An item of a decoded batch, without payloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FoundItem {
    Hard {
        member: MemberId,
        hard: HardState,
    },
    Entry {
        member: MemberId,
        entry: FoundEntry,
    },
    Reset {
        member: MemberId,
        index: u64,
        term: u64,
    },
    LogSnapshot {
        member: MemberId,
        hard: HardState,
        compacted_index: u64,
        compacted_term: u64,
        entries: Vec<FoundEntry>,
    },
    Fault {
        member: MemberId,
    },
}

/// An entry of a decoded batch, and the place of its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundEntry {
    pub index: u64,
    pub term: u64,
    pub kind: u8,
    pub context: Bytes,
    /// Byte offset in the ring file, a multiple of 4 KiB.
    pub payload_offset: u64,
    /// Bytes in the ring file: 0 for a bypassed entry.
    pub payload_bytes: u32,
    pub payload_crc: u32,
    /// Start value of that CRC.
    pub crc_start: u32,
    /// False if the payload was read and failed its CRC.
    pub payload_ok: bool,
    /// The slots of a bypassed entry's payload.
    pub bypass: Option<Box<Bypass>>,
}

impl FoundEntry {
    /// Bytes of the payload, in the ring or in slots.
    pub fn data_bytes(&self) -> u32 {
        let slots = self.bypass.as_ref().map_or(0, |bypass| bypass.slots.len());
        self.payload_bytes + (slots * EXTENT_BYTES) as u32
    }
}

/// Decodes header pages, after [`decode_fixed`] has read their fixed part.
pub fn decode(keys: &Keys, header: &Header, bytes: &[u8]) -> Result<Batch, FormatError> {
    if bytes.len() != header.header_bytes() {
        return Err(FormatError::Malformed("header length"));
    }
    if batch_crc(keys, header.incarnation, header.seq, bytes) != header.crc {
        return Err(FormatError::Checksum);
    }
    // Copies without the padding: contexts are slices of the copy and keep it in memory.
    let used = Bytes::copy_from_slice(&bytes[FIXED_BYTES..header.used_bytes()]);
    let index_bytes = header.index_records as usize * RECORD_BYTES;
    let records_bytes = index_bytes + header.previous_records as usize * RECORD_BYTES;
    let mut reader = Reader { keys, header, fields: Fields::new(used.slice(records_bytes..)) };
    let items = (0..header.items).map(|_| reader.item()).collect::<Result<Vec<_>, _>>()?;
    reader.fields.end()?;
    Ok(Batch {
        header: *header,
        items,
        index: used.slice(..index_bytes),
        previous: used.slice(index_bytes..records_bytes),
    })
}

struct Reader<'a> {
    keys: &'a Keys,
    header: &'a Header,
    fields: Fields,
}

impl Reader<'_> {
    fn item(&mut self) -> Result<FoundItem, FormatError> {
        match self.fields.u8()? {
            body::HARD => {
                self.fields.skip(7)?;
                Ok(FoundItem::Hard { member: self.fields.member()?, hard: self.hard()? })
            }
            kind @ (body::ENTRY | body::BYPASS) => {
                let (member, entry) = self.entry(kind)?;
                Ok(FoundItem::Entry { member, entry })
            }
            body::RESET => {
                self.fields.skip(7)?;
                let member = self.fields.member()?;
                let (index, term) = (self.fields.u64()?, self.fields.u64()?);
                Ok(FoundItem::Reset { member, index, term })
            }
            body::LOG_SNAPSHOT => self.log_snapshot(),
            body::FAULT => {
                self.fields.skip(7)?;
                Ok(FoundItem::Fault { member: self.fields.member()? })
            }
            _ => Err(FormatError::Malformed("an item of unknown kind")),
        }
    }

    fn hard(&mut self) -> Result<HardState, FieldError> {
        let fields = &mut self.fields;
        Ok(HardState { term: fields.u64()?, vote: fields.u64()?, commit: fields.u64()? })
    }

    /// A body of kind 2 or 5, behind its kind.
    fn entry(&mut self, kind: u8) -> Result<(MemberId, FoundEntry), FormatError> {
        match kind {
            body::ENTRY => self.plain_entry(),
            body::BYPASS => self.bypassed(),
            _ => Err(FormatError::Malformed("a log snapshot holds only entries")),
        }
    }

    fn plain_entry(&mut self) -> Result<(MemberId, FoundEntry), FormatError> {
        let fields = &mut self.fields;
        let kind = fields.u8()?;
        fields.skip(2)?;
        let context_bytes = fields.u32()? as usize;
        let (member, index, term) = (fields.member()?, fields.u64()?, fields.u64()?);
        let (payload_bytes, payload_crc) = (fields.u32()?, fields.u32()?);
        let payload_page = fields.u32()?;
        fields.skip(4)?;
        let payload_pages = self.header.total_pages - self.header.header_pages;
        let end = u64::from(payload_page) + pages(payload_bytes as usize) as u64;
        if end > u64::from(payload_pages) {
            return Err(FormatError::Malformed("a payload reaches beyond its batch"));
        }
        let page = u64::from(self.header.header_pages) + u64::from(payload_page);
        let (incarnation, seq) = (self.header.incarnation, self.header.seq);
        let entry = FoundEntry {
            index,
            term,
            kind,
            context: fields.bytes(context_bytes)?,
            payload_offset: self.header.offset + page * BLOCK_BYTES as u64,
            payload_bytes,
            payload_crc,
            crc_start: self.keys.payload_start(incarnation, seq, payload_page),
            payload_ok: true,
            bypass: None,
        };
        Ok((member, entry))
    }

    fn log_snapshot(&mut self) -> Result<FoundItem, FormatError> {
        self.fields.skip(3)?;
        let count = self.fields.u32()? as usize;
        let (member, hard) = (self.fields.member()?, self.hard()?);
        let (compacted_index, compacted_term) = (self.fields.u64()?, self.fields.u64()?);
        if count > self.fields.remaining_bytes() / ENTRY_BODY_BYTES {
            return Err(FormatError::Malformed("a log snapshot reaches beyond the header"));
        }
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let kind = self.fields.u8()?;
            let (owner, entry) = self.entry(kind)?;
            if owner != member {
                return Err(FormatError::Malformed("a log snapshot of two members"));
            }
            entries.push(entry);
        }
        Ok(FoundItem::LogSnapshot { member, hard, compacted_index, compacted_term, entries })
    }

    fn bypassed(&mut self) -> Result<(MemberId, FoundEntry), FormatError> {
        let fields = &mut self.fields;
        let (kind, count) = (fields.u8()?, usize::from(fields.u16()?));
        let context_bytes = fields.u32()? as usize;
        let (member, index, term) = (fields.member()?, fields.u64()?, fields.u64()?);
        let first = fields.extent()?;
        fields.skip(4)?;
        if count == 0 || first.0.checked_add(count as u32).is_none() {
            return Err(FormatError::Malformed("a bypassed write of no extents"));
        }
        if count > fields.remaining_bytes() / BYPASS_SLOT_BYTES {
            return Err(FieldError::Short.into());
        }
        let mut slots = Vec::with_capacity(count);
        for _ in 0..count {
            let (slot, mut crcs) = (Slot(fields.u32()?), [0; 16]);
            for crc in &mut crcs {
                *crc = fields.u32()?;
            }
            slots.push(BypassSlot { slot, crcs });
        }
        let entry = FoundEntry {
            index,
            term,
            kind,
            context: fields.bytes(context_bytes)?,
            payload_offset: 0,
            payload_bytes: 0,
            payload_crc: 0,
            crc_start: 0,
            payload_ok: true,
            bypass: Some(Box::new(Bypass { first, slots })),
        };
        Ok((member, entry))
    }
}

#[cfg(test)]
#[path = "format_test.rs"]
mod tests;
