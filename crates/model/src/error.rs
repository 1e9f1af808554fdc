//! What can go wrong, as a closed set.
//!
//! Every failure that a caller sees is an [`Error`]: a [`Reason`] from the list below, a message of one line that
//! says what to do, and hints. `torchlane_proto::status` makes a gRPC status of it, and
//! [`Reason::http_status`] says its code of HTTP. Requests that are not HTTP or gRPC as they should be are the only ones with codes
//! of their own (405, 415, ...), where they are refused. What the log says may be longer; what the wire says is clipped to [`MAX_MESSAGE_BYTES`],
//! because an over-long trailer makes HTTP/2 peers drop the whole connection.

use std::{borrow::Cow, fmt, time::Duration};

/// Longest message sent to a caller.
pub const MAX_MESSAGE_BYTES: usize = 1024;

/// Most characters of what a caller wrote that go into a log line.
pub const LOGGED: usize = 128;

/// gRPC status codes, by their names in the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are gRPC's own")]
pub enum Code {
    Cancelled,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    Unimplemented,
    Internal,
    Unavailable,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident => $text:literal, $code:ident;)*) => {
        /// Why a call failed. The text form is the `reason` of google.rpc.ErrorInfo and a metric label: stable.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// Every reason, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The stable name.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The gRPC status code.
            pub const fn code(self) -> Code {
                match self { $(Self::$name => Code::$code,)* }
            }
        }
    };
}

