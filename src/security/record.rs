//! The records of an established connection (RFC 8446, sections 4.6.3, 5.2 and 6): seals and opens
//! them with the keys that a handshake of rustls has left, in place. Cryptography and key schedule
//! are rustls's; here are lengths, sequence numbers, and what follows from a record's type.
//!
//! ```text
//! type u8 (23), version u16 (0x0303), length u16, ciphertext
//! ```

use bytes::Bytes;
use rustls::client::ClientConnectionData;
use rustls::crypto::cipher::{
    InboundOpaqueMessage, MessageDecrypter, MessageEncrypter, OutboundChunks, OutboundPlainMessage,
};
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{
    ConnectionTrafficSecrets, ContentType, ExtractedSecrets, ProtocolVersion, SupportedCipherSuite,
    Tls13CipherSuite,
};

pub const HEADER_BYTES: usize = 5;
/// Payload of a full record.
pub const RECORD_BYTES: usize = 16 << 10;
/// Ciphertext of the longest record that the standard allows.
pub const CIPHERTEXT_BYTES_MAX: usize = RECORD_BYTES + 256;
/// Records without content in a row that are taken: they cost work and bring nothing.
const EMPTY_RECORDS_MAX: u32 = 32;
/// Keys are renewed so many records before their limit.
const RECORDS_LEFT: u64 = 1 << 16;

const APPLICATION_DATA: u8 = 23;
const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
const CLOSE_NOTIFY: u8 = 0;

/// Why a connection ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("received bytes that are no TLS record of an established connection")]
    Header,
    #[error("a record is longer than is allowed")]
    TooLong,
    #[error("a record cannot be opened: it was changed on its way, or repeated")]
    Unsealed,
    #[error("received a message that has no place in an established connection")]
    OutOfPlace,
    #[error("received too many records without content")]
    TooManyEmpty,
    #[error("the other side reports TLS alert {0}")]
    Alert(u8),
    #[error("the keys of the connection cannot be renewed")]
    Keys,
}

/// What a record was.
#[derive(Debug, PartialEq, Eq)]
pub enum Opened {
    /// This many bytes, behind the header.
    Data(usize),
    /// Nothing for the user of the connection.
    Nothing,
    /// The other side sends no more.
    Closed,
}

/// Makes new keys from old ones.
pub enum KeySchedule {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl KeySchedule {
    fn suite(&self) -> SupportedCipherSuite {
        match self {
            KeySchedule::Client(kernel) => kernel.negotiated_cipher_suite(),
            KeySchedule::Server(kernel) => kernel.negotiated_cipher_suite(),
        }
    }

    fn is_client(&self) -> bool {
        matches!(self, KeySchedule::Client(_))
    }

    fn next_to_send(&mut self) -> Result<(u64, ConnectionTrafficSecrets), RecordError> {
        let keys = match self {
            KeySchedule::Client(kernel) => kernel.update_tx_secret(),
            KeySchedule::Server(kernel) => kernel.update_tx_secret(),
        };
        keys.map_err(|_| RecordError::Keys)
    }

    fn next_to_receive(&mut self) -> Result<(u64, ConnectionTrafficSecrets), RecordError> {
        let keys = match self {
            KeySchedule::Client(kernel) => kernel.update_rx_secret(),
            KeySchedule::Server(kernel) => kernel.update_rx_secret(),
        };
        keys.map_err(|_| RecordError::Keys)
    }
}

/// Both directions of an established connection.
pub struct Records {
    schedule: KeySchedule,
    suite: &'static Tls13CipherSuite,
    sealer: Box<dyn MessageEncrypter>,
    next_sealed: u64,
    /// Keys to send with are renewed from this record on.
    sealed_max: u64,
    opener: Box<dyn MessageDecrypter>,
    next_opened: u64,
    empty_records: u32,
    /// The other side asked us to renew our keys.
    must_renew: bool,
}

impl Records {
    pub fn new(schedule: KeySchedule, secrets: ExtractedSecrets) -> Result<Records, RecordError> {
        let suite = schedule.suite().tls13().ok_or(RecordError::Keys)?;
        let (next_sealed, to_send) = secrets.tx;
        let (next_opened, to_receive) = secrets.rx;
        let limit = suite.common.confidentiality_limit;
        Ok(Records {
            schedule,
            suite,
            sealer: sealer(suite, to_send)?,
            next_sealed,
            sealed_max: limit.saturating_sub(RECORDS_LEFT).max(1),
            opener: opener(suite, to_receive)?,
            next_opened,
            empty_records: 0,
            must_renew: false,
        })
    }

    /// Renews the keys to send with after so many records.
    #[cfg(test)]
    pub fn set_sealed_max(&mut self, records: u64) {
        self.sealed_max = records;
    }

    /// Appends a record of these pieces, which are at most [`RECORD_BYTES`], to `out`.
    pub fn seal(&mut self, pieces: &[&[u8]], out: &mut Vec<Bytes>) -> Result<(), RecordError> {
        if self.must_renew || self.next_sealed >= self.sealed_max {
            self.renew(out)?;
        }
        out.push(self.sealed(ContentType::ApplicationData, pieces)?);
        Ok(())
    }

    /// Renews the keys to send with, if the other side has asked for it.
    pub fn renew_if_asked(&mut self, out: &mut Vec<Bytes>) -> Result<(), RecordError> {
        if self.must_renew { self.renew(out) } else { Ok(()) }
    }

