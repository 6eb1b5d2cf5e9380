//! Logging in: the strongest way that the server offers and that is safe on the connection.
//!
//! SCRAM proves both sides to each other and never sends the password; `PLAIN` sends it as it is, so it is for TLS,
//! where it also works with users that the cluster does not keep itself.
//!
//! Source: `docs/sasl.md` of `couchbase/kv_engine`, RFC 5802.

use rsasl::prelude::{Mechname, SASLClient, SASLConfig, Session, State};

use super::config::Login;
use super::error::OpenCause;

/// The names that servers use, and those of the standard, the strongest first.
const SCRAM: &[(&str, &str)] =
    &[("SCRAM-SHA512", "SCRAM-SHA-512"), ("SCRAM-SHA256", "SCRAM-SHA-256"), ("SCRAM-SHA1", "SCRAM-SHA-1")];

/// The most rounds of a password's hash that a server may ask for: they are work of ours.
const ITERATIONS_MAX: u32 = 1_000_000;

/// A way to log in.
pub(super) enum Mechanism {
    /// The password, as it is.
    Plain,
    /// A proof of it.
    Scram(Scram),
}

/// A log-in by SCRAM that is under way.
pub(super) struct Scram {
    pub(super) name: &'static str,
    session: Session,
    is_done: bool,
}

fn failed(error: impl std::fmt::Display) -> OpenCause {
    OpenCause::Login(error.to_string())
}

impl Mechanism {
    /// Chooses among what the server offers, which is separated by spaces.
    pub(super) fn choose(offered: &[u8], login: &Login, is_tls: bool) -> Result<Self, OpenCause> {
        let offered = String::from_utf8_lossy(offered);
        let offers = |name: &str| offered.split_ascii_whitespace().any(|offer| offer == name);
        if is_tls && offers("PLAIN") {
            return Ok(Self::Plain);
        }
        if let Some((name, standard)) = SCRAM.iter().find(|(name, _)| offers(name)) {
            return Scram::new(name, standard, login).map(Self::Scram);
        }
        if login.plain_without_tls && offers("PLAIN") {
            return Ok(Self::Plain);
        }
        let offered: String = offered.chars().take(200).collect();
        Err(OpenCause::NoMechanism(format!("{offered:?}")))
    }
}

/// What `PLAIN` says: no other user to act for, the user, the password.
pub(super) fn plain(login: &Login) -> Vec<u8> {
    [b"\0", login.user.as_bytes(), b"\0", login.password.as_bytes()].concat()
}

impl Scram {
    fn new(name: &'static str, standard: &str, login: &Login) -> Result<Self, OpenCause> {
        let config = SASLConfig::with_credentials(None, login.user.clone(), login.password.clone());
        let client = SASLClient::new(config.map_err(failed)?);
        let standard = Mechname::parse(standard.as_bytes()).map_err(failed)?;
        let session = client.start_suggested(&[standard]).map_err(failed)?;
        Ok(Self { name, session, is_done: false })
    }

    /// The next message to the server, after what it said.
    pub(super) fn step(&mut self, said: Option<&[u8]>) -> Result<Vec<u8>, OpenCause> {
        if let Some(said) = said {
            check_message(said)?;
        }
        let mut message = Vec::new();
        self.is_done = self.session.step(said, &mut message).map_err(failed)? != State::Running;
        Ok(message)
    }

    /// Takes the server's last message, which proves that it knows the password too.
    pub(super) fn finish(mut self, said: &[u8]) -> Result<(), OpenCause> {
        self.step(Some(said))?;
        if self.is_done { Ok(()) } else { Err(failed("the server did not prove that it knows the user")) }
    }
}

/// Whether a server's message is attributes between commas, as `rsasl` 2.3 takes for granted, and asks for no more work
/// than it may.
fn check_message(said: &[u8]) -> Result<(), OpenCause> {
    let mut attributes = said.split(|byte| *byte == b',');
    if !attributes.all(|attribute| matches!(attribute, [name, b'=', ..] if name.is_ascii_alphabetic())) {
        return Err(failed("what the server says is no message of SCRAM"));
    }
    let text = String::from_utf8_lossy(said);
    let rounds = text.split(',').find_map(|part| part.strip_prefix("i="));
    match rounds.map(str::parse::<u32>) {
        Some(Ok(rounds)) if rounds > ITERATIONS_MAX => {
            Err(failed(format!("the server asks for {rounds} rounds, and {ITERATIONS_MAX} are the most")))
        }
        Some(Err(_)) => Err(failed("the server asks for a number of rounds that is none")),
        _ => Ok(()),
    }
}