reasons! {
    /// No model of that name is loaded.
    UnknownModel => "UNKNOWN_MODEL", NotFound;
    /// The model is there, that version is not live (or not on disk, for a reload).
    UnknownVersion => "UNKNOWN_VERSION", NotFound;
    /// The model exists but nothing serves: still loading, unloaded, or failed.
    ModelNotReady => "MODEL_NOT_READY", Unavailable;
    /// The version only failed lately: it gets a trial now and then.
    BreakerOpen => "BREAKER_OPEN", Unavailable;
    /// An input that the model does not have.
    UnknownInput => "UNKNOWN_INPUT", InvalidArgument;
    /// An input that the model needs.
    MissingInput => "MISSING_INPUT", InvalidArgument;
    /// The same input twice.
    DuplicateInput => "DUPLICATE_INPUT", InvalidArgument;
    /// An output that the model does not have.
    UnknownOutput => "UNKNOWN_OUTPUT", InvalidArgument;
    /// A datatype other than the model's.
    WrongDatatype => "WRONG_DATATYPE", InvalidArgument;
    /// A rank or dimension other than the model's, or more rows than its largest batch.
    WrongShape => "WRONG_SHAPE", InvalidArgument;
    /// A tensor that contradicts itself: shape, datatype and data do not agree.
    BadTensor => "BAD_TENSOR", InvalidArgument;
    /// Anything else in a request that cannot be read.
    BadRequest => "BAD_REQUEST", InvalidArgument;
    /// A change that is turned off, or that a page of another origin asks a browser for.
    Forbidden => "FORBIDDEN", PermissionDenied;
    /// No shared memory of that name is registered.
    UnknownRegion => "UNKNOWN_REGION", NotFound;
    /// Shared memory of that name is registered already.
    RegionExists => "REGION_EXISTS", AlreadyExists;
    /// A message over `server.max_message_bytes`.
    MessageTooLarge => "MESSAGE_TOO_LARGE", ResourceExhausted;
    /// The lane's queue is full.
    QueueFull => "QUEUE_FULL", ResourceExhausted;
    /// The process-wide cap on requests or bytes is reached.
    Overloaded => "OVERLOADED", ResourceExhausted;
    /// Memory, bytes of requests or CPUs are short: the lane is refused until they are not.
    ResourcePressure => "RESOURCE_PRESSURE", ResourceExhausted;
    /// The tenant sends more requests a second than it may.
    RateLimited => "RATE_LIMITED", ResourceExhausted;
    /// The tenant has as many requests in the server as it may.
    TenantLimit => "TENANT_LIMIT", ResourceExhausted;
    /// The caller's deadline passed before an answer was there.
    DeadlineExceeded => "DEADLINE_EXCEEDED", DeadlineExceeded;
    /// The caller left.
    Cancelled => "CANCELLED", Cancelled;
    /// The server is draining.
    ShuttingDown => "SHUTTING_DOWN", Unavailable;
    /// The model's forward pass failed.
    ForwardFailed => "FORWARD_FAILED", Internal;
    /// An archive could not be verified, loaded or warmed up; the message names the phase.
    LoadFailed => "LOAD_FAILED", FailedPrecondition;
    /// The object store that a model comes from does not answer.
    StoreUnavailable => "STORE_UNAVAILABLE", Unavailable;
    /// A version does not fit into the cache, or on its disk.
    CacheFull => "CACHE_FULL", ResourceExhausted;
    /// The archive asks for what a model does not need: files, other processes, memory that nobody checks.
    UnsafeModel => "UNSAFE_MODEL", FailedPrecondition;
    /// A version's files are not those that the caller or its `manifest.json` names.
    DigestMismatch => "DIGEST_MISMATCH", FailedPrecondition;
    /// A version lacks the `manifest.json`, or the signature, that `integrity.policy` asks for.
    NotSigned => "NOT_SIGNED", FailedPrecondition;
    /// No signature of a version's `manifest.json` is a trusted key's.
    SignatureInvalid => "SIGNATURE_INVALID", FailedPrecondition;
    /// An upload of a model that is not in the directory for uploads: its files are somebody else's.
    NotUploaded => "NOT_UPLOADED", FailedPrecondition;
    /// The disk that an upload is to be written to is full.
    DiskFull => "DISK_FULL", ResourceExhausted;
    /// It does not fit the memory budget, whatever else is unloaded.
    MemoryBudget => "MEMORY_BUDGET", ResourceExhausted;
    /// A newer change of the same model came in before this one was done.
    Superseded => "SUPERSEDED", Aborted;
    /// A version that was rolled out turned out to be bad: the live one goes on serving.
    RolledBack => "ROLLED_BACK", Aborted;
    /// No version of the model is being rolled out.
    NoRollout => "NO_ROLLOUT", FailedPrecondition;
    /// There is nothing to roll back to.
    NoPreviousVersion => "NO_PREVIOUS_VERSION", FailedPrecondition;
    /// A call that this server does not offer.
    Unimplemented => "UNIMPLEMENTED", Unimplemented;
    /// A bug in torchlane: the message has an id that the log has in full.
    Internal => "INTERNAL", Internal;
}

impl Reason {
    /// Failures of files: what is said of them names directories of this machine, which is for its log alone.
    const fn is_of_files(self) -> bool {
        matches!(
            self,
            Self::LoadFailed
                | Self::ForwardFailed
                | Self::StoreUnavailable
                | Self::CacheFull
                | Self::DiskFull
                | Self::UnsafeModel
                | Self::DigestMismatch
                | Self::NotSigned
                | Self::SignatureInvalid
                | Self::NotUploaded
                | Self::RolledBack
                | Self::Internal
        )
    }

