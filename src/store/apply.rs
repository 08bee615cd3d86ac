//! Committed entries reach the overlay: what they wrote, and where that is until it is written
//! back.

use bytes::Bytes;

use crate::store::core::Core;
use crate::store::overlay::{Content, OverlayBlock};
use crate::store::seam::{ApplyRequest, Change};
use crate::types::{BLOCK_BYTES, BLOCKS_PER_EXTENT, Block, BlockRange, MemberId};

impl Core {
    /// See [`crate::store::lane::Lane::apply`].
    pub(super) fn apply(&mut self, member: MemberId, request: ApplyRequest) {
        let Some(found) = self.live_mut(member) else { return };
        if request.index <= found.applied_index {
            return;
        }
        assert_eq!(request.index, found.applied_index + 1, "applied in order");
        let term = found.log.term(request.index);
        assert_eq!(term, Some(request.term), "the entry that was appended");
        let reserved = found.log.applied(request.index);
        found.applied_index = request.index;
        found.applied_term = request.term;
        if let Some(meta) = request.meta {
            found.metas.push_back((request.index, meta));
        }
        self.clock.changed = true;
        self.alloc.unreserve(reserved);
        match request.change {
            Some(Change::Write { range, crcs, payload }) => {
                self.apply_write(member, request.index, range, &crcs, payload)
            }
            Some(Change::Zero { range, trim }) => {
                self.apply_zero(member, request.index, range, !trim)
            }
            None => {}
        }
        let found = self.members.get_mut(&member).expect("just seen");
        found.newer.applied(request.index);
    }

    fn apply_write(
        &mut self,
        member: MemberId,
        index: u64,
        range: BlockRange,
        crcs: &[u32],
        payload: Bytes,
    ) {
        let found = self.members.get_mut(&member).expect("just seen");
        assert_eq!(crcs.len(), range.count as usize, "one checksum per block");
        assert!(range.end() <= found.record.blocks, "inside the shard");
        assert!(payload.is_empty() || payload.len() as u64 == range.bytes());
        let entry = found.log.get(index).expect("just seen");
        assert_eq!(u64::from(entry.payload_bytes), range.bytes(), "the entry's payload");
        let slots = entry.slots.as_ref();
        assert!(slots.is_none() || range.first.in_extent() == 0, "redirected: whole extents");
        // Write-back has nothing to do with what lies in slots: its memory is of use elsewhere.
        let cached = if slots.is_none() { self.payloads.keep(payload) } else { None };
        let commit = found.hard.durable_commit;
        for (position, at) in range.blocks().enumerate() {
            if found.newer.includes(at.extent(), index) {
                continue;
            }
            let start = position * BLOCK_BYTES;
            let block = OverlayBlock {
                index,
                crc: crcs[position],
                content: match slots {
                    None => Content::Log { position: position as u16 },
                    Some(slots) => Content::Slot(slots[position / BLOCKS_PER_EXTENT as usize]),
                },
                cached: cached.as_ref().map(|bytes| bytes.slice(start..start + BLOCK_BYTES)),
            };
            found.overlay.insert(at, block, commit);
        }
        for extent in range.extents() {
            self.overlay_changed(member, extent);
        }
    }

    fn apply_zero(&mut self, member: MemberId, index: u64, range: BlockRange, keep: bool) {
        for extent in range.extents() {
            let found = self.members.get_mut(&member).expect("just seen");
            assert!(range.end() <= found.record.blocks, "inside the shard");
            let commit = found.hard.durable_commit;
            let overlay = found.overlay.get(extent);
            let known = found.presence.get(extent) || overlay.is_some();
            // Only what there is can be kept: an entry without payload has reserved nothing.
            let has_space =
                found.presence.get(extent) || overlay.is_some_and(|overlay| overlay.reserved);
            if !known || found.newer.includes(extent, index) {
                continue;
            }
            let first = extent.first_block().0.max(range.first.0);
            let end = (extent.first_block().0 + BLOCKS_PER_EXTENT).min(range.end());
            for at in (first..end).map(Block) {
                let content = Content::Zero { keep: keep && has_space };
                let block = OverlayBlock { index, crc: 0, content, cached: None };
                found.overlay.insert(at, block, commit);
            }
            self.overlay_changed(member, extent);
        }
    }
}
