//! The file that every change of a model is appended to: one JSON object a line, written by a thread of its own and never
//! rewritten. The file is opened for each line, so it may be moved away at any time. Where it is no file (`/dev/stdout`, a
//! pipe) lines are written and nothing is read.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::Path,
    sync::mpsc,
    thread::JoinHandle,
    time::Duration,
};

use super::ChangeRecord;
use crate::{
    error::beginning,
    tasks::{Need, Tasks},
    threads,
};

/// So much of the end of the file is read at the start.
const TAIL_BYTES: u64 = 1 << 20;

/// Lines that may wait for a disk that does not answer. Those beyond go to the log alone.
const WAITING: usize = 4096;

/// Time for the last lines to be written.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Appends lines.
#[derive(Debug)]
pub(super) struct Writer {
    lines: Option<mpsc::SyncSender<String>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread. The file is made if it is not there. Gives back the records at its end, at most `most`.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub(super) fn start(
        path: &Path,
        most: usize,
        tasks: &Tasks,
    ) -> io::Result<(Self, VecDeque<ChangeRecord>)> {
        let file = open(path)?;
        let last = if file.metadata()?.is_file() { tail(&file, most)? } else { VecDeque::new() };
        let (lines, queue) = mpsc::sync_channel::<String>(WAITING);
        let (path, tasks) = (path.to_owned(), tasks.clone());
        let thread = std::thread::Builder::new().name("audit".to_owned()).spawn(move || {
            tasks.run_on_thread("audit", Need::Useful, |_| write_all(&path, &queue));
        })?;
        Ok((Self { lines: Some(lines), thread: Some(thread) }, last))
    }

    /// Appends a line, without waiting for it.
    pub(super) fn write(&self, line: String) {
        let Some(lines) = &self.lines else { return };
        if let Err(mpsc::TrySendError::Full(line) | mpsc::TrySendError::Disconnected(line)) =
            lines.try_send(line)
        {
            not_written(&line);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.lines = None;
        if let Some(thread) = self.thread.take()
            && !threads::join(vec![thread], LAST_LINES)
        {
            tracing::warn!("the audit log could not be written to its end");
        }
    }
}

/// Writes lines until no more can come.
fn write_all(path: &Path, queue: &mpsc::Receiver<String>) {
    let mut failing = false;
    while let Ok(line) = queue.recv() {
        match append(path, &line) {
            Ok(()) => failing = false,
            Err(error) => {
                if !failing {
                    tracing::error!(%error, path = %path.display(), "cannot write the audit log: what follows is in this log alone");
                }
                failing = true;
                not_written(&line);
            }
        }
    }
}

fn not_written(line: &str) {
    tracing::warn!(target: "torchlane::models", record = beginning(line, 2048), "not in the audit log");
}

/// One write a line: lines of several servers do not mix.
fn append(path: &Path, line: &str) -> io::Result<()> {
    let mut file = open(path)?;
    let is_file = file.metadata()?.is_file();
    // A write that a full disk cut short leaves half a line, which the next one must not be glued to.
    let begin = if is_file && ends_within_a_line(&file)? { "\n" } else { "" };
    file.write_all(format!("{begin}{line}\n").as_bytes())?;
    if is_file { file.sync_data() } else { Ok(()) }
}

fn open(path: &Path) -> io::Result<File> {
    // What is no file, such as a pipe, is not read.
    let reads = std::fs::metadata(path).map_or(true, |meta| meta.is_file());
    OpenOptions::new().create(true).read(reads).append(true).open(path)
}

fn ends_within_a_line(mut file: &File) -> io::Result<bool> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

/// The changes at the end of the file. Lines that cannot be read, such as half a line of a machine that went down, are
/// skipped.
fn tail(mut file: &File, most: usize) -> io::Result<VecDeque<ChangeRecord>> {
    let size = file.metadata()?.len();
    let from = size.saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    let lines = bytes.split(|byte| *byte == b'\n').skip(usize::from(from > 0));
    let mut records: VecDeque<_> = lines.filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let over = records.len().saturating_sub(most);
    records.drain(..over);
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::TaskMetrics;

    #[tokio::test]
    async fn half_a_line_spoils_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        append(&path, "one").unwrap();
        // A full disk cuts a line short, at any time.
        let mut file = open(&path).unwrap();
        file.write_all(b"hal").unwrap();
        append(&path, "two").unwrap();
        append(&path, "three").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\nhal\ntwo\nthree\n");
    }

    #[tokio::test]
    async fn lines_go_to_a_pipe() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let from = path.clone();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            let mut pipe = File::open(from).unwrap();
            // Each line is a writer of its own: between two of them the pipe looks ended.
            while !text.ends_with("two\n") {
                pipe.read_to_string(&mut text).unwrap();
            }
            text
        });
        let tasks = Tasks::new(TaskMetrics::default(), tokio::runtime::Handle::current());
        let (writer, last) = Writer::start(&path, 10, &tasks).unwrap();
        assert!(last.is_empty());
        writer.write("one".to_owned());
        writer.write("two".to_owned());
        assert_eq!(reader.join().unwrap(), "one\ntwo\n");
    }

    #[tokio::test]
    async fn a_disk_that_does_not_answer_costs_lines_and_no_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pipe");
        let (lines, queue) = mpsc::sync_channel::<String>(WAITING);
        let writer = Writer { lines: Some(lines), thread: None };
        (0..2 * WAITING).for_each(|i| writer.write(i.to_string()));
        assert_eq!(queue.try_iter().count(), WAITING);
        drop(writer);
        assert!(!path.exists());
    }
}
