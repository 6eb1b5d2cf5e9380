//! The signature of a request as a server sees it: what came is put into its canonical form and signed anew.

use std::fmt::Write;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::http::Request;

/// Whether the request, as it came, is signed with `secret`.
pub(crate) fn is_signed(request: &Request, secret: &str) -> bool {
    let authorization = request.header("authorization");
    let field = |name: &str| {
        let rest = authorization.split_once(&format!("{name}=")).unwrap().1;
        rest.split(',').next().unwrap().to_owned()
    };
    let scope = field("Credential").split_once('/').unwrap().1.to_owned();
    let names = field("SignedHeaders");
    let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
    let mut canonical = format!("{}\n{path}\n{query}\n", request.method);
    for name in names.split(';') {
        let value: Vec<&str> = request.header(name).split(' ').filter(|word| !word.is_empty()).collect();
        writeln!(canonical, "{name}:{}", value.join(" ")).unwrap();
    }
    write!(canonical, "\n{names}\n{}", request.header("x-amz-content-sha256")).unwrap();
    let hash = dormouse::durable::hex(&Sha256::digest(canonical));
    let to_sign = format!("AWS4-HMAC-SHA256\n{}\n{scope}\n{hash}", request.header("x-amz-date"));
    let keyed = |key: Vec<u8>, text: &str| {
        let mut mac = Hmac::<Sha256>::new_from_slice(&key).unwrap();
        mac.update(text.as_bytes());
        mac.finalize().into_bytes().to_vec()
    };
    let key = scope.split('/').fold(format!("AWS4{secret}").into_bytes(), keyed);
    dormouse::durable::hex(&keyed(key, &to_sign)) == field("Signature")
}
