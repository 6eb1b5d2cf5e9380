//! Who we are to a server.
//!
//! Credentials are looked for in the places that the host names, in their order; the library reads no environment.
//! What was found is kept and renewed before it expires. While it is being renewed the old ones serve, as long as
//! they are good.
//!
//! Invariants: a failure is never kept: the next call looks again. Only one call at a time looks. Credentials that
//! their place cannot renew by itself are not worth another try when a server finds them too old. Secrets are never
//! shown.

mod cloud;
mod profile;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::Deserialize;

use super::http::Http;
use crate::objstore::error::StoreCause;
use crate::thread::{Fin, Until, fin};

/// Credentials are renewed this long before they expire, or after three quarters of their time if that is later.
const RENEW_BEFORE: Duration = Duration::from_secs(300);
/// The longest time that one look for credentials may take.
const LOOK_LIMIT: Duration = Duration::from_secs(30);

/// What requests are signed with.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The public part.
    pub access_key_id: String,
    /// The secret.
    pub secret_access_key: String,
    /// What goes with those that are good for a while only.
    pub session_token: Option<String>,
    /// When they end; `None` is never.
    pub expires: Option<SystemTime>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("access_key_id", &self.access_key_id)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// A place where credentials may be.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CredentialSource {
    /// Here they are.
    Given(Credentials),
    /// A role that is taken on with a token in a file: `AssumeRoleWithWebIdentity` of STS.
    WebIdentity {
        /// The file; it is read anew each time.
        token_file: PathBuf,
        /// The role's ARN.
        role_arn: String,
        /// A name for the session, shown in the account's logs.
        session_name: String,
        /// URL of STS.
        endpoint: String,
    },
    /// A profile in the files that the AWS tools use, perhaps with a `credential_process`.
    Profile {
        /// Its name.
        name: String,
        /// The file of credentials.
        credentials_file: PathBuf,
        /// The file of settings.
        config_file: PathBuf,
        /// URL of STS, for a profile with a web identity.
        sts_endpoint: String,
    },
    /// The endpoint that ECS and EKS give a container.
    Container {
        /// Its URL: https, or a host that is the machine itself.
        url: String,
        /// What goes into the header `authorization`.
        authorization: Option<Secret>,
    },
    /// The metadata service of an EC2 instance, in its second version.
    Instance {
        /// Its URL.
        endpoint: String,
    },
}

/// A secret text, here or in a file that is read anew each time.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// The text.
    Text(String),
    /// The file that holds it.
    File(PathBuf),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(_) => f.write_str("Text(…)"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}

impl CredentialSource {
    /// The places that the AWS tools look at, in their order, as far as `variable` names them: it is asked for
    /// environment variables, and a host that wants its own environment to count asks that.
    pub fn usual(variable: &dyn Fn(&str) -> Option<String>) -> Vec<Self> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let mut sources = Vec::new();
        if let (Some(access_key_id), Some(secret_access_key)) =
            (set("AWS_ACCESS_KEY_ID"), set("AWS_SECRET_ACCESS_KEY"))
        {
            let session_token = set("AWS_SESSION_TOKEN");
            let given = Credentials { access_key_id, secret_access_key, session_token, expires: None };
            sources.push(Self::Given(given));
        }
        let region = set("AWS_REGION").or_else(|| set("AWS_DEFAULT_REGION"));
        let sts_endpoint = set("AWS_ENDPOINT_URL_STS").unwrap_or_else(|| match &region {
            Some(region) if region.starts_with("cn-") => format!("https://sts.{region}.amazonaws.com.cn"),
            Some(region) => format!("https://sts.{region}.amazonaws.com"),
            None => "https://sts.amazonaws.com".to_owned(),
        });
        if let (Some(token_file), Some(role_arn)) = (set("AWS_WEB_IDENTITY_TOKEN_FILE"), set("AWS_ROLE_ARN"))
        {
            let session_name = set("AWS_ROLE_SESSION_NAME").unwrap_or_else(|| "dormouse".to_owned());
            let (token_file, endpoint) = (token_file.into(), sts_endpoint.clone());
            sources.push(Self::WebIdentity { token_file, role_arn, session_name, endpoint });
        }
        let in_home = |name: &str| set("HOME").map(|home| PathBuf::from(home).join(".aws").join(name));
        let credentials_file =
            set("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from).or_else(|| in_home("credentials"));
        let config_file = set("AWS_CONFIG_FILE").map(PathBuf::from).or_else(|| in_home("config"));
        if let (Some(credentials_file), Some(config_file)) = (credentials_file, config_file) {
            let name = set("AWS_PROFILE").unwrap_or_else(|| "default".to_owned());
            sources.push(Self::Profile { name, credentials_file, config_file, sts_endpoint });
        }
        let url = set("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI")
            .map(|path| format!("http://169.254.170.2{path}"))
            .or_else(|| set("AWS_CONTAINER_CREDENTIALS_FULL_URI"));
        if let Some(url) = url {
            let file = set("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").map(|path| Secret::File(path.into()));
            let authorization = file.or_else(|| set("AWS_CONTAINER_AUTHORIZATION_TOKEN").map(Secret::Text));
            sources.push(Self::Container { url, authorization });
        } else if set("AWS_EC2_METADATA_DISABLED").is_none_or(|value| !value.eq_ignore_ascii_case("true")) {
            let endpoint = set("AWS_EC2_METADATA_SERVICE_ENDPOINT");
            let endpoint = endpoint.unwrap_or_else(|| "http://169.254.169.254".to_owned());
            sources.push(Self::Instance { endpoint });
        }
        sources
    }

