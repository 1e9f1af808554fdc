//! One line on standard error when a signal ends the process during a pass: which model, version and signal it was.
//!
//! An operator that divides by zero or reads outside its memory ends the process for all models, and a core dump does
//! not name the model. So each thread writes down what it runs ([`Task::begin`]), in memory that a signal handler may
//! read: no locks, no allocation, no pointers to what may be freed. After the line the default action goes on: exit
//! status and core dump are as they would be.
//!
//! **Not done.** SIGKILL, which the kernel sends when memory runs out, cannot be caught.

#![allow(
    unsafe_code,
    reason = "signal handlers are installed and write by system calls; each block says why it is sound"
)]

use std::{
    cell::{Cell, UnsafeCell},
    ffi::c_int,
    fmt::Display,
    mem::MaybeUninit,
    ptr,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering},
};

/// The signals that a fault in native code ends a process with.
const SIGNALS: [(c_int, &[u8]); 5] = [
    (libc::SIGSEGV, b"SIGSEGV (invalid memory access)"),
    (libc::SIGFPE, b"SIGFPE (integer division by zero or overflow)"),
    (libc::SIGBUS, b"SIGBUS (memory that is not there, such as a file that was cut)"),
    (libc::SIGILL, b"SIGILL (an instruction that the processor does not know)"),
    (libc::SIGABRT, b"SIGABRT (native code gave up)"),
];

/// Threads whose tasks are named; those beyond run without.
const SLOTS: usize = 256;
/// Bytes of a task's text, as words; what is longer is cut.
const WORDS: usize = 32;
/// Most tasks that a line names where the signal comes on a thread without one.
const NAMED: usize = 4;

/// What a thread runs. Written by that thread only.
struct Slot {
    taken: AtomicBool,
    /// Bytes of the text; 0 while nothing runs.
    length: AtomicUsize,
    words: [AtomicU64; WORDS],
}

static TASKS: [Slot; SLOTS] = [const {
    Slot {
        taken: AtomicBool::new(false),
        length: AtomicUsize::new(0),
        words: [const { AtomicU64::new(0) }; WORDS],
    }
}; SLOTS];

/// Bytes of a thread's stack for signals. What Rust gives a thread hardly holds the registers of a processor with wide ones.
const STACK: usize = 32 * 1024;

#[repr(align(16))]
struct Stack(UnsafeCell<[u8; STACK]>);

// SAFETY: only the kernel writes to it, for the one thread that holds the slot of the same place.
unsafe impl Sync for Stack {}

/// By place in [`TASKS`]. A page of it takes memory once a handler runs on it.
static STACKS: [Stack; SLOTS] = [const { Stack(UnsafeCell::new([0; STACK])) }; SLOTS];

/// Whether lines are JSON.
static JSON: AtomicBool = AtomicBool::new(false);

/// What each signal did before, restored once its line is written.
static BEFORE: [AtomicPtr<libc::sigaction>; SIGNALS.len()] =
    [const { AtomicPtr::new(ptr::null_mut()) }; SIGNALS.len()];

thread_local! {
    /// Place in [`TASKS`]; without a destructor, so that a handler may read it at any time.
    static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
    static RELEASE: Release = const { Release };
}

/// Gives the slot back at the thread's end.
struct Release;

impl Drop for Release {
    fn drop(&mut self) {
        if let Some(slot) = TASKS.get(MINE.replace(usize::MAX)) {
            run_handlers_on(None);
            slot.length.store(0, Ordering::Relaxed);
            slot.taken.store(false, Ordering::Release);
        }
    }
}

/// Sets the stack on which this thread runs signal handlers, or none.
fn run_handlers_on(stack: Option<&'static Stack>) {
    let (ss_sp, ss_flags) = match stack {
        Some(stack) => (stack.0.get().cast(), 0),
        None => (ptr::null_mut(), libc::SS_DISABLE),
    };
    let stack = libc::stack_t { ss_sp, ss_flags, ss_size: STACK };
    // SAFETY: the memory is static, of this size, and no other thread uses it. If the call fails, the thread keeps the
    // stack that it has.
    unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) };
}

