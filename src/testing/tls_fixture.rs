//! A cluster's credentials, and two channels with nothing but bytes between them.

use std::sync::Arc;

use bytes::Bytes;

use crate::io::buffer::Pool;
use crate::io::stream::StreamReader;
use crate::security::authority::{Authority, Places};
use crate::security::channel::{Channel, TlsError};
use crate::security::credentials::{Credentials, Tls};
use crate::security::subject::Subject;
use crate::security::trust::Trust;
use crate::security::verifier::Expected;
use crate::types::Uuid;

/// Of the machine, as rustls sees it.
pub fn now_s() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.expect("after 1970").as_secs()
}

/// A cluster with an authority.
pub struct Cluster {
    pub uuid: Uuid,
    pub authority: Authority,
}

impl Cluster {
    pub fn new(number: u8) -> Cluster {
        let uuid = Uuid([number; 16]);
        Cluster { uuid, authority: Authority::new(uuid, now_s()).expect("an authority") }
    }

    pub fn credentials(&self, role: &str) -> Credentials {
        self.credentials_at(role, now_s())
    }

    /// Credentials that were issued at some time.
    pub fn credentials_at(&self, role: &str, issued_s: u64) -> Credentials {
        let subject = Subject { cluster: self.uuid, role: role.parse().expect("a role") };
        let issued = self.authority.issue(&subject, &Places::default(), issued_s);
        let issued = issued.expect("a certificate");
        let roots = vec![self.authority.root().clone()];
        Credentials::new(issued.certificate, issued.key, roots).expect("they belong together")
    }

    pub fn trust(&self) -> Trust {
        Trust::new(self.uuid, vec![self.authority.root().clone()])
    }
}

/// A client's end that presents `credentials` and expects a server of `trust`.
pub fn client(credentials: &Credentials, trust: &Trust, expected: Expected) -> Channel {
    let tls = Tls::new(credentials, trust.clone()).expect("credentials");
    let config = Arc::new(tls.client(expected, true).expect("settings"));
    Channel::client(&config, Pool::default())
}

/// A server's end.
pub fn server(credentials: &Credentials, trust: &Trust, expected: Expected) -> Channel {
    let tls = Tls::new(credentials, trust.clone()).expect("credentials");
    let config = Arc::new(tls.server(expected, true).expect("settings"));
    Channel::server(&config, Pool::default())
}

/// One end: what it read, and what it wants to say.
pub struct End {
    pub channel: Channel,
    pub reader: StreamReader,
    pub read: Vec<u8>,
    pub waiting: Vec<Bytes>,
    pub failed: Option<TlsError>,
}

impl End {
    pub fn new(channel: Channel) -> End {
        let (read, waiting) = (Vec::new(), Vec::new());
        End { channel, reader: StreamReader::new(Pool::default()), read, waiting, failed: None }
    }

    /// What it sends now.
    pub fn send(&mut self) -> Vec<u8> {
        let mut out = self.channel.take_output();
        if self.failed.is_none() {
            self.channel.seal(&mut self.waiting, usize::MAX, &mut out);
        }
        out.concat()
    }

    /// Receives `bytes`, at most `step` at a time.
    pub fn receive(&mut self, mut bytes: &[u8], step: usize) {
        while !bytes.is_empty() && self.failed.is_none() {
            let mut bufs = self.channel.lend();
            let room = bufs.staging.len() - bufs.staging_from;
            let count = bytes.len().min(step).min(room);
            let (now, later) = bytes.split_at(count);
            bufs.staging[bufs.staging_from..bufs.staging_from + count].copy_from_slice(now);
            self.channel.received(bufs, count);
            bytes = later;
            self.read_all();
        }
    }

    fn read_all(&mut self) {
        loop {
            let opened = self.channel.open(&mut self.reader);
            let arrived = self.reader.peek().len();
            self.read.extend_from_slice(self.reader.peek());
            self.reader.consume(arrived);
            match opened {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return self.failed = Some(error),
            }
        }
    }
}

/// Exchanges bytes until neither end has any.
pub fn talk(one: &mut End, other: &mut End, step: usize) {
    loop {
        let (there, back) = (one.send(), other.send());
        if there.is_empty() && back.is_empty() {
            return;
        }
        other.receive(&there, step);
        one.receive(&back, step);
    }
}
