//! Object stores: where archives are kept.
//!
//! The room exists so that pausing and resuming know one small contract, [`ObjectStore`], and not where its
//! bytes lie. It knows nothing of shards, buckets or manifests. What all stores share is here too: keys that
//! cannot leave a store ([`ObjectKey`]), the one content hash of the library ([`ContentHash`]) and errors that
//! say what was being done, to which object of which store, and whether another try can help.
//!
//! What is known to go wrong with S3, and why it cannot here, stands in [`hazards`].
//!
//! Invariant: an object is there whole, durable and with the promised content, or it is not there at all.

mod encoding;
mod error;
mod file;
mod hash;
pub mod hazards;
mod key;
mod layer;
mod s3;
mod store;
mod transfer;
mod url;

pub use encoding::{ENCODED_FILE_BYTES_MIN, Encoding};
pub use error::{Operation, StoreCause, StoreError};
pub use file::{FOLDER_PARALLEL_DEFAULT, FileStore};
pub use hash::{
    CHUNK_BYTES, ChunkHash, Content, ContentHash, HashingWriter, ParseHashError, ReadError, hash_chunks,
    hash_file,
};
pub use key::{KEY_BYTES_MAX, KeyError, ObjectKey, SEGMENT_BYTES_MAX};
pub use layer::{
    CallInfo, Count, Counts, Floor, GRACES_WITHOUT_CONTENT, Layer, Policy, Rate, Retry, RetryConfig,
};
pub use s3::{CredentialSource, Credentials, Encryption, PARALLEL_DEFAULT, S3Config, S3Store, Secret};
pub use store::{
    Body, DraftStore, ObjectMeta, ObjectStore, PARTS_MAX, Page, PageMark, Part, PartStore, Upload, WriteDraft,
};
pub use transfer::{
    Decoded, Drafted, EncodedContent, EncodedFetch, FileContent, FileDraft, FileEncode, FileFetch, FileRead,
    FileUpload, NameDraft, TRANSFER_BYTES_MAX, TransferError, draft_files, encode_files, fetch_encoded,
    fetch_files, give_up, hash_files, upload_files,
};
pub use url::{ArchiveOptions, ArchiveUrl, ArchiveUrlError, parse_archive};
