//! Signatures of requests, as in AWS Signature Version 4 for S3:
//! <https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html>.
//!
//! Invariant: the hash of the payload is part of what is signed, so a server that checks signatures checks the
//! bytes too. Header values are put into their canonical form before they are signed *and* sent.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::SystemTime;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::credentials::Credentials;
use crate::durable::hex;

/// A request as far as it is signed. The path and the query are encoded already.
pub(super) struct Signed<'a> {
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    /// Hash of the payload, in hexadecimal digits.
    pub(super) payload: &'a str,
    pub(super) region: &'a str,
    pub(super) service: &'a str,
}

/// Adds what a signature takes to `headers`, whose names are in lower case and among which is `host`, and the
/// signature itself. All of them are signed.
pub(super) fn sign(
    request: &Signed<'_>,
    headers: &mut BTreeMap<String, String>,
    credentials: &Credentials,
    now: SystemTime,
) {
    // `2026-01-02T03:04:05Z` without its punctuation.
    let time = humantime::format_rfc3339_seconds(now).to_string().replace(['-', ':'], "");
    let day = time.get(..8).unwrap_or_default();
    headers.insert("x-amz-date".to_owned(), time.clone());
    headers.insert("x-amz-content-sha256".to_owned(), request.payload.to_owned());
    if let Some(token) = &credentials.session_token {
        headers.insert("x-amz-security-token".to_owned(), token.clone());
    }
    for value in headers.values_mut() {
        *value = value.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    let mut canonical = format!("{}\n{}\n{}\n", request.method, request.path, request.query);
    for (name, value) in &*headers {
        // Writing to a text cannot fail.
        let _ = writeln!(canonical, "{name}:{value}");
    }
    let names = headers.keys().map(String::as_str).collect::<Vec<_>>().join(";");
    let _ = write!(canonical, "\n{names}\n{}", request.payload);
    let scope = format!("{day}/{}/{}/aws4_request", request.region, request.service);
    let to_sign =
        format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{}", hex(&Sha256::digest(canonical.as_bytes())));
    let secret = format!("AWS4{}", credentials.secret_access_key);
    let steps = [day, request.region, request.service, "aws4_request", &to_sign];
    let signature = steps.iter().fold(secret.into_bytes(), |key, text| keyed(&key, text.as_bytes()));
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={}",
        credentials.access_key_id,
        hex(&signature)
    );
    headers.insert("authorization".to_owned(), authorization);
}

fn keyed(key: &[u8], text: &[u8]) -> Vec<u8> {
    match Hmac::<Sha256>::new_from_slice(key) {
        Ok(mut mac) => {
            mac.update(text);
            mac.finalize().into_bytes().to_vec()
        }
        // It takes a key of any length.
        Err(_) => Vec::new(),
    }
}
