//! TLS 1.3 without a socket: between what a connection receives and sends, and what its protocol
//! reads and writes. The handshake is rustls's; the records after it are opened and sealed here
//! (see `record`), with fewer copies: what is received is opened in place and copied once, to where
//! its reader wants it, and what is sent is copied once, into its record.
//!
//! States: `Handshake` -> `Up` -> `Closed`; an error ends it in every state. Driving: after every
//! receive call [`Channel::open`] and let the protocol read, until `open` returns false. Send what
//! [`Channel::take_output`] returns before anything else, also after an error: it is the alert that
//! tells the other side. Once [`Channel::is_up`], send what [`Channel::seal`] makes.

use std::sync::Arc;

use bytes::Bytes;
use rustls::client::{ClientConnectionData, UnbufferedClientConnection};
use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{AlertDescription, ClientConfig, ServerConfig};

use crate::io::buffer::{AlignedBuf, Pool};
use crate::io::driver::RecvBufs;
use crate::io::stream::StreamReader;
use crate::security::certificate::{Certificate, CertificateError};
use crate::security::credentials::holder_of;
use crate::security::record::{
    HEADER_BYTES, KeySchedule, Opened, RECORD_BYTES, RecordError, Records,
};
use crate::security::verifier::refusal_in;

/// Ciphertext that one receive takes, while little comes.
const RECEIVE_BYTES: usize = 64 << 10;
/// The same, while receives are full.
const RECEIVE_MUCH_BYTES: usize = 256 << 10;
/// Bytes of a handshake that wait to be sent. More is not a handshake.
const HANDSHAKE_BYTES_MAX: usize = 64 << 10;

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the other side's certificate is refused")]
    Certificate(#[source] CertificateError),
    #[error(
        "the other side refuses the certificate of this one ({0:?}); a pod that was off while the \
         authority was replaced comes back by `holdfast join --again`"
    )]
    Refused(AlertDescription),
    #[error("the TLS handshake failed")]
    Handshake(#[source] rustls::Error),
    #[error("the handshake is longer than any real one")]
    HandshakeTooLong,
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("the other side has closed the TLS connection")]
    Closed,
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> TlsError {
        match (refusal_in(&error), error) {
            (Some(refusal), _) => TlsError::Certificate(refusal),
            (None, rustls::Error::AlertReceived(alert)) if refuses(alert) => {
                TlsError::Refused(alert)
            }
            (None, error) => TlsError::Handshake(error),
        }
    }
}

/// True for alerts that are about the certificate of who receives them (RFC 8446, 6.2).
fn refuses(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
    )
}

enum State {
    Client(Box<UnbufferedClientConnection>),
    Server(Box<UnbufferedServerConnection>),
    Up(Box<Records>),
    Ended,
}

/// TLS of one connection: see the module.
pub struct Channel {
    state: State,
    pool: Pool,
    /// Received and not delivered; absent while a receive is in flight.
    received: Option<AlignedBuf>,
    /// Of `received`: opened bytes that the reader had no room for, then what is not opened.
    start: usize,
    opened_bytes: usize,
    /// Where the record behind the opened one begins.
    next_record: usize,
    end: usize,
    /// Data that came right behind the handshake, and was opened with it.
    early: Vec<u8>,
    /// Handshake messages and renewals of keys, to be sent first.
    output: Vec<Bytes>,
    receive_bytes: usize,
    peer: Option<Certificate>,
}

/// Where a handshake is.
enum Step {
    Again,
    NeedsInput,
    Done,
}

impl Channel {
    /// The side that opened the connection.
    pub fn client(config: &Arc<ClientConfig>, pool: Pool) -> Channel {
        // An address is no name that would be sent.
        let name = std::net::IpAddr::from([0, 0, 0, 0]).into();
        let state = match UnbufferedClientConnection::new(Arc::clone(config), name) {
            Ok(connection) => State::Client(Box::new(connection)),
            Err(_) => State::Ended,
        };
        let mut channel = Channel::new(state, pool);
        if channel.shake_hands().is_err() {
            channel.state = State::Ended;
        }
        channel
    }

    /// The side that accepted it.
    pub fn server(config: &Arc<ServerConfig>, pool: Pool) -> Channel {
        let state = match UnbufferedServerConnection::new(Arc::clone(config)) {
            Ok(connection) => State::Server(Box::new(connection)),
            Err(_) => State::Ended,
        };
        Channel::new(state, pool)
    }