    /// Looks once. `None`: nothing of ours is there.
    fn look(&self, http: &Arc<Http>, until: &Until) -> Result<Option<Credentials>, Missing> {
        match self {
            Self::Given(credentials) => Ok(Some(credentials.clone())),
            Self::WebIdentity { token_file, role_arn, session_name, endpoint } => {
                cloud::web_identity(http, token_file, role_arn, session_name, endpoint, until).map(Some)
            }
            Self::Profile { name, credentials_file, config_file, sts_endpoint } => {
                let files = profile::Files { credentials: credentials_file, config: config_file };
                match profile::look(name, &files, until)? {
                    None => Ok(None),
                    Some(profile::Found::Credentials(credentials)) => Ok(Some(credentials)),
                    Some(profile::Found::WebIdentity { token_file, role_arn, session_name }) => {
                        cloud::web_identity(http, &token_file, &role_arn, &session_name, sts_endpoint, until)
                            .map(Some)
                    }
                }
            }
            Self::Container { url, authorization } => {
                cloud::container(http, url, authorization.as_ref(), until).map(Some)
            }
            Self::Instance { endpoint } => cloud::instance(http, endpoint, until).map(Some),
        }
    }
}

/// Why a place that should have credentials has none.
#[derive(Debug)]
struct Missing {
    reason: String,
    is_temporary: bool,
    stopped: Option<crate::thread::Stopped>,
}

impl Missing {
    fn permanent(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), is_temporary: false, stopped: None }
    }

    fn temporary(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), is_temporary: true, stopped: None }
    }
}

impl From<StoreCause> for Missing {
    fn from(cause: StoreCause) -> Self {
        match cause {
            StoreCause::Stopped(why) => {
                Self { reason: why.to_string(), is_temporary: false, stopped: Some(why) }
            }
            other => Self::temporary(other.to_string()),
        }
    }
}

/// Finds credentials and keeps them.
pub(super) struct Provider {
    sources: Vec<CredentialSource>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    kept: Option<Kept>,
    /// Whether what was found last is renewed by its place. It outlives what is kept: several calls may be told that
    /// it is too old.
    is_renewed: bool,
    /// Given when the look that is under way has ended.
    looking: Option<Fin>,
}

struct Kept {
    credentials: Credentials,
    renew_at: Option<SystemTime>,
}

/// What a look found.
struct Found {
    credentials: Credentials,
    /// Whether its place gives others by itself when these are over.
    is_renewed: bool,
}

impl Kept {
    fn new(credentials: Credentials) -> Self {
        let renew_at = credentials.expires.map(|expires| {
            let left = expires.duration_since(SystemTime::now()).unwrap_or_default();
            expires.checked_sub(RENEW_BEFORE.min(left / 4)).unwrap_or(expires)
        });
        Self { credentials, renew_at }
    }

    fn is_good(&self, now: SystemTime) -> bool {
        self.credentials.expires.is_none_or(|expires| now < expires)
    }

    fn is_fresh(&self, now: SystemTime) -> bool {
        self.renew_at.is_none_or(|renew_at| now < renew_at)
    }
}

impl Provider {
    pub(super) fn new(sources: Vec<CredentialSource>) -> Self {
        Self { sources, state: Mutex::default() }
    }

