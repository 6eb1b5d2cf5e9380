//! Numbers of the memcached binary protocol that the wire speaks in: opcodes, statuses and the features of HELLO.
//!
//! Source: `docs/BinaryProtocol.md` and `docs/dcp` of `couchbase/kv_engine`, and the sessions under `tests/data/dcp`.

use std::fmt;

macro_rules! numbers {
    ($(#[$meta:meta])* $name:ident($inner:ty) $(, $(#[$doc:meta])* $item:ident = $value:literal)* $(,)?) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl $name {
            $($(#[$doc])* pub const $item: Self = Self($value);)*

            fn known(self) -> Option<&'static str> {
                match self {
                    $(Self::$item => Some(stringify!($item)),)*
                    _ => None,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self.known() {
                    Some(name) => write!(f, "{name} ({:#04x})", self.0),
                    None => write!(f, "{:#04x}", self.0),
                }
            }
        }
    };
}

numbers! {
    /// What a frame asks for, answers or tells.
    Opcode(u8),
    /// Features are agreed on.
    HELLO = 0x1f,
    /// The ways to log in that a server knows.
    SASL_LIST_MECHS = 0x20,
    /// The first message of a log-in.
    SASL_AUTH = 0x21,
    /// A further message of a log-in.
    SASL_STEP = 0x22,
    /// The last seqno of each vbucket.
    GET_ALL_VB_SEQNOS = 0x48,
    /// The connection becomes one of DCP.
    DCP_OPEN = 0x50,
    /// A stream is ended by its consumer.
    DCP_CLOSE_STREAM = 0x52,
    /// A stream is asked for.
    DCP_STREAM_REQ = 0x53,
    /// A vbucket's failover log, on a connection of DCP.
    DCP_FAILOVER_LOG = 0x54,
    /// A stream ended.
    DCP_STREAM_END = 0x55,
    /// The window of the changes that follow.
    DCP_SNAPSHOT_MARKER = 0x56,
    /// A document was written.
    DCP_MUTATION = 0x57,
    /// A document was deleted.
    DCP_DELETION = 0x58,
    /// A document reached its time to live.
    DCP_EXPIRATION = 0x59,
    /// Is the other side still there?
    DCP_NOOP = 0x5c,
    /// Bytes were taken off the flow-control window.
    DCP_BUFFER_ACK = 0x5d,
    /// A setting of a connection of DCP.
    DCP_CONTROL = 0x5e,
    /// A collection or scope changed.
    DCP_SYSTEM_EVENT = 0x5f,
    /// Changes up to a seqno do not concern the stream.
    DCP_SEQNO_ADVANCED = 0x64,
    /// An edge of an out-of-order snapshot.
    DCP_OSO_SNAPSHOT = 0x65,
    /// The bucket that the connection is about.
    SELECT_BUCKET = 0x89,
    /// How far a vbucket is on disk.
    OBSERVE_SEQNO = 0x91,
    /// A vbucket's failover log, outside of DCP.
    GET_FAILOVER_LOG = 0x96,
    /// The cluster's nodes and where each vbucket is.
    GET_CLUSTER_CONFIG = 0xb5,
    /// The manifest of the bucket's collections.
    GET_COLLECTIONS_MANIFEST = 0xba,
}

numbers! {
    /// How a request went.
    Status(u16),
    /// It was carried out.
    SUCCESS = 0x00,
    /// What it is about does not exist.
    KEY_ENOENT = 0x01,
    /// What it is about exists already.
    KEY_EEXISTS = 0x02,
    /// An argument is wrong.
    EINVAL = 0x04,
    /// The vbucket is not active on the node.
    NOT_MY_VBUCKET = 0x07,
    /// User or password is wrong.
    AUTH_ERROR = 0x20,
    /// The log-in needs another message.
    AUTH_CONTINUE = 0x21,
    /// A seqno is out of its range.
    ERANGE = 0x22,
    /// The consumer has to go back.
    ROLLBACK = 0x23,
    /// The user may not do this.
    EACCESS = 0x24,
    /// The server does not know the opcode.
    UNKNOWN_COMMAND = 0x81,
    /// The server has no memory left for now.
    ENOMEM = 0x82,
    /// The server does not do this.
    NOT_SUPPORTED = 0x83,
    /// The server cannot do this for now.
    TMPFAIL = 0x86,
    /// A collection does not exist.
    UNKNOWN_COLLECTION = 0x88,
    /// The consumer has seen a newer manifest than the server.
    MANIFEST_AHEAD = 0x8b,
    /// A scope does not exist.
    UNKNOWN_SCOPE = 0x8c,
    /// The stream's number is not right.
    STREAMID_INVALID = 0x8d,
}

numbers! {
    /// Something that HELLO agrees on.
    Feature(u16),
    /// Documents may carry extended attributes.
    XATTR = 0x06,
    /// Errors come with statuses of their own, and with a text.
    XERROR = 0x07,
    /// `SELECT_BUCKET` is there.
    SELECT_BUCKET = 0x08,
    /// Values may be compressed.
    SNAPPY = 0x0a,
    /// Documents say whether they are JSON.
    JSON = 0x0b,
    /// Keys carry the id of their collection.
    COLLECTIONS = 0x12,
}