    fn new(state: State, pool: Pool) -> Channel {
        Channel {
            state,
            received: Some(pool.take(RECEIVE_BYTES)),
            pool,
            start: 0,
            opened_bytes: 0,
            next_record: 0,
            end: 0,
            early: Vec::new(),
            output: Vec::new(),
            receive_bytes: RECEIVE_BYTES,
            peer: None,
        }
    }

    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up(_))
    }

    /// The holder of the certificate that the other side presented, once the handshake is over.
    pub fn peer(&self) -> Option<&Certificate> {
        self.peer.as_ref()
    }

    /// Buffers for the next receive. Everything that has arrived must have been opened.
    pub fn lend(&mut self) -> RecvBufs {
        let mut received = self.received.take().expect("one receive at a time");
        assert_eq!(self.opened_bytes, 0, "what was opened is delivered first");
        let unopened = self.start..self.end;
        if received.len() == self.receive_bytes {
            received.copy_within(unopened.clone(), 0);
        } else {
            let mut other = self.pool.take(self.receive_bytes.max(unopened.len() + 1));
            other[..unopened.len()].copy_from_slice(&received[unopened.clone()]);
            received = other;
        }
        (self.start, self.end) = (0, unopened.len());
        RecvBufs { landing: None, landing_from: 0, staging: received, staging_from: self.end }
    }

    /// Takes back the buffers of a receive that brought `count` bytes.
    pub fn received(&mut self, bufs: RecvBufs, count: usize) {
        self.end = bufs.staging_from + count;
        self.receive_bytes = match self.end == bufs.staging.len() {
            true => RECEIVE_MUCH_BYTES,
            false => RECEIVE_BYTES,
        };
        assert!(self.end <= bufs.staging.len());
        self.received = Some(bufs.staging);
    }

    /// Opens what has arrived and gives it to `reader`. True: `reader` got something, and there may
    /// be more when it has room again.
    pub fn open(&mut self, reader: &mut StreamReader) -> Result<bool, TlsError> {
        if self.received.is_none() {
            return Ok(false);
        }
        if !self.is_up() {
            let shaken = self.shake_hands();
            if shaken.is_err() {
                self.state = State::Ended;
            }
            shaken?;
        }
        let mut delivered = !self.early.is_empty();
        if delivered {
            let count = reader.push(&self.early);
            self.early.drain(..count);
        }
        while self.early.is_empty() && self.deliver(reader)? {
            delivered = true;
        }
        Ok(delivered)
    }

    /// Delivers opened bytes, or opens the next record. False when neither is possible.
    fn deliver(&mut self, reader: &mut StreamReader) -> Result<bool, TlsError> {
        let State::Up(records) = &mut self.state else { return Ok(false) };
        let received = self.received.as_mut().expect("no receive is in flight");
        if self.opened_bytes > 0 {
            let opened = &received[self.start..self.start + self.opened_bytes];
            let count = reader.push(opened);
            self.start += count;
            self.opened_bytes -= count;
            // Behind the last byte is the tag of its record, and then the next one.
            if self.opened_bytes == 0 {
                self.start = self.next_record;
            }
            return Ok(count > 0);
        }
        match records.open(&mut received[self.start..self.end]) {
            Ok(None) => Ok(false),
            Ok(Some((Opened::Data(bytes), whole_bytes))) => {
                self.next_record = self.start + whole_bytes;
                self.start += HEADER_BYTES;
                self.opened_bytes = bytes;
                Ok(true)
            }
            Ok(Some((Opened::Nothing, whole_bytes))) => {
                self.start += whole_bytes;
                records.renew_if_asked(&mut self.output)?;
                Ok(true)
            }
            Ok(Some((Opened::Closed, _))) => {
                self.state = State::Ended;
                Err(TlsError::Closed)
            }
            Err(error) => {
                self.state = State::Ended;
                Err(error.into())
            }
        }
    }

    /// Renews the keys to send with after so many records.
    #[cfg(test)]
    pub fn renew_keys_after(&mut self, records: u64) {
        if let State::Up(up) = &mut self.state {
            up.set_sealed_max(records);
        }
    }

    /// True when everything that has arrived was delivered, and more has a meaning.
    pub fn wants_receive(&self) -> bool {
        self.opened_bytes == 0 && self.early.is_empty() && !matches!(self.state, State::Ended)
    }

    /// Handshake messages to send, before anything that was sealed later.
    pub fn take_output(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.output)
    }

    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    /// Takes pieces from `waiting` and appends their records to `out`, until it has `records_max`
    /// of them or nothing is left. Returns the number of bytes taken: none unless it is up.
    pub fn seal(
        &mut self,
        waiting: &mut Vec<Bytes>,
        records_max: usize,
        out: &mut Vec<Bytes>,
    ) -> usize {
        out.append(&mut self.output);
        let State::Up(records) = &mut self.state else { return 0 };
        let (mut done, mut taken_bytes) = (0, 0);
        while done < waiting.len() && out.len() < records_max {
            let (first, mut room_bytes, mut cut) = (done, RECORD_BYTES, None);
            while room_bytes > 0
                && let Some(piece) = waiting.get(done)
            {
                if piece.len() > room_bytes {
                    cut = Some(room_bytes);
                    room_bytes = 0;
                } else {
                    room_bytes -= piece.len();
                    done += 1;
                }
            }
            let mut pieces: Vec<&[u8]> = waiting[first..done].iter().map(|all| &all[..]).collect();
            pieces.extend(cut.map(|bytes| &waiting[done][..bytes]));
            if records.seal(&pieces, out).is_err() {
                // Nothing can be said any more; the next receive finds the end.
                self.state = State::Ended;
                break;
            }
            if let Some(bytes) = cut {
                bytes::Buf::advance(&mut waiting[done], bytes);
            }
            taken_bytes += RECORD_BYTES - room_bytes;
        }
        waiting.drain(..done);
        taken_bytes
    }

    /// Goes on with the handshake as far as it can.
    fn shake_hands(&mut self) -> Result<(), TlsError> {
        loop {
            let received = self.received.as_mut().expect("no receive is in flight");
            let incoming = &mut received[self.start..self.end];
            let (early, output) = (&mut self.early, &mut self.output);
            let (step, discard) = match &mut self.state {
                State::Client(connection) => step(&mut **connection, incoming, early, output)?,
                State::Server(connection) => step(&mut **connection, incoming, early, output)?,
                State::Up(_) => return Ok(()),
                State::Ended => return Err(TlsError::Closed),
            };
            self.start += discard;
            match step {
                Step::Again
                    if output.iter().map(Bytes::len).sum::<usize>() > HANDSHAKE_BYTES_MAX =>
                {
                    return Err(TlsError::HandshakeTooLong);
                }
                Step::Again => {}
                Step::NeedsInput => {
                    // The next receive would have no room.
                    let is_full = self.end - self.start >= RECEIVE_BYTES;
                    return if is_full { Err(TlsError::HandshakeTooLong) } else { Ok(()) };
                }
                Step::Done => return self.set_up(),
            }
        }
    }

    /// The handshake is over: takes the keys.
    fn set_up(&mut self) -> Result<(), TlsError> {
        let (schedule, secrets, peer) = match std::mem::replace(&mut self.state, State::Ended) {
            State::Client(connection) => {
                let peer = holder_of(connection.peer_certificates());
                let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
                (KeySchedule::Client(kernel), secrets, peer)
            }
            State::Server(connection) => {
                let peer = holder_of(connection.peer_certificates());
                let (secrets, kernel) = connection.dangerous_into_kernel_connection()?;
                (KeySchedule::Server(kernel), secrets, peer)
            }
            State::Up(_) | State::Ended => return Err(TlsError::Closed),
        };
        self.peer = peer;
        self.state = State::Up(Box::new(Records::new(schedule, secrets)?));
        Ok(())
    }
}