    /// The credentials; `None` where requests are not to be signed.
    pub(super) fn get(&self, http: &Arc<Http>, until: &Until) -> Result<Option<Credentials>, StoreCause> {
        if self.sources.is_empty() {
            return Ok(None);
        }
        loop {
            until.check()?;
            let now = SystemTime::now();
            let mut state = self.state.lock();
            let kept = state.kept.as_ref().filter(|kept| kept.is_good(now));
            let old = kept.map(|kept| kept.credentials.clone());
            if kept.is_some_and(|kept| kept.is_fresh(now)) {
                return Ok(old);
            }
            match (state.looking.clone().filter(|looking| !looking.is_given()), old) {
                // Somebody looks already.
                (Some(_), Some(old)) => return Ok(Some(old)),
                (Some(looking), None) => {
                    drop(state);
                    looking.wait(until)?;
                }
                (None, old) => {
                    let (ended, looking) = fin();
                    state.looking = Some(looking);
                    drop(state);
                    let looked = self.look(http, &until.at_most(LOOK_LIMIT));
                    return match (looked, old) {
                        (Ok(Found { credentials, is_renewed }), _) => {
                            let mut state = self.state.lock();
                            state.kept = Some(Kept::new(credentials.clone()));
                            state.is_renewed = is_renewed;
                            drop(state);
                            drop(ended);
                            Ok(Some(credentials))
                        }
                        (Err(_), Some(old)) => Ok(Some(old)),
                        (Err(missing), None) => Err(missing.into_cause(until)),
                    };
                }
            }
        }
    }

    /// Forgets what is kept, because a server finds it too old. Gives whether others may be found.
    pub(super) fn forget(&self) -> bool {
        let mut state = self.state.lock();
        state.kept = None;
        state.is_renewed
    }

    fn look(&self, http: &Arc<Http>, until: &Until) -> Result<Found, Missing> {
        for source in &self.sources {
            if let Some(credentials) = source.look(http, until)? {
                // What stands in a file for good is renewed by somebody, but not by itself.
                let is_given = matches!(source, CredentialSource::Given(_));
                let is_renewed = !is_given && credentials.expires.is_some();
                return Ok(Found { credentials, is_renewed });
            }
        }
        Err(Missing::permanent("none of the usual places has any"))
    }
}

impl Missing {
    fn into_cause(self, until: &Until) -> StoreCause {
        match (self.stopped, until.check()) {
            (Some(_), Err(why)) => why.into(),
            // The look took too long, not the call.
            (Some(_), Ok(())) => StoreCause::Credentials { reason: self.reason, is_temporary: true },
            (None, _) => StoreCause::Credentials { reason: self.reason, is_temporary: self.is_temporary },
        }
    }
}

/// Credentials as the services and the processes give them.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Document {
    code: Option<String>,
    message: Option<String>,
    access_key_id: Option<String>,
    secret_access_key: Option<String>,
    /// What a process calls it.
    session_token: Option<String>,
    /// What a service calls it.
    token: Option<String>,
    expiration: Option<String>,
}

impl Document {
    fn into_credentials(self, whose: &str) -> Result<Credentials, Missing> {
        let bad = |what: &str| Missing::permanent(format!("{whose} {what}"));
        if let Some(code) = self.code.filter(|code| code != "Success") {
            let message = self.message.unwrap_or_default();
            return Err(Missing::temporary(format!("{whose} says {code}: {message}")));
        }
        let expires = self.expiration.as_deref().map(read_time).transpose();
        Ok(Credentials {
            access_key_id: self.access_key_id.ok_or_else(|| bad("gave no AccessKeyId"))?,
            secret_access_key: self.secret_access_key.ok_or_else(|| bad("gave no SecretAccessKey"))?,
            session_token: self.session_token.or(self.token),
            expires: expires.map_err(|text| bad(&format!("gave an Expiration that is no time: {text:?}")))?,
        })
    }
}

/// A time as in RFC 3339, in UTC or with the offset of a place.
fn read_time(text: &str) -> Result<SystemTime, String> {
    let (local, ahead, behind) = split_offset(text).unwrap_or((text, Duration::ZERO, Duration::ZERO));
    let utc = if local.len() == text.len() { text.to_owned() } else { format!("{local}Z") };
    let read = humantime::parse_rfc3339(&utc).ok();
    let read = read.and_then(|read| read.checked_sub(ahead)?.checked_add(behind));
    read.ok_or_else(|| text.to_owned())
}

/// The time before an offset such as `+01:30`, and by how much its clock is ahead of UTC, or behind it.
fn split_offset(text: &str) -> Option<(&str, Duration, Duration)> {
    let (local, offset) = text.split_at_checked(text.len().checked_sub(6)?)?;
    let (sign, (hours, minutes)) = (offset.get(..1)?, offset.get(1..)?.split_once(':')?);
    let number =
        |digits: &str| digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<u64>().ok())?;
    let by = Duration::from_secs(number(hours)? * 3600 + number(minutes)? * 60);
    match sign {
        "+" => Some((local, by, Duration::ZERO)),
        "-" => Some((local, Duration::ZERO, by)),
        _ => None,
    }
}

fn read_document(text: &[u8], whose: &str) -> Result<Credentials, Missing> {
    // The text holds secrets, so nothing of it is shown.
    let document: Document = serde_json::from_slice(text).map_err(|e| {
        Missing::permanent(format!("{whose} gave no JSON of credentials (line {})", e.line()))
    })?;
    document.into_credentials(whose)
}
