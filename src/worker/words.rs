//! The words of metrics for what the worker's components deal with.

use crate::net::handshake::Purpose;
use crate::telemetry::metrics::data_path::{LinkPurpose, Operation, Outcome};
use crate::types::{BlockError, BlockOp, BlockReply, ZeroHow};

/// The word for what a client asks for.
pub fn operation_of(op: &BlockOp) -> Operation {
    match op {
        BlockOp::Read { .. } => Operation::Read,
        BlockOp::Write { .. } => Operation::Write,
        BlockOp::Zero { how: ZeroHow::Trim, .. } => Operation::Trim,
        BlockOp::Zero { how: ZeroHow::Free | ZeroHow::Keep, .. } => Operation::Zero,
        BlockOp::Flush => Operation::Flush,
        BlockOp::Status { .. } => Operation::Status,
    }
}

/// The bytes that an operation carries or asks for.
pub fn transferred_bytes(op: &BlockOp) -> u64 {
    match op {
        BlockOp::Read { len, .. } => u64::from(*len),
        BlockOp::Write { data, .. } => data.len() as u64,
        BlockOp::Zero { .. } | BlockOp::Flush | BlockOp::Status { .. } => 0,
    }
}

/// The word for an answer.
pub fn outcome_of(result: &Result<BlockReply, BlockError>) -> Outcome {
    match result {
        Ok(_) => Outcome::Ok,
        Err(BlockError::Fenced) => Outcome::Fenced,
        Err(BlockError::OutOfRange) => Outcome::OutOfRange,
        Err(BlockError::ReadOnly) => Outcome::ReadOnly,
        Err(BlockError::NoSpace) => Outcome::NoSpace,
        Err(BlockError::MediaFault) => Outcome::MediaFault,
        Err(BlockError::NoSuchVolume) => Outcome::NoSuchVolume,
        Err(BlockError::Invalid) => Outcome::Invalid,
        Err(BlockError::TimedOut) => Outcome::TimedOut,
        Err(error) if error.is_retryable() => Outcome::Retry,
        Err(_) => Outcome::Invalid,
    }
}

/// The word for the purpose of a link.
pub fn link_purpose(purpose: Purpose) -> LinkPurpose {
    match purpose {
        Purpose::Data => LinkPurpose::Data,
        Purpose::Resync => LinkPurpose::Resync,
    }
}
