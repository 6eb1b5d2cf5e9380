//! Where benches keep archives: a folder, or a bucket of the S3 server that the environment names.
//!
//! * `DORMOUSE_BENCH_ENDPOINT`: the server's URL, such as `http://127.0.0.1:9101`; without one it is a folder
//! * `DORMOUSE_BENCH_BUCKET`: the bucket
//! * `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`: what the server knows
//! * `DORMOUSE_BENCH_CA`: for `https`, a file with the authority of the server's certificate

use std::env;
use std::fs;
use std::path::Path;

use dormouse::objstore::{
    CredentialSource, Credentials, FileStore, ObjectKey, ObjectStore, S3Config, S3Store,
};

/// Calls at the same time.
pub(crate) const PARALLEL: usize = 8;

pub(crate) fn setting(name: &str) -> Option<String> {
    env::var(name).ok()
}

/// The store below `prefix` of the server's bucket, or in the folder `dir` where no server is named.
pub(crate) fn open(dir: &Path, prefix: Option<ObjectKey>) -> Box<dyn ObjectStore> {
    let Some(endpoint) = setting("DORMOUSE_BENCH_ENDPOINT") else {
        return Box::new(FileStore::open(dir).unwrap());
    };
    let given = Credentials {
        access_key_id: setting("AWS_ACCESS_KEY_ID").unwrap(),
        secret_access_key: setting("AWS_SECRET_ACCESS_KEY").unwrap(),
        session_token: None,
        expires: None,
    };
    let config = S3Config {
        prefix,
        endpoint: Some(endpoint),
        path_style: true,
        parallel: PARALLEL,
        authorities_pem: setting("DORMOUSE_BENCH_CA").map(|path| fs::read(path).unwrap()),
        credentials: vec![CredentialSource::Given(given)],
        ..S3Config::new(setting("DORMOUSE_BENCH_BUCKET").unwrap(), "us-east-1")
    };
    Box::new(S3Store::open(config).unwrap())
}
