//! Credentials that a service gives: STS, a container's endpoint, an instance's metadata.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use ureq::http::{Request, Uri};

use super::{Credentials, Missing, Secret, read_document, read_time};
use crate::objstore::error::StoreCause;
use crate::objstore::s3::http::{Http, Payload};
use crate::thread::Until;

/// The longest answer.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// How long an instance's metadata service may take. It is on the same machine, or not there at all.
const INSTANCE_LIMIT: Duration = Duration::from_secs(2);
/// How long the token for an instance's metadata is asked for, in seconds.
const INSTANCE_TOKEN_SECONDS: &str = "21600";
/// What STS refuses with the status of a bad request, and not another time.
const STS_TEMPORARY: [&str; 4] =
    ["Throttling", "ThrottlingException", "RequestThrottled", "IDPCommunicationError"];
/// What may stand in a form as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

struct Ask<'a> {
    method: &'a str,
    url: &'a str,
    headers: &'a [(&'a str, &'a str)],
    body: Option<String>,
}

fn ask(http: &Arc<Http>, ask: Ask<'_>, until: &Until) -> Result<(u16, Vec<u8>), Missing> {
    let mut builder = Request::builder().method(ask.method).uri(ask.url);
    for (name, value) in ask.headers {
        builder = builder.header(*name, *value);
    }
    let payload = ask.body.map(|body| Payload::Bytes(Arc::from(body.into_bytes())));
    if let Some(payload) = &payload {
        builder = builder
            .header("content-type", "application/x-www-form-urlencoded")
            .header("content-length", payload.length_bytes());
    }
    let request = builder
        .body(())
        .map_err(|e| Missing::permanent(format!("{} cannot be asked for credentials: {e}", ask.url)))?;
    let (answer, _) = http.send(request, payload.as_ref(), until)?;
    let status = answer.status;
    Ok((status, answer.read_all(ANSWER_BYTES_MAX)?))
}

/// What a status other than success says: that of the service is worth another try.
fn refused(whose: &str, status: u16, more: &str) -> Missing {
    let reason = format!("{whose} answers with status {status}{more}");
    if status == 429 || status >= 500 { Missing::temporary(reason) } else { Missing::permanent(reason) }
}

/// <https://docs.aws.amazon.com/sdkref/latest/guide/feature-container-credentials.html>
pub(super) fn container(
    http: &Arc<Http>,
    url: &str,
    authorization: Option<&Secret>,
    until: &Until,
) -> Result<Credentials, Missing> {
    let whose = "the container's endpoint";
    if !is_safe(url) {
        return Err(Missing::permanent(format!(
            "{whose} {url} is neither https nor on this machine, so the token is not sent there"
        )));
    }
    let token = authorization.map(read_secret).transpose()?;
    let headers: Vec<(&str, &str)> = token.iter().map(|token| ("authorization", token.as_str())).collect();
    let (status, body) = ask(http, Ask { method: "GET", url, headers: &headers, body: None }, until)?;
    if status != 200 {
        return Err(refused(whose, status, ""));
    }
    read_document(&body, whose)
}

fn is_safe(url: &str) -> bool {
    let Ok(uri) = url.parse::<Uri>() else { return false };
    let host = uri.host().unwrap_or_default();
    let of_machine = ["localhost", "127.0.0.1", "[::1]", "169.254.170.2", "169.254.170.23", "[fd00:ec2::23]"];
    uri.scheme_str() == Some("https") || of_machine.contains(&host)
}

fn read_secret(secret: &Secret) -> Result<String, Missing> {
    match secret {
        Secret::Text(text) => Ok(text.clone()),
        Secret::File(path) => read_file(path),
    }
}

fn read_file(path: &Path) -> Result<String, Missing> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Missing::permanent(format!("the token in {} cannot be read: {e}", path.display())))?;
    Ok(text.trim().to_owned())
}

/// <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html>, version 2.
pub(super) fn instance(http: &Arc<Http>, endpoint: &str, until: &Until) -> Result<Credentials, Missing> {
    let whose = "the instance's metadata service";
    let endpoint = endpoint.trim_end_matches('/');
    let limit = &until.at_most(INSTANCE_LIMIT);
    let url = format!("{endpoint}/latest/api/token");
    let headers = [("x-aws-ec2-metadata-token-ttl-seconds", INSTANCE_TOKEN_SECONDS)];
    let asked =
        ask(http, Ask { method: "PUT", url: &url, headers: &headers, body: Some(String::new()) }, limit);
    let (status, token) = asked.map_err(|missing| {
        if until.check().is_err() {
            return missing;
        }
        Missing::permanent(format!("none of the usual places has any, and {whose} does not answer"))
    })?;
    if status != 200 {
        return Err(refused(whose, status, " to the request for a token"));
    }
    let token = String::from_utf8_lossy(&token).trim().to_owned();
    let headers = [("x-aws-ec2-metadata-token", token.as_str())];
    let roles = format!("{endpoint}/latest/meta-data/iam/security-credentials/");
    let get = |url: &str| ask(http, Ask { method: "GET", url, headers: &headers, body: None }, limit);
    let (status, names) = get(&roles)?;
    if status != 200 {
        return Err(refused(whose, status, ": the instance has no role"));
    }
    let names = String::from_utf8_lossy(&names).into_owned();
    let role = names.lines().next().unwrap_or_default().trim();
    let (status, body) = get(&format!("{roles}{role}"))?;
    if status != 200 {
        return Err(refused(whose, status, &format!(" for the role {role}")));
    }
    read_document(&body, whose)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StsAnswer {
    #[serde(rename = "AssumeRoleWithWebIdentityResult")]
    result: StsResult,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StsResult {
    credentials: StsCredentials,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StsCredentials {
    access_key_id: String,
    secret_access_key: String,
    session_token: String,
    expiration: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StsError {
    error: StsErrorText,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StsErrorText {
    code: String,
    #[serde(default)]
    message: String,
}

/// <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html>
pub(super) fn web_identity(
    http: &Arc<Http>,
    token_file: &Path,
    role_arn: &str,
    session_name: &str,
    endpoint: &str,
    until: &Until,
) -> Result<Credentials, Missing> {
    let token = read_file(token_file)?;
    let encode = |text: &str| utf8_percent_encode(text, PLAIN).to_string();
    let body = format!(
        "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleArn={}&RoleSessionName={}&WebIdentityToken={}",
        encode(role_arn),
        encode(session_name),
        encode(&token)
    );
    let url = format!("{}/", endpoint.trim_end_matches('/'));
    let (status, body) = ask(http, Ask { method: "POST", url: &url, headers: &[], body: Some(body) }, until)?;
    let text = String::from_utf8_lossy(&body);
    if status != 200 {
        let Ok(StsError { error: StsErrorText { code, message } }) = quick_xml::de::from_str(&text) else {
            return Err(refused("STS", status, ""));
        };
        let more = format!(": {code}: {message}");
        if STS_TEMPORARY.contains(&code.as_str()) {
            return Err(Missing::temporary(format!("STS answers with status {status}{more}")));
        }
        return Err(refused("STS", status, &more));
    }
    let answer: StsAnswer = quick_xml::de::from_str(&text)
        .map_err(|_| Missing::permanent("STS gave no document of credentials"))?;
    let found = answer.result.credentials;
    let expires = read_time(&found.expiration).map_err(|text| {
        Missing::from(StoreCause::Answer(format!("STS gave an Expiration that is no time: {text:?}")))
    })?;
    Ok(Credentials {
        access_key_id: found.access_key_id,
        secret_access_key: found.secret_access_key,
        session_token: Some(found.session_token),
        expires: Some(expires),
    })
}