/// What a thread may run, as a crash line names it: `a pass of model 'photo' version 3`.
#[derive(Debug, Clone)]
pub struct Task {
    length: usize,
    words: Box<[u64; WORDS]>,
}

impl Task {
    /// A task of this text.
    pub fn new(text: impl Display) -> Self {
        let mut words = Box::new([0; WORDS]);
        let text: String = text.to_string().chars().filter(|letter| !letter.is_control()).collect();
        // Quotes and backslashes would end the text of a line in JSON.
        let text = text.replace(['"', '\\'], "'");
        let ends = text.char_indices().map(|(at, letter)| at + letter.len_utf8());
        let cut = ends.take_while(|end| *end <= WORDS * 8).last().unwrap_or(0);
        for (word, bytes) in words.iter_mut().zip(text.as_bytes().get(..cut).unwrap_or_default().chunks(8)) {
            let mut whole = [0; 8];
            for (to, from) in whole.iter_mut().zip(bytes) {
                *to = *from;
            }
            *word = u64::from_ne_bytes(whole);
        }
        Self { length: cut, words }
    }

    /// Names this task as what the thread runs until the result is dropped. Within another one, the outer name stays.
    pub fn begin(&self) -> Running {
        let mut at = MINE.get();
        if at == usize::MAX {
            let free = |slot: &Slot| !slot.taken.swap(true, Ordering::Acquire);
            let Some(found) = TASKS.iter().position(free) else { return Running(None) };
            RELEASE.with(|_registered| MINE.set(found));
            run_handlers_on(STACKS.get(found));
            at = found;
        }
        let Some(slot) = TASKS.get(at) else { return Running(None) };
        if slot.length.load(Ordering::Relaxed) > 0 {
            return Running(None);
        }
        for (to, from) in slot.words.iter().zip(self.words.iter()).take(self.length.div_ceil(8)) {
            to.store(*from, Ordering::Relaxed);
        }
        slot.length.store(self.length, Ordering::Release);
        Running(Some(slot))
    }
}

/// What this thread runs.
pub fn current() -> Option<String> {
    let slot = TASKS.get(MINE.get())?;
    let length = slot.length.load(Ordering::Acquire).min(WORDS * 8);
    let bytes = slot.words.iter().flat_map(|word| word.load(Ordering::Relaxed).to_ne_bytes());
    let text = String::from_utf8_lossy(&bytes.take(length).collect::<Vec<_>>()).into_owned();
    (length > 0).then_some(text)
}

/// While it lives, its task is what the thread runs.
#[must_use]
pub struct Running(Option<&'static Slot>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            slot.length.store(0, Ordering::Relaxed);
        }
    }
}

/// From now on a fatal signal writes a line, as JSON if the log is. What else such a signal does stays. Once for the process.
pub fn report_crashes(json: bool) {
    static ONCE: std::sync::Once = std::sync::Once::new();
    JSON.store(json, Ordering::Relaxed);
    ONCE.call_once(|| {
        for ((signal, _), before) in SIGNALS.iter().zip(&BEFORE) {
            let mut action = MaybeUninit::<libc::sigaction>::zeroed();
            let mut old = Box::new(MaybeUninit::<libc::sigaction>::zeroed());
            // SAFETY: a zeroed `sigaction` is a valid one, filled in below; the handler has the signature that SA_SIGINFO
            // asks for and calls only what POSIX allows in one. On the stack for signals, since the thread's own may be
            // what ran out. `old` is written by the call and then never freed, since the handler reads it.
            unsafe {
                let action = action.assume_init_mut();
                action.sa_sigaction = on_signal as *const () as usize;
                action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigemptyset(&raw mut action.sa_mask);
                if libc::sigaction(*signal, action, old.as_mut_ptr()) == 0 {
                    before.store(Box::into_raw(old).cast(), Ordering::Release);
                }
            }
        }
    });
}