    /// The HTTP status for the same failure.
    pub const fn http_status(self) -> u16 {
        match self {
            Self::MessageTooLarge => 413,
            // "Insufficient storage": more patience does not help.
            Self::CacheFull | Self::DiskFull => 507,
            _ => match self.code() {
                Code::InvalidArgument | Code::FailedPrecondition => 400,
                Code::PermissionDenied => 403,
                Code::NotFound => 404,
                Code::Aborted | Code::AlreadyExists => 409,
                Code::ResourceExhausted => 429,
                Code::Cancelled => 499,
                Code::Internal => 500,
                Code::Unimplemented => 501,
                Code::Unavailable => 503,
                Code::DeadlineExceeded => 504,
            },
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failure as the caller sees it. Small enough to pass around: the rarely used parts are boxed.
#[derive(Debug, Clone, PartialEq)]
pub struct Error {
    reason: Reason,
    detail: Box<Detail>,
}

#[derive(Debug, Clone, PartialEq, Default)]
struct Detail {
    message: Cow<'static, str>,
    /// With the directories that callers are not shown, where there are any.
    for_log: Option<String>,
    field: Option<String>,
    retry_after: Option<Duration>,
    more: Option<(&'static str, String)>,
}

/// Shorthand for results whose failure the caller sees.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A failure with its message: one line, what is wrong and what to do. Of a failure of files the caller's message has no
    /// directories, and [`Error::for_log`] has all of it.
    pub fn new(reason: Reason, message: impl Into<Cow<'static, str>>) -> Self {
        let text = clip(message.into());
        let told = if reason.is_of_files() { without_directories(&text) } else { None };
        let (message, for_log) = match told {
            Some(told) => (told.into(), Some(text.into_owned())),
            None => (text, None),
        };
        Self { reason, detail: Box::new(Detail { message, for_log, ..Detail::default() }) }
    }

    /// Says where it happened, before what the message says.
    #[must_use]
    pub fn within(mut self, place: impl fmt::Display) -> Self {
        self.detail.message = clip(format!("{place}: {}", self.detail.message).into());
        self.detail.for_log =
            self.detail.for_log.map(|text| clip(format!("{place}: {text}").into()).into_owned());
        self
    }

    /// Names no field: the one at fault is none of the request that is answered.
    #[must_use]
    pub fn without_field(mut self) -> Self {
        self.detail.field = None;
        self
    }

    /// Names the request field at fault, for google.rpc.BadRequest.
    #[must_use]
    pub fn with_field(mut self, field: impl Into<String>) -> Self {
        self.detail.field = Some(field.into());
        self
    }

    /// Says when trying again may help, for google.rpc.RetryInfo and `Retry-After`.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.detail.retry_after = Some(after);
        self
    }

    /// Adds a fact for programs, for the metadata of google.rpc.ErrorInfo.
    #[must_use]
    pub fn with_detail(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.detail.more = Some((key, value.into()));
        self
    }

    /// A fact for programs.
    pub fn detail(&self) -> Option<(&'static str, &str)> {
        self.detail.more.as_ref().map(|(key, value)| (*key, value.as_str()))
    }

    /// Why.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// One line for the caller, at most [`MAX_MESSAGE_BYTES`].
    pub fn message(&self) -> &str {
        &self.detail.message
    }

    /// The same for this machine's log.
    pub fn for_log(&self) -> &str {
        self.detail.for_log.as_deref().unwrap_or(&self.detail.message)
    }

    /// The request field at fault.
    pub fn field(&self) -> Option<&str> {
        self.detail.field.as_deref()
    }

    /// When trying again may help.
    pub fn retry_after(&self) -> Option<Duration> {
        self.detail.retry_after
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail.message)
    }
}

impl std::error::Error for Error {}

/// A text whose paths have lost the directories above the model's, so that they read as in its repository:
/// `digits/2/model.pt`. `None`: it has none.
fn without_directories(text: &str) -> Option<String> {
    let mut told = String::with_capacity(text.len());
    let mut rest = text;
    let mut is_changed = false;
    while let Some(slash) = rest.find('/') {
        // A path begins a word. What has a scheme is none: `s3://bucket`.
        let is_edge = |c: char| c.is_whitespace() || "'\"`([{=:,<".contains(c);
        let (before, _) = rest.split_at(slash);
        let at = before.char_indices().rfind(|(_, c)| is_edge(*c)).map_or(0, |(at, c)| at + c.len_utf8());
        let (before, path) = rest.split_at(at);
        told += before;
        let ends = path.find(|c: char| c.is_whitespace() || "'\"`)]},;>".contains(c)).unwrap_or(path.len());
        let (path, behind) = path.split_at(ends);
        let (path, colon) = path.strip_suffix(':').map_or((path, ""), |path| (path, ":"));
        let is_path = path.len() > 1 && !path.starts_with("//");
        let below = if is_path { below_repository(path) } else { path };
        told += below;
        told += colon;
        is_changed |= below != path;
        rest = behind;
    }
    told += rest;
    is_changed.then_some(told)
}

/// The last parts of a path: with the model's name where the last directory is a version's. Of one that begins with
/// neither `/` nor `.` only those of versions and descriptions are known to be paths.
fn below_repository(path: &str) -> &str {
    let mut slashes = path.trim_end_matches('/').rmatch_indices('/').map(|(at, _)| at + 1);
    let (file, version, model) = (slashes.next(), slashes.next(), slashes.next());
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_absolute = path.starts_with(['/', '.']);
    let whole = (!is_absolute).then_some(0);
    let directory =
        version.or(whole).zip(file).and_then(|(begin, end)| path.get(begin..end.saturating_sub(1)));
    let of_version = directory.is_some_and(is_number) && version.is_some();
    let described =
        file.and_then(|at| path.get(at..)).is_some_and(|file| ["model.toml", "config.pbtxt"].contains(&file));
    let begin = if of_version {
        model.or(whole).or(version)
    } else if described {
        version.or(whole).or(file)
    } else if is_absolute {
        file
    } else {
        whole
    };
    begin.and_then(|at| path.get(at..)).unwrap_or(path)
}

/// The beginning of something that a caller wrote, for a message or a log line: at most `most` characters. What a terminal would
/// obey, or nobody would see, is escaped; quotes and backslashes are not, so that what is shown twice stays as it is.
pub fn shown(text: &str, most: usize) -> Cow<'_, str> {
    let cut = beginning(text, most);
    if cut.chars().all(is_seen) {
        return cut.into();
    }
    let mut seen = String::with_capacity(cut.len());
    let mut length = 0;
    for letter in cut.chars() {
        let letter = if is_seen(letter) { letter.to_string() } else { escaped(letter) };
        length += letter.chars().count();
        if length > most {
            break;
        }
        seen += &letter;
    }
    seen.into()
}

