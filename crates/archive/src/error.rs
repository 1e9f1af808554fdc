//! Everything that can be wrong with an archive: one line each, with what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Why an archive could not be read.
///
/// Each message is one line. Text taken from the archive is shortened and escaped before it gets here.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// There is no such file.
    #[error("{} does not exist: check the path", .0.display())]
    Missing(PathBuf),
    /// The file could not be opened or read.
    #[error("cannot read the archive: {0}")]
    Io(#[from] io::Error),
    /// The file is no zip file at all.
    #[error("not a TorchScript archive but {looks_like}: {advice}")]
    Foreign {
        /// What its first bytes say it is.
        looks_like: &'static str,
        /// What to do about it.
        advice: &'static str,
    },
    /// The file starts like a zip file but has no end.
    #[error(
        "truncated after {size_bytes} bytes (the zip directory at its end is missing): copy the file again"
    )]
    Truncated {
        /// Bytes that are there.
        size_bytes: u64,
    },
    /// A zip file, and written by torch perhaps, but without TorchScript code.
    #[error("{looks_like}, not TorchScript: save it with torch.jit.save(torch.jit.script(model), ...)")]
    NotTorchScript {
        /// What its entries say it is.
        looks_like: &'static str,
    },
    /// The top module cannot be called.
    #[error(
        "module {class} has no forward method (it has: {methods}): give it one, or export the one it has as forward"
    )]
    NoForward {
        /// Class of the top module.
        class: String,
        /// Its methods, comma-separated, or `none`.
        methods: String,
    },
    /// More entries than any model has.
    #[error("{found} entries, more than the {limit} allowed: the archive is damaged or hostile")]
    TooManyEntries {
        /// Entries that the directory declares.
        found: usize,
        /// Most that are read.
        limit: usize,
    },
    /// Code or pickle that is larger than what is ever read.
    #[error("{entry} is over {limit_bytes} bytes: the archive is damaged or hostile")]
    TooLarge {
        /// Name of the entry.
        entry: String,
        /// Most bytes that are read.
        limit_bytes: u64,
    },
    /// A name that points out of the archive, or that no writer of torch makes.
    #[error("entry name {0} is not a plain relative path: the archive is damaged or hostile")]
    BadName(String),
    /// Two entries of one name; libtorch ignores case when it looks an entry up, so that counts as one name too.
    #[error(
        "entry {0} is there twice (names are compared without case, as libtorch does): save the model again"
    )]
    DuplicateName(String),
    /// Entries that share bytes, or that reach into the directory or past the end of the file.
    #[error("entries overlap each other or lie outside the file: the archive is damaged or hostile")]
    Overlap,
    /// What an entry holds is not what was written.
    #[error("{0} does not match its checksum: copy the file again")]
    Checksum(String),
    /// One entry, or the directory as a whole, is damaged or missing.
    #[error("{entry}: {reason}: the archive is damaged, save or copy it again")]
    Entry {
        /// Name of the entry.
        entry: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A pickle that TorchScript would not write.
    #[error("{entry}, byte {offset}: {reason}: save the model again with torch.jit.save")]
    Pickle {
        /// Name of the entry.
        entry: String,
        /// Where in it.
        offset: usize,
        /// What is wrong there.
        reason: String,
    },
    /// A tensor whose bytes are not in the archive.
    #[error("tensor in {storage}: {reason}: the archive is damaged, save or copy it again")]
    Tensor {
        /// Entry that should hold its bytes.
        storage: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An entry that libtorch would read instead of what was inspected.
    #[error("{0}, which libtorch would load instead of the code: the archive is made to deceive")]
    Deceptive(&'static str),
    /// Entries that inflate to far more than they take in the file.
    #[error(
        "its compressed entries would inflate to {declared_bytes} bytes, more than the {limit_bytes} allowed for a \
         file of this size: if it is yours, save it again with torch.jit.save, which does not compress weights"
    )]
    Inflates {
        /// What they declare.
        declared_bytes: u64,
        /// Most that is inflated.
        limit_bytes: u64,
    },
    /// Modules nested deeper, or more of them, than is ever read.
    #[error("the module tree is {0} than any model's: the archive is damaged or hostile")]
    Tree(&'static str),
}

impl ArchiveError {
    /// The message with the file that it is about, unless it names that itself.
    pub fn of(&self, path: &Path) -> String {
        match self {
            Self::Missing(_) => self.to_string(),
            _ => format!("{}: {self}", path.display()),
        }
    }
}

/// At most 80 characters of `text`, without control characters, to go into a message.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}