    fn renew(&mut self, out: &mut Vec<Bytes>) -> Result<(), RecordError> {
        self.must_renew = false;
        // Under the old keys; the last 0 asks for nothing in return.
        out.push(self.sealed(ContentType::Handshake, &[&[KEY_UPDATE, 0, 0, 1, 0]])?);
        let (next, keys) = self.schedule.next_to_send()?;
        self.sealer = sealer(self.suite, keys)?;
        self.next_sealed = next;
        Ok(())
    }

    fn sealed(&mut self, typ: ContentType, pieces: &[&[u8]]) -> Result<Bytes, RecordError> {
        let payload = OutboundChunks::new(pieces);
        assert!(payload.len() <= RECORD_BYTES, "the caller cuts records");
        let message = OutboundPlainMessage { typ, version: ProtocolVersion::TLSv1_2, payload };
        let sealed = self.sealer.encrypt(message, self.next_sealed);
        self.next_sealed += 1;
        Ok(sealed.map_err(|_| RecordError::Keys)?.encode().into())
    }

    /// Opens the record at the start of `bytes`, in place: its content is then behind the header.
    /// Returns its whole length, too. `None`: more bytes are needed.
    pub fn open(&mut self, bytes: &mut [u8]) -> Result<Option<(Opened, usize)>, RecordError> {
        let Some(whole_bytes) = length_of(bytes)? else { return Ok(None) };
        let Some(record) = bytes.get_mut(HEADER_BYTES..whole_bytes) else { return Ok(None) };
        let (typ, version) = (ContentType::ApplicationData, ProtocolVersion::TLSv1_2);
        let message = InboundOpaqueMessage::new(typ, version, record);
        let opened = self.opener.decrypt(message, self.next_opened);
        let opened = opened.map_err(|_| RecordError::Unsealed)?;
        self.next_opened += 1;
        if opened.payload.is_empty() {
            self.empty_records += 1;
            if self.empty_records > EMPTY_RECORDS_MAX {
                return Err(RecordError::TooManyEmpty);
            }
        } else {
            self.empty_records = 0;
        }
        let (typ, content) = (opened.typ, opened.payload);
        let what = match typ {
            ContentType::ApplicationData if content.is_empty() => Opened::Nothing,
            ContentType::ApplicationData => Opened::Data(content.len()),
            ContentType::Alert => match content {
                [_, CLOSE_NOTIFY] => Opened::Closed,
                [_, alert] => return Err(RecordError::Alert(*alert)),
                _ => return Err(RecordError::OutOfPlace),
            },
            ContentType::Handshake => {
                let asked = handshake(content, self.schedule.is_client())?;
                if let Some(must_renew) = asked {
                    let (next, keys) = self.schedule.next_to_receive()?;
                    self.opener = opener(self.suite, keys)?;
                    self.next_opened = next;
                    self.must_renew |= must_renew;
                }
                Opened::Nothing
            }
            _ => return Err(RecordError::OutOfPlace),
        };
        Ok(Some((what, whole_bytes)))
    }
}

/// The whole length of the record at the start of `bytes`; `None` when its header is incomplete.
fn length_of(bytes: &[u8]) -> Result<Option<usize>, RecordError> {
    let Some([typ, major, _, high, low]) = bytes.first_chunk::<HEADER_BYTES>() else {
        // What is wrong is refused as early as possible.
        return match bytes.first() {
            Some(&typ) if typ != APPLICATION_DATA => Err(RecordError::Header),
            _ => Ok(None),
        };
    };
    if *typ != APPLICATION_DATA || *major != 3 {
        return Err(RecordError::Header);
    }
    let length = usize::from(u16::from_be_bytes([*high, *low]));
    match length <= CIPHERTEXT_BYTES_MAX {
        true => Ok(Some(HEADER_BYTES + length)),
        false => Err(RecordError::TooLong),
    }
}

/// Takes handshake messages after the handshake. `Some`: the other side has new keys from the next
/// record on, and whether it asks us to take new ones, too.
fn handshake(mut content: &[u8], is_client: bool) -> Result<Option<bool>, RecordError> {
    while let [typ, high, middle, low, rest @ ..] = content {
        let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
        let body = rest.get(..length).ok_or(RecordError::OutOfPlace)?;
        content = &rest[length..];
        match (*typ, body) {
            // We resume nothing.
            (NEW_SESSION_TICKET, _) if is_client => {}
            // It ends the record: the next one has other keys.
            (KEY_UPDATE, [asked @ (0 | 1)]) if content.is_empty() => return Ok(Some(*asked == 1)),
            _ => return Err(RecordError::OutOfPlace),
        }
    }
    match content {
        [] => Ok(None),
        _ => Err(RecordError::OutOfPlace),
    }
}

fn sealer(
    suite: &Tls13CipherSuite,
    secrets: ConnectionTrafficSecrets,
) -> Result<Box<dyn MessageEncrypter>, RecordError> {
    let (key, iv) = key_and_iv(secrets)?;
    Ok(suite.aead_alg.encrypter(key, iv))
}

fn opener(
    suite: &Tls13CipherSuite,
    secrets: ConnectionTrafficSecrets,
) -> Result<Box<dyn MessageDecrypter>, RecordError> {
    let (key, iv) = key_and_iv(secrets)?;
    Ok(suite.aead_alg.decrypter(key, iv))
}

fn key_and_iv(
    secrets: ConnectionTrafficSecrets,
) -> Result<(rustls::crypto::cipher::AeadKey, rustls::crypto::cipher::Iv), RecordError> {
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => Ok((key, iv)),
        _ => Err(RecordError::Keys),
    }
}
