//! The server's side of SCRAM, made from the hash functions alone.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha512};

/// The functions of one hash.
#[derive(Clone, Copy)]
pub(crate) struct Hash {
    mac: fn(&[u8], &[u8]) -> Vec<u8>,
    digest: fn(&[u8]) -> Vec<u8>,
}

fn mac_sha1(key: &[u8], text: &[u8]) -> Vec<u8> {
    Hmac::<Sha1>::new_from_slice(key).unwrap().chain_update(text).finalize().into_bytes().to_vec()
}

fn mac_sha256(key: &[u8], text: &[u8]) -> Vec<u8> {
    Hmac::<Sha256>::new_from_slice(key).unwrap().chain_update(text).finalize().into_bytes().to_vec()
}

fn mac_sha512(key: &[u8], text: &[u8]) -> Vec<u8> {
    Hmac::<Sha512>::new_from_slice(key).unwrap().chain_update(text).finalize().into_bytes().to_vec()
}

impl Hash {
    pub(crate) fn of(mechanism: &str) -> Self {
        match mechanism {
            "SCRAM-SHA1" => Self { mac: mac_sha1, digest: |bytes| Sha1::digest(bytes).to_vec() },
            "SCRAM-SHA256" => Self { mac: mac_sha256, digest: |bytes| Sha256::digest(bytes).to_vec() },
            "SCRAM-SHA512" => Self { mac: mac_sha512, digest: |bytes| Sha512::digest(bytes).to_vec() },
            other => panic!("{other}"),
        }
    }

    fn salted(self, password: &[u8], salt: &[u8], rounds: u32) -> Vec<u8> {
        let mut block = (self.mac)(password, &[salt, &[0, 0, 0, 1]].concat());
        let mut sum = block.clone();
        for _ in 1..rounds {
            block = (self.mac)(password, &block);
            sum = xor(&sum, &block);
        }
        sum
    }
}

fn xor(a: &[u8], b: &[u8]) -> Vec<u8> {
    a.iter().zip(b).map(|(a, b)| a ^ b).collect()
}

/// A log-in that is under way.
pub(crate) struct Exchange {
    pub(crate) hash: Hash,
    /// What the client said first, without its header.
    pub(crate) client_first: String,
    pub(crate) server_first: String,
}

impl Exchange {
    /// Takes the client's first message; `None` where it is none.
    pub(crate) fn begin(mechanism: &str, message: &[u8], user: &str) -> Option<Self> {
        let text = std::str::from_utf8(message).ok()?;
        // Real servers take no other header.
        let bare = text.strip_prefix("n,,")?;
        let (name, nonce) = bare.split_once(",r=")?;
        if name != format!("n={user}") || nonce.is_empty() {
            return None;
        }
        let salt = STANDARD.encode(b"salt of the test");
        let server_first = format!("r={nonce}server,s={salt},i=64");
        Some(Self { hash: Hash::of(mechanism), client_first: bare.to_owned(), server_first })
    }

    /// Takes the client's last message; gives the server's, or nothing where the proof is wrong.
    pub(crate) fn finish(&self, message: &[u8], password: &str) -> Option<String> {
        let text = std::str::from_utf8(message).ok()?;
        let (unproved, proof) = text.split_once(",p=")?;
        let part = |name: &str| self.server_first.split(',').find_map(|part| part.strip_prefix(name));
        if unproved != format!("c=biws,r={}", part("r=")?) {
            return None;
        }
        let salt = STANDARD.decode(part("s=")?).ok()?;
        let salted = self.hash.salted(password.as_bytes(), &salt, part("i=")?.parse().ok()?);
        let said = format!("{},{},{unproved}", self.client_first, self.server_first);
        let client_key = (self.hash.mac)(&salted, b"Client Key");
        let signature = (self.hash.mac)(&(self.hash.digest)(&client_key), said.as_bytes());
        if STANDARD.decode(proof).ok()? != xor(&client_key, &signature) {
            return None;
        }
        let server_key = (self.hash.mac)(&salted, b"Server Key");
        Some(format!("v={}", STANDARD.encode((self.hash.mac)(&server_key, said.as_bytes()))))
    }
}

/// The exchange that the KV engine's documents print, with the password `pencil`.
#[test]
fn the_server_of_the_tests_proves_itself_as_the_documented_one_does() {
    let exchange = Exchange {
        hash: Hash::of("SCRAM-SHA1"),
        client_first: "n=user,r=d40a02e348040590".to_owned(),
        server_first: "r=d40a02e348040590ec8ac7844dcf9af9d,s=sg3wBQYIgylIqL7Qy79Fo4XdbGagRw==,i=10"
            .to_owned(),
    };
    let lines = crate::support::wire::data("documented.jsonl");
    let value = |number: u64| {
        let line = lines.iter().find(|line| line["n"] == number).unwrap();
        let bytes = crate::support::wire::from_hex(line["hex"].as_str().unwrap());
        let key = usize::from(u16::from_be_bytes([bytes[2], bytes[3]]));
        String::from_utf8(bytes[24 + key..].to_vec()).unwrap()
    };
    let exchange = Exchange { server_first: value(66), client_first: value(65).split_off(3), ..exchange };
    assert_eq!(exchange.finish(value(67).as_bytes(), "pencil"), Some(value(68)));
}
