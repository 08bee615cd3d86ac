//! The options of the handshake ("Option types"): their answers and effects.

use bytes::{BufMut, BytesMut};

use crate::fields::{FieldError, Fields, value};
use crate::front::nbd::messages::{CloseReason, Encryption, Export, Exports, LineNumber, Opened};
use crate::front::nbd::wire::{self, export_flag, info, option, reply, take_string};
use crate::limits::REQUEST_BYTES_MAX;
use crate::types::BLOCK_BYTES;

/// Most queries in one option.
const QUERIES_MAX: u32 = 64;
/// For people, beside the code of an error that another try may not meet.
const OUT_OF_REACH: &str = "the catalog cannot be asked for this export now; try again";

/// The client's choices so far.
#[derive(Debug, Default)]
pub(super) struct Negotiated {
    /// What the listener says of TLS, until it is used.
    pub encryption: Encryption,
    pub under_tls: bool,
    /// The client uses the fixed newstyle handshake.
    pub fixed_newstyle: bool,
    /// The answer to EXPORT_NAME goes without its 124 zeroes.
    pub no_zeroes: bool,
    pub structured: bool,
    /// The export for which `base:allocation` was selected.
    pub base_allocation_of: Option<String>,
    /// `base:allocation` was selected for the opened export.
    pub base_allocation: bool,
    /// The client's number for this connection.
    pub line: Option<LineNumber>,
}

/// The session's next step after an option.
#[derive(Debug)]
pub(super) enum Next {
    Option,
    StartTls,
    Transmission(Export),
    Close(CloseReason),
    /// The option is answered later, when the export of this name was asked for.
    Later(String),
}

/// Answers one option whose data is complete.
pub(super) fn answer(
    code: u32,
    data: &[u8],
    negotiated: &mut Negotiated,
    exports: &dyn Exports,
    out: &mut BytesMut,
) -> Next {
    let tls_required = negotiated.encryption == Encryption::Required;
    if code == option::EXPORT_NAME {
        // It has no error reply.
        return match tls_required {
            true => Next::Close(CloseReason::NeedsTls),
            false => export_name(data, negotiated, exports, out),
        };
    }
    if !negotiated.fixed_newstyle {
        return Next::Close(CloseReason::Malformed);
    }
    match code {
        option::STARTTLS => return start_tls(data, negotiated, out),
        code if tls_required && code != option::ABORT => {
            wire::put_option_reply(out, code, reply::ERR_TLS_REQD, &[]);
        }
        option::ABORT => {
            wire::put_option_reply(out, code, reply::ACK, &[]);
            return Next::Close(CloseReason::Aborted);
        }
        option::INFO | option::GO => return go(code, data, negotiated, exports, out),
        option::LIST if data.is_empty() => list(exports, out),
        option::STRUCTURED_REPLY if data.is_empty() => {
            negotiated.structured = true;
            wire::put_option_reply(out, code, reply::ACK, &[]);
        }
        option::LIST | option::STRUCTURED_REPLY => {
            wire::put_option_reply(out, code, reply::ERR_INVALID, &[]);
        }
        option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
            return meta_context(code, data, negotiated, exports, out);
        }
        _ => wire::put_option_reply(out, code, reply::ERR_UNSUP, &[]),
    }
    Next::Option
}

/// STARTTLS: whatever was chosen before was chosen by somebody who could not be known.
fn start_tls(data: &[u8], negotiated: &mut Negotiated, out: &mut BytesMut) -> Next {
    let refusal = match negotiated.encryption {
        _ if !data.is_empty() => Some(reply::ERR_INVALID),
        Encryption::None if negotiated.under_tls => Some(reply::ERR_INVALID),
        Encryption::None => Some(reply::ERR_UNSUP),
        Encryption::Offered | Encryption::Required => None,
    };
    if let Some(refusal) = refusal {
        wire::put_option_reply(out, option::STARTTLS, refusal, &[]);
        return Next::Option;
    }
    let Negotiated { fixed_newstyle, no_zeroes, .. } = *negotiated;
    let fresh = Negotiated::default();
    *negotiated = Negotiated { fixed_newstyle, no_zeroes, under_tls: true, ..fresh };
    wire::put_option_reply(out, option::STARTTLS, reply::ACK, &[]);
    Next::StartTls
}

/// EXPORT_NAME has no error reply, so every error ends the connection.
fn export_name(
    data: &[u8],
    negotiated: &mut Negotiated,
    exports: &dyn Exports,
    out: &mut BytesMut,
) -> Next {
    let name = match std::str::from_utf8(data) {
        Ok(name) if name.len() <= wire::STRING_BYTES_MAX => name,
        _ => return Next::Close(CloseReason::Malformed),
    };
    let (name, line) = LineNumber::split(name);
    let export = match exports.open(name) {
        Opened::Export(export) => export,
        Opened::Unknown => return Next::Close(CloseReason::UnknownExport),
        Opened::OutOfReach => return Next::Close(CloseReason::OutOfReach),
        Opened::Later => return Next::Later(name.to_owned()),
    };
    let flags = transmission_flags(&export, negotiated);
    wire::put_export(out, export.size_bytes, flags, !negotiated.no_zeroes);
    enter(negotiated, name, line);
    Next::Transmission(export)
}

fn list(exports: &dyn Exports, out: &mut BytesMut) {
    let mut data = Vec::new();
    for name in exports.list() {
        data.clear();
        data.put_u32(u32::try_from(name.len()).expect("names are at most 4096 bytes"));
        data.extend_from_slice(name.as_bytes());
        wire::put_option_reply(out, option::LIST, reply::SERVER, &data);
    }
    wire::put_option_reply(out, option::LIST, reply::ACK, &[]);
}