/// The beginning of a text as it is, for where each line is escaped anyway: at most `most` characters.
pub fn beginning(text: &str, most: usize) -> &str {
    text.char_indices().nth(most).and_then(|(end, _)| text.get(..end)).unwrap_or(text)
}

fn escaped(letter: char) -> String {
    let std = letter.escape_debug();
    // One of those that only we count as not seen.
    if std.len() == 1 { letter.escape_unicode().to_string() } else { std.to_string() }
}

/// Whether a letter shows, and as itself.
fn is_seen(letter: char) -> bool {
    match letter {
        ' '..='~' => true,
        // Counted as printable, and blank: joiners, fillers, selectors of variations.
        '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}' => false,
        '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}' | '\u{e0100}'..='\u{e01ef}' => false,
        // An accent by itself would be escaped; after a letter it is not.
        _ => letter.escape_debug().len() == 1 || format!("a{letter}").escape_debug().count() == 2,
    }
}

/// Cuts a message to what may go on the wire, at a character boundary, and to its first line: libtorch's go on with a stack trace.
/// What a caller wrote and may have lines goes through [`shown`] before. What is not seen is escaped here too.
pub fn clip(message: Cow<'static, str>) -> Cow<'static, str> {
    if message.len() <= MAX_MESSAGE_BYTES && message.chars().all(is_seen) {
        return message;
    }
    let line = shown(message.lines().next().unwrap_or_default(), 2 * MAX_MESSAGE_BYTES);
    let mut end = line.len().min(MAX_MESSAGE_BYTES - "...".len());
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    let cut = line.get(..end).unwrap_or_default();
    if end < line.len() { format!("{cut}...").into() } else { cut.to_owned().into() }
}

#[cfg(test)]
mod tests;
