//! From a connected socket to a connection of DCP: every request is answered before the next one, each by a deadline.
//!
//! An answer that was not asked for, a feature that nobody asked for or that is missing, and every refused setting
//! end the attempt: what comes afterwards is read as these answers promise.

use std::sync::Arc;

use super::answer::{self, AnswerError, features};
use super::config::DcpConfig;
use super::error::{OpenCause, OpenError};
use super::frame::{Decoded, FRAME_BYTES_MAX, Frame};
use super::leb128::CollectionId;
use super::manifest::Manifest;
use super::opcode::{Feature, Opcode, Status};
use super::request::Request;
use super::sasl::{Mechanism, plain};
use super::socket::{ReadHalf, Socket, check_step};
use crate::event::{VbId, VbUuid};
use crate::thread::Until;

/// What this consumer calls itself.
const AGENT: &str = concat!("dormouse/", env!("CARGO_PKG_VERSION"));

/// What is asked for: without any of them documents could not be read as they are.
const FEATURES: &[Feature] = &[
    Feature::XATTR,
    Feature::XERROR,
    Feature::SELECT_BUCKET,
    Feature::SNAPPY,
    Feature::JSON,
    Feature::COLLECTIONS,
];

/// The server produces; extended attributes come along, which tells records of transactions from documents; times of
/// deletion come along.
const OPEN_FLAGS: u32 = 0x01 | 0x04 | 0x20;

/// A connection of DCP that nobody reads yet.
pub(super) struct Opened {
    pub(super) socket: Arc<Socket>,
    pub(super) half: ReadHalf,
    /// What was read behind the last answer.
    pub(super) rest: Vec<u8>,
    /// The node's manifest of collections, where that was asked for and told.
    pub(super) manifest: Option<Manifest>,
}

struct Talk<'a> {
    config: &'a DcpConfig,
    socket: Arc<Socket>,
    half: ReadHalf,
    read: Vec<u8>,
    opaque: u32,
    until: &'a Until,
}

/// Connects and agrees on everything.
pub(super) fn open(config: &DcpConfig, name: &str, until: &Until) -> Result<Opened, OpenError> {
    let at = |step: &str| at_step(config, step);
    let mut talk = greet(config, until)?;
    let manifest = talk.manifest().map_err(at("asking for the collections"))?;
    let open = Request::DcpOpen { name, flags: OPEN_FLAGS };
    talk.ask(&open).map_err(at("opening DCP"))?;
    for (name, value) in talk.controls() {
        let control = Request::Control { name, value: &value };
        talk.ask(&control).map_err(at(&format!("setting {name} to {value}")))?;
    }
    if config.persisted_only {
        talk.probe_disk().map_err(at("asking how far a vbucket is on disk"))?;
    }
    let quiet = config.noop_interval.saturating_mul(2);
    talk.socket.set_read_timeout(quiet).map_err(|e| at("connecting")(e.into()))?;
    Ok(Opened { socket: talk.socket, half: talk.half, rest: talk.read, manifest })
}

/// The cluster's configuration, in JSON, over a connection of its own that is closed again.
pub(super) fn cluster_config(config: &DcpConfig, until: &Until) -> Result<String, OpenError> {
    let mut talk = greet(config, until)?;
    let asked = talk.ask(&Request::ClusterConfig);
    talk.socket.shut_down();
    let json = asked.map_err(at_step(config, "asking for the cluster's configuration"))?;
    Ok(String::from_utf8_lossy(&json).into_owned())
}

fn at_step(config: &DcpConfig, step: &str) -> impl FnOnce(OpenCause) -> OpenError + use<> {
    let (address, step) = (config.address, step.to_owned());
    move |cause| OpenError { address, step, cause }
}

/// Connects, logs in and selects the bucket.
fn greet<'a>(config: &'a DcpConfig, until: &'a Until) -> Result<Talk<'a>, OpenError> {
    let at = |step: &str| at_step(config, step);
    let step = Until::within(config.step_timeout);
    let tcp = Socket::connect(config.address, &step, until).map_err(at("connecting"))?;
    let (socket, half) =
        Socket::new(tcp, config.tls.as_ref(), config.step_timeout).map_err(at("connecting"))?;
    socket.set_read_timeout(config.step_timeout).map_err(|e| at("connecting")(e.into()))?;
    let mut talk = Talk { config, socket, half, read: Vec::new(), opaque: 0, until };
    talk.agree().map_err(at("HELLO"))?;
    talk.log_in().map_err(at("logging in"))?;
    talk.ask(&Request::SelectBucket(&config.bucket)).map_err(at("selecting the bucket"))?;
    Ok(talk)
}

