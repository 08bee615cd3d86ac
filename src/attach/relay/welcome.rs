//! The server's side of the NBD handshake for programs of this machine, which all get the one
//! export of their device, whatever they call it: such as nbdfuse ("Fixed newstyle negotiation";
//! NetworkBlockDevice/nbd, `doc/proto.md`). Simple replies only. Pure.

use bytes::{Buf, BytesMut};

use crate::attach::relay::hello::Export;
use crate::fields::FieldError;
use crate::front::nbd::wire::{
    CLIENT_FLAG_NO_ZEROES, CLIENT_FLAGS_BYTES, OPTION_HEADER_BYTES, OPTION_MAGIC, OptionHeader,
    export_flag, info, option, put_export, put_greeting, put_option_reply, reply,
};

/// Longer options are not for us.
const OPTION_BYTES_MAX: u32 = 8 << 10;
/// The abilities of pods that the relay passes on. Not several connections: requests of two are
/// sent again in no order, and writes of both may overlap.
const FLAGS: u16 = export_flag::HAS_FLAGS
    | export_flag::READ_ONLY
    | export_flag::SEND_FLUSH
    | export_flag::SEND_FUA
    | export_flag::SEND_TRIM
    | export_flag::SEND_WRITE_ZEROES;

/// What a client is told: not all that pods can do is passed on.
pub fn passed_on(export: Export) -> Export {
    Export { flags: export.flags & FLAGS, ..export }
}

/// The client said something that no client says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client does not speak NBD as it should")]
pub struct WelcomeError;

/// Whether the handshake is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Welcomed {
    NotYet,
    /// Requests follow.
    Open,
    /// The client goes.
    Aborted,
}

/// A handshake that goes on.
#[derive(Debug)]
pub struct Welcome {
    export: Export,
    flags: Option<u32>,
}

impl Welcome {
    /// `out` gets the greeting.
    pub fn new(export: Export, out: &mut BytesMut) -> Welcome {
        put_greeting(out);
        Welcome { export: passed_on(export), flags: None }
    }

    /// Reads the client's bytes off the front of `bytes`; `out` gets the answer.
    pub fn step(
        &mut self,
        bytes: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Result<Welcomed, WelcomeError> {
        if self.flags.is_none() {
            if bytes.len() < CLIENT_FLAGS_BYTES {
                return Ok(Welcomed::NotYet);
            }
            self.flags = Some(bytes.get_u32());
        }
        loop {
            let header = match OptionHeader::decode(bytes) {
                Err(FieldError::Short) => return Ok(Welcomed::NotYet),
                Err(_) => return Err(WelcomeError),
                Ok(header) => header,
            };
            if header.magic != OPTION_MAGIC || header.data_bytes > OPTION_BYTES_MAX {
                return Err(WelcomeError);
            }
            let whole_bytes = OPTION_HEADER_BYTES + header.data_bytes as usize;
            if bytes.len() < whole_bytes {
                return Ok(Welcomed::NotYet);
            }
            bytes.advance(whole_bytes);
            match self.answer(header.option, out) {
                Welcomed::NotYet => {}
                over => return Ok(over),
            }
        }
    }

    fn answer(&self, asked: u32, out: &mut BytesMut) -> Welcomed {
        let Export { size_bytes, flags } = self.export;
        match asked {
            option::EXPORT_NAME => {
                let zeroes = self.flags.unwrap_or(0) & CLIENT_FLAG_NO_ZEROES == 0;
                put_export(out, size_bytes, flags, zeroes);
                Welcomed::Open
            }
            option::GO | option::INFO => {
                let mut data = info::EXPORT.to_be_bytes().to_vec();
                data.extend(size_bytes.to_be_bytes());
                data.extend(flags.to_be_bytes());
                put_option_reply(out, asked, reply::INFO, &data);
                put_option_reply(out, asked, reply::ACK, &[]);
                if asked == option::GO { Welcomed::Open } else { Welcomed::NotYet }
            }
            option::ABORT => {
                put_option_reply(out, asked, reply::ACK, &[]);
                Welcomed::Aborted
            }
            _ => {
                put_option_reply(out, asked, reply::ERR_UNSUP, &[]);
                Welcomed::NotYet
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::attach::relay::hello::{Hello, HelloError, Step};
    use crate::front::nbd::wire::put_option;

    const EXPORT: Export = Export { size_bytes: 1 << 30, flags: FLAGS };

    /// Lets both sides talk in pieces of this size.
    fn talk(piece: usize) -> Result<Export, HelloError> {
        let (mut to_server, mut to_client) = (BytesMut::new(), BytesMut::new());
        let mut welcome = Welcome::new(EXPORT, &mut to_client);
        let mut hello = Hello::new("any", false);
        let (mut at_client, mut at_server) = (BytesMut::new(), BytesMut::new());
        for _ in 0..10_000 {
            at_client.extend(to_client.split_to(piece.min(to_client.len())));
            match hello.step(&mut at_client)? {
                Step::Open(export) => return Ok(export),
                Step::Send(out) => to_server.extend(out),
                Step::Tls => unreachable!("it was not asked for"),
            }
            at_server.extend(to_server.split_to(piece.min(to_server.len())));
            let welcomed = welcome.step(&mut at_server, &mut to_client);
            assert!(welcomed.is_ok());
        }
        panic!("they have nothing more to say");
    }

    #[test]
    fn both_sides_agree_in_pieces_of_any_size() {
        for piece in [1, 3, 16, 1000] {
            assert_eq!(talk(piece), Ok(EXPORT));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut out = BytesMut::new();
            let mut welcome = Welcome::new(EXPORT, &mut out);
            let _refused_or_not = welcome.step(&mut BytesMut::from(&bytes[..]), &mut out);
            for tls in [false, true] {
                let mut hello = Hello::new("any", tls);
                let mut greeting = BytesMut::new();
                put_greeting(&mut greeting);
                greeting.extend(&bytes);
                let first = hello.step(&mut greeting);
                if first.is_ok() {
                    let _refused_or_not = hello.step(&mut greeting);
                }
            }
        }
    }

    #[test]
    fn other_options_are_not_supported_and_abort_ends() {
        let (mut out, mut bytes) = (BytesMut::new(), Vec::new());
        let mut welcome = Welcome::new(EXPORT, &mut out);
        bytes.extend(CLIENT_FLAG_NO_ZEROES.to_be_bytes());
        put_option(&mut bytes, option::STRUCTURED_REPLY, &[]);
        put_option(&mut bytes, option::INFO, &[0; 6]);
        out.clear();
        let mut bytes = BytesMut::from(&bytes[..]);
        assert_eq!(welcome.step(&mut bytes, &mut out), Ok(Welcomed::NotYet));
        assert_eq!(out.len(), 20 + (20 + 12) + 20);
        let mut abort = Vec::new();
        put_option(&mut abort, option::ABORT, &[]);
        let abort = welcome.step(&mut BytesMut::from(&abort[..]), &mut out);
        assert_eq!(abort, Ok(Welcomed::Aborted));
        assert_eq!(welcome.step(&mut BytesMut::from(&[0; 16][..]), &mut out), Err(WelcomeError));
    }
}