/// A connection of rustls in its handshake.
trait Shaking {
    type Data;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, Self::Data>;
}

impl Shaking for UnbufferedClientConnection {
    type Data = ClientConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, ClientConnectionData> {
        self.process_tls_records(incoming)
    }
}

impl Shaking for UnbufferedServerConnection {
    type Data = ServerConnectionData;

    fn process<'c, 'i>(
        &'c mut self,
        incoming: &'i mut [u8],
    ) -> UnbufferedStatus<'c, 'i, ServerConnectionData> {
        self.process_tls_records(incoming)
    }
}

/// One step of a handshake, and the number of received bytes that are done with.
fn step<C: Shaking>(
    connection: &mut C,
    incoming: &mut [u8],
    early: &mut Vec<u8>,
    output: &mut Vec<Bytes>,
) -> Result<(Step, usize), TlsError> {
    let UnbufferedStatus { mut discard, state } = connection.process(incoming);
    let step = match state {
        Ok(ConnectionState::EncodeTlsData(message)) => {
            output.push(encoded(message));
            Ok(Step::Again)
        }
        Ok(ConnectionState::TransmitTlsData(transmit)) => {
            transmit.done();
            Ok(Step::Again)
        }
        Ok(ConnectionState::ReadTraffic(mut traffic)) => {
            while let Some(record) = traffic.next_record() {
                let record = record?;
                discard += record.discard;
                early.extend_from_slice(record.payload);
            }
            Ok(Step::Again)
        }
        Ok(ConnectionState::BlockedHandshake) => Ok(Step::NeedsInput),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Step::Done),
        Ok(_) => return Err(TlsError::Closed),
        Err(error) => Err(error),
    };
    if step.is_err() {
        // The alert, by which rustls tells the other side.
        let UnbufferedStatus { state, .. } = connection.process(&mut incoming[discard..]);
        if let Ok(ConnectionState::EncodeTlsData(alert)) = state {
            output.push(encoded(alert));
        }
    }
    Ok((step?, discard))
}

fn encoded<D>(mut message: EncodeTlsData<'_, D>) -> Bytes {
    let mut bytes = Vec::new();
    // The first call tells the length.
    if let Err(EncodeError::InsufficientSize(needed)) = message.encode(&mut bytes) {
        bytes.resize(needed.required_size, 0);
        let encoded = message.encode(&mut bytes);
        encoded.expect("there is room for it");
    }
    bytes.into()
}