impl Talk<'_> {
    fn agree(&mut self) -> Result<(), OpenCause> {
        let granted = features(&self.ask(&Request::Hello { agent: AGENT, features: FEATURES })?)?;
        if let Some(unasked) = granted.iter().find(|feature| !FEATURES.contains(feature)) {
            return Err(OpenCause::UnaskedFeature(*unasked));
        }
        match FEATURES.iter().find(|feature| !granted.contains(feature)) {
            Some(missing) => Err(OpenCause::MissingFeature(*missing)),
            None => Ok(()),
        }
    }

    fn log_in(&mut self) -> Result<(), OpenCause> {
        let offered = self.ask(&Request::SaslMechanisms)?;
        match Mechanism::choose(&offered, &self.config.login, self.config.tls.is_some())? {
            Mechanism::Plain => {
                let message = plain(&self.config.login);
                self.ask(&Request::SaslAuth { mechanism: "PLAIN", message: &message }).map(drop)
            }
            Mechanism::Scram(mut scram) => {
                let (mechanism, message) = (scram.name, scram.step(None)?);
                let (status, said) = self.call(&Request::SaslAuth { mechanism, message: &message })?;
                if status != Status::AUTH_CONTINUE {
                    return Err(refused(status, &said));
                }
                let message = scram.step(Some(&said))?;
                let said = self.ask(&Request::SaslStep { mechanism, message: &message })?;
                scram.finish(&said)
            }
        }
    }

    /// What the node knows of the bucket's collections, where it matters. One that does not tell, as it may where the
    /// user has few rights, is asked for streams all the same.
    fn manifest(&mut self) -> Result<Option<Manifest>, OpenCause> {
        if self.config.collection == CollectionId::default() {
            return Ok(None);
        }
        let (status, value) = self.call(&Request::Manifest)?;
        if status != Status::SUCCESS {
            return Ok(None);
        }
        let manifest = Manifest::decode(&value, self.config.collection);
        Ok(Some(manifest.ok_or(AnswerError::Manifest(value.len()))?))
    }

    /// The settings, of which each is needed. The window comes first: from there on what is sent counts.
    fn controls(&self) -> Vec<(&'static str, String)> {
        let interval = self.config.noop_interval.as_secs().max(1);
        let mut controls = vec![
            ("connection_buffer_size", self.config.window_bytes.to_string()),
            ("enable_noop", "true".to_owned()),
            ("set_noop_interval", interval.to_string()),
            ("enable_expiry_opcode", "true".to_owned()),
            ("send_stream_end_on_client_close_stream", "true".to_owned()),
        ];
        if self.config.out_of_order {
            controls.push(("enable_out_of_order_snapshots", "true_with_seqno_advanced".to_owned()));
        }
        controls
    }

    /// Whether the server says how far vbuckets are on disk. It cannot know the branch that it is asked for.
    fn probe_disk(&mut self) -> Result<(), OpenCause> {
        match self.call(&Request::ObserveSeqno(VbId(0), VbUuid(0)))? {
            (Status::SUCCESS | Status::KEY_ENOENT | Status::NOT_MY_VBUCKET, _) => Ok(()),
            (status, value) => Err(refused(status, &value)),
        }
    }

    /// Asks and takes the value of an answer that is a success.
    fn ask(&mut self, request: &Request<'_>) -> Result<Vec<u8>, OpenCause> {
        match self.call(request)? {
            (Status::SUCCESS, value) => Ok(value),
            (status, value) => Err(refused(status, &value)),
        }
    }

    /// Asks and takes the answer.
    fn call(&mut self, request: &Request<'_>) -> Result<(Status, Vec<u8>), OpenCause> {
        let step = Until::within(self.config.step_timeout);
        let mut has_read = false;
        self.opaque += 1;
        let mut bytes = Vec::new();
        let asked = request.encode(self.opaque, &mut bytes)?;
        self.socket.send(&bytes)?;
        loop {
            let (taken, answer) = match Frame::decode(&self.read, FRAME_BYTES_MAX)? {
                Decoded::Partial(_) => {
                    // What came in time is read whenever that is, and then no more for ever.
                    if has_read {
                        check_step(&step, self.until)?;
                    }
                    self.read_more(&step)?;
                    has_read = true;
                    continue;
                }
                Decoded::Whole(frame, taken) => {
                    let is_noop = frame.opcode == Opcode::DCP_NOOP && frame.magic.is_request();
                    let is_ours =
                        frame.magic.is_response() && frame.opaque == self.opaque && frame.opcode == asked;
                    if !is_noop && !is_ours {
                        return Err(OpenCause::OtherAnswer { opcode: frame.opcode, opaque: frame.opaque });
                    }
                    let answer = is_ours.then(|| (Status(frame.vb_or_status), frame.value.to_vec()));
                    (taken, answer.ok_or(frame.opaque))
                }
            };
            self.read.drain(..taken);
            match answer {
                Ok(answer) => return Ok(answer),
                Err(noop) => {
                    bytes.clear();
                    Request::NoopAnswer.encode(noop, &mut bytes)?;
                    self.socket.send(&bytes)?;
                }
            }
        }
    }

    fn read_more(&mut self, step: &Until) -> Result<(), OpenCause> {
        const READ_BYTES: usize = 16 * 1024;
        let have = self.read.len();
        self.read.resize(have + READ_BYTES, 0);
        let room = self.read.get_mut(have..).unwrap_or_default();
        let read = self.half.read_by(room, step, self.until);
        self.read.truncate(have + read.as_ref().copied().unwrap_or(0));
        match read? {
            0 => Err(OpenCause::Closed),
            _ => Ok(()),
        }
    }
}

fn refused(status: Status, value: &[u8]) -> OpenCause {
    OpenCause::Refused { status, said: answer::said(value) }
}