extern "C" fn on_signal(signal: c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let mut line = Line { bytes: [0; 2048], length: 0 };
    line.describe(signal);
    let before = SIGNALS.iter().zip(&BEFORE).find(|((known, _), _)| *known == signal);
    let before = before.map_or(ptr::null_mut(), |(_, before)| before.load(Ordering::Acquire));
    // SAFETY: write, sigaction and raise are async-signal-safe. The buffer is this function's own. `before` is null, for
    // the default action, or what `report_crashes` was given and never frees. `info` is the kernel's.
    unsafe {
        let _nowhere_to_say_so = libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.length);
        let mut default = MaybeUninit::<libc::sigaction>::zeroed();
        // A fault happens again as soon as this returns. What another process or `abort` sent would not.
        let sent = info.is_null() || (*info).si_code <= 0;
        let action = if before.is_null() || sent { default.as_mut_ptr() } else { before };
        libc::sigaction(signal, action, ptr::null_mut());
        if sent {
            libc::raise(signal);
        }
    }
}

/// A line that is put together without allocation.
struct Line {
    bytes: [u8; 2048],
    length: usize,
}

impl Line {
    fn push(&mut self, text: &[u8]) {
        let room = self.bytes.get_mut(self.length..).unwrap_or_default();
        for (to, from) in room.iter_mut().zip(text) {
            *to = *from;
        }
        self.length = self.bytes.len().min(self.length + text.len());
    }

    fn describe(&mut self, signal: c_int) {
        let json = JSON.load(Ordering::Relaxed);
        self.push(if json {
            br#"{"level":"ERROR","target":"torchlane::crash","message":""#
        } else {
            b"ERROR torchlane::crash: "
        });
        let name =
            SIGNALS.iter().find(|(known, _)| *known == signal).map_or(&b"a signal"[..], |(_, name)| name);
        self.push(name);
        self.push(b" ends the server");
        match TASKS.get(MINE.get()).filter(|slot| slot.length.load(Ordering::Acquire) > 0) {
            Some(slot) => {
                self.push(b" during ");
                self.task(slot);
            }
            None => {
                self.push(b" on a thread that runs no model");
                let running = TASKS.iter().filter(|slot| slot.length.load(Ordering::Acquire) > 0);
                for (index, slot) in running.take(NAMED).enumerate() {
                    self.push(if index == 0 { b"; on others, " } else { b", " });
                    self.task(slot);
                }
            }
        }
        self.push(if json { b"\"}\n" } else { b"\n" });
    }

    fn task(&mut self, slot: &Slot) {
        let mut left = slot.length.load(Ordering::Acquire).min(WORDS * 8);
        for word in &slot.words {
            let bytes = word.load(Ordering::Relaxed).to_ne_bytes();
            self.push(bytes.get(..left.min(8)).unwrap_or_default());
            left = left.saturating_sub(8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described(signal: c_int) -> String {
        let mut line = Line { bytes: [0; 2048], length: 0 };
        line.describe(signal);
        String::from_utf8(line.bytes[..line.length].to_vec()).unwrap()
    }

    #[test]
    fn a_line_names_what_its_own_thread_runs_and_the_outer_task_stays() {
        let task = Task::new("a pass of model 'photo' version 3");
        {
            let _outer = Task::new("the load of model 'photo' version 4").begin();
            let _inner = task.begin();
            assert!(described(libc::SIGSEGV).contains(" during the load of model 'photo' version 4\n"));
        }
        let running = task.begin();
        assert_eq!(
            described(libc::SIGFPE),
            "ERROR torchlane::crash: SIGFPE (integer division by zero or overflow) ends the server during a pass of \
             model 'photo' version 3\n"
        );
        let other = std::thread::spawn(|| described(libc::SIGBUS)).join().unwrap();
        assert!(
            other.contains("on a thread that runs no model; on others, ")
                && other.contains("'photo' version 3"),
            "{other}"
        );
        drop(running);
        assert!(described(libc::SIGFPE).contains("on a thread that runs no model"));
    }

    #[test]
    fn threads_that_end_give_their_slots_back_and_long_texts_are_cut() {
        for _ in 0..3 * SLOTS {
            std::thread::spawn(|| drop(Task::new("x").begin())).join().unwrap();
        }
        let _running = Task::new("é\"\n".repeat(500)).begin();
        let line = described(libc::SIGILL);
        assert!(line.contains("during é'é'") && line.len() < WORDS * 8 + 200, "{line}");
    }
}