/// INFO and GO: parses the name and the wanted information, and describes the export.
fn go(
    code: u32,
    data: &[u8],
    negotiated: &mut Negotiated,
    exports: &dyn Exports,
    out: &mut BytesMut,
) -> Next {
    let Ok((name, wanted)) = parse_go(data) else {
        wire::put_option_reply(out, code, reply::ERR_INVALID, &[]);
        return Next::Option;
    };
    let (name, line) = LineNumber::split(name);
    let export = match open(code, name, exports, out) {
        Ok(export) => export,
        Err(next) => return next,
    };
    let mut data = Vec::with_capacity(16);
    data.put_u16(info::EXPORT);
    data.put_u64(export.size_bytes);
    data.put_u16(transmission_flags(&export, negotiated));
    wire::put_option_reply(out, code, reply::INFO, &data);

    data.clear();
    data.put_u16(info::BLOCK_SIZE);
    data.put_u32(1);
    data.put_u32(BLOCK_BYTES as u32);
    data.put_u32(REQUEST_BYTES_MAX as u32);
    wire::put_option_reply(out, code, reply::INFO, &data);

    if wanted.chunks_exact(2).any(|kind| kind == info::NAME.to_be_bytes()) {
        data.clear();
        data.put_u16(info::NAME);
        let only = if name.is_empty() { exports.only() } else { None };
        data.extend_from_slice(only.as_deref().unwrap_or(name).as_bytes());
        wire::put_option_reply(out, code, reply::INFO, &data);
    }
    wire::put_option_reply(out, code, reply::ACK, &[]);
    if code == option::INFO {
        return Next::Option;
    }
    enter(negotiated, name, line);
    Next::Transmission(export)
}

/// Opens an export, or answers that it cannot be opened.
fn open(code: u32, name: &str, exports: &dyn Exports, out: &mut BytesMut) -> Result<Export, Next> {
    let (reply, text) = match exports.open(name) {
        Opened::Export(export) => return Ok(export),
        Opened::Later => return Err(Next::Later(name.to_owned())),
        Opened::Unknown => (reply::ERR_UNKNOWN, ""),
        Opened::OutOfReach => (reply::ERR_SHUTDOWN, OUT_OF_REACH),
    };
    wire::put_option_reply(out, code, reply, text.as_bytes());
    Err(Next::Option)
}

/// Parses the name and the requested kinds of information, still encoded.
fn parse_go(data: &[u8]) -> Result<(&str, &[u8]), FieldError> {
    let mut fields = Fields::new(data);
    let name = take_string(&mut fields)?;
    let count = usize::from(fields.u16_be()?);
    let wanted = fields.slice(2 * count)?;
    fields.end().map(|()| (name, wanted))
}

/// Selections of contexts for another export do not count.
fn enter(negotiated: &mut Negotiated, name: &str, line: Option<LineNumber>) {
    negotiated.line = line;
    negotiated.base_allocation = negotiated.base_allocation_of.as_deref() == Some(name);
}

fn meta_context(
    code: u32,
    data: &[u8],
    negotiated: &mut Negotiated,
    exports: &dyn Exports,
    out: &mut BytesMut,
) -> Next {
    let setting = code == option::SET_META_CONTEXT;
    if setting {
        // A new selection replaces the old one, even when it fails.
        negotiated.base_allocation_of = None;
    }
    let parsed = parse_queries(data, setting).ok().filter(|_| negotiated.structured);
    let Some((name, wanted)) = parsed else {
        wire::put_option_reply(out, code, reply::ERR_INVALID, &[]);
        return Next::Option;
    };
    let (name, _) = LineNumber::split(name);
    if let Err(next) = open(code, name, exports, out) {
        return next;
    }
    if wanted {
        let id = if setting { wire::BASE_ALLOCATION_ID } else { 0 };
        let mut data = Vec::with_capacity(4 + wire::BASE_ALLOCATION.len());
        data.put_u32(id);
        data.extend_from_slice(wire::BASE_ALLOCATION.as_bytes());
        wire::put_option_reply(out, code, reply::META_CONTEXT, &data);
    }
    if wanted && setting {
        negotiated.base_allocation_of = Some(name.to_owned());
    }
    wire::put_option_reply(out, code, reply::ACK, &[]);
    Next::Option
}

/// Parses the name, and whether the queries select `base:allocation`. A listing also allows no
/// query at all, or the bare namespace ("Metadata querying").
fn parse_queries(data: &[u8], setting: bool) -> Result<(&str, bool), FieldError> {
    let mut fields = Fields::new(data);
    let name = take_string(&mut fields)?;
    let count = fields.u32_be()?;
    if count > QUERIES_MAX {
        return Err(value("number of queries", count));
    }
    let mut wanted = count == 0 && !setting;
    for _ in 0..count {
        let query = take_string(&mut fields)?;
        wanted |= query == wire::BASE_ALLOCATION || (!setting && query == "base:");
    }
    fields.end().map(|()| (name, wanted))
}

fn transmission_flags(export: &Export, negotiated: &Negotiated) -> u16 {
    let mut flags = export_flag::HAS_FLAGS
        | export_flag::SEND_FLUSH
        | export_flag::SEND_FUA
        | export_flag::SEND_TRIM
        | export_flag::SEND_WRITE_ZEROES
        | export_flag::SEND_FAST_ZERO
        | export_flag::SEND_CACHE
        | export_flag::CAN_MULTI_CONN;
    if export.read_only {
        flags |= export_flag::READ_ONLY;
    }
    if negotiated.structured {
        flags |= export_flag::SEND_DF;
    }
    flags
}
