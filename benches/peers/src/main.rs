//! One file to an S3 server, or back, by the crate `object_store`: `peers up|down FILE KEY PARALLEL`.
//!
//! Settings are those of `benches/transfer.rs`. Parts are of 8 MiB, payloads are signed with their hash, as is the
//! crate's default. With a fifth word `checked` it does what `dormouse` does besides: each part is hashed before it
//! is sent and after it came, and the hashes are compared with those in the file `sums` beside FILE.

use std::error::Error;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{Certificate, ClientOptions, GetOptions, ObjectStore, ObjectStoreExt, PutPayload};
use sha2::{Digest, Sha256};

type Failure = Box<dyn Error + Send + Sync>;

const PART_BYTES: u64 = 8 * 1024 * 1024;

struct Job {
    store: AmazonS3,
    key: Path,
    path: PathBuf,
    parallel: usize,
    is_checked: bool,
}

fn main() -> Result<(), Failure> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [way, path, key, parallel, rest @ ..] = words.as_slice() else {
        return Err("usage: peers up|down FILE KEY PARALLEL [checked]".into());
    };
    let job = Job {
        store: open()?,
        key: Path::from(key.as_str()),
        path: path.into(),
        parallel: parallel.parse()?,
        is_checked: rest.iter().any(|word| word == "checked"),
    };
    // As many threads as the machine has cores, as is the runtime's default.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let sums = job.path.with_file_name("sums");
    let found = match way.as_str() {
        "up" => runtime.block_on(up(&Arc::new(job)))?,
        _ => runtime.block_on(down(&Arc::new(job)))?,
    };
    match found {
        Some(found) if found != fs::read(sums)? => Err("the content is another".into()),
        _ => Ok(()),
    }
}

fn open() -> Result<AmazonS3, Failure> {
    let endpoint = std::env::var("DORMOUSE_BENCH_ENDPOINT")?;
    let mut options = ClientOptions::new().with_allow_http(endpoint.starts_with("http:"));
    if let Ok(authority) = std::env::var("DORMOUSE_BENCH_CA") {
        options = options.with_root_certificate(Certificate::from_pem(&fs::read(authority)?)?);
    }
    Ok(AmazonS3Builder::new()
        .with_endpoint(endpoint)
        .with_region("us-east-1")
        .with_bucket_name(std::env::var("DORMOUSE_BENCH_BUCKET")?)
        .with_access_key_id(std::env::var("AWS_ACCESS_KEY_ID")?)
        .with_secret_access_key(std::env::var("AWS_SECRET_ACCESS_KEY")?)
        .with_client_options(options)
        .build()?)
}

/// The ranges of the parts.
fn parts(length: u64) -> impl Iterator<Item = (usize, u64, u64)> {
    let starts = (0..length).step_by(PART_BYTES as usize);
    starts.enumerate().map(move |(number, start)| (number, start, (start + PART_BYTES).min(length)))
}

async fn up(job: &Arc<Job>) -> Result<Option<Vec<u8>>, Failure> {
    let length = fs::metadata(&job.path)?.len();
    let sums = if job.is_checked { Some(hash(job, length).await?) } else { None };
    let id = job.store.create_multipart(&job.key).await?;
    let puts = stream::iter(parts(length)).map(|(number, start, end)| {
        let (job, id) = (Arc::clone(job), id.clone());
        // A task of its own, so that parts are hashed by all of the runtime's threads.
        let put = tokio::spawn(async move {
            let bytes = read(&job, start, end)?;
            Ok::<_, Failure>(job.store.put_part(&job.key, &id, number, PutPayload::from(bytes)).await?)
        });
        async { put.await? }
    });
    let put = puts.buffered(job.parallel).try_collect().await?;
    job.store.complete_multipart(&job.key, &id, put).await?;
    Ok(sums)
}

fn read(job: &Job, start: u64, end: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = vec![0; usize::try_from(end - start)?];
    File::open(&job.path)?.read_exact_at(&mut bytes, start)?;
    Ok(bytes)
}

async fn hash(job: &Arc<Job>, length: u64) -> Result<Vec<u8>, Failure> {
    let sums = stream::iter(parts(length)).map(|(_, start, end)| {
        let job = Arc::clone(job);
        let sum =
            tokio::spawn(async move { Ok::<_, Failure>(Sha256::digest(read(&job, start, end)?).to_vec()) });
        async { sum.await? }
    });
    Ok(sums.buffered(job.parallel).try_collect::<Vec<_>>().await?.concat())
}

async fn down(job: &Arc<Job>) -> Result<Option<Vec<u8>>, Failure> {
    let length = job.store.head(&job.key).await?.size;
    let file = Arc::new(File::create(&job.path)?);
    let gets = stream::iter(parts(length)).map(|(_, start, end)| {
        let (job, file) = (Arc::clone(job), Arc::clone(&file));
        let got = tokio::spawn(async move {
            let options = GetOptions { range: Some((start..end).into()), ..GetOptions::default() };
            let got = job.store.get_opts(&job.key, options).await?;
            let (mut pieces, mut position, mut sum) = (got.into_stream(), start, Sha256::new());
            while let Some(piece) = pieces.try_next().await? {
                file.write_all_at(&piece, position)?;
                position += piece.len() as u64;
                if job.is_checked {
                    sum.update(&piece);
                }
            }
            Ok::<_, Failure>(sum.finalize().to_vec())
        });
        async { got.await? }
    });
    let sums: Vec<Vec<u8>> = gets.buffered(job.parallel).try_collect().await?;
    file.sync_all()?;
    Ok(job.is_checked.then(|| sums.concat()))
}
