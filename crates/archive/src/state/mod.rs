//! Whether a model keeps something between calls, by following its data from `forward`.
//!
//! | the code | state |
//! |---|---|
//! | assigns an attribute of a module or of what a module holds | yes, unless the first call sets it to a constant for good |
//! | writes in place (`copy_`, `add_`, `out=`, index assignment, `batch_norm` in training) to what came from `self` or is a constant of the code, also through views, aliases, containers, arguments and results of functions, branches and loops | yes |
//! | changes a list or a dict that came from `self` | yes |
//! | does the same to what the call made for itself, or was given | no |
//! | cannot be followed, or does something unknown | yes, and the reason says what |
//!
//! **Guarantees.** No `forward` that changes what a later call can see is called stateless, as far as its text can tell. Time
//! and memory are bounded; where the bounds end, the answer is yes.
//!
//! **Not done.** The state of random generators, and what an operator of another library keeps to itself.

mod ast;
mod objects;
mod operators;
mod parse;
mod run;
mod value;

use super::info::Seen;
use super::pickle::Pickle;
use ast::Program;
use objects::Objects;
use run::Run;

/// The stack that following nested code needs at most.
const STACK_BYTES: usize = 64 << 20;

/// What was found; the default is a model that keeps nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Flow {
    /// Where the model keeps something.
    pub(super) state: Option<Seen>,
    /// An operator that is in a mode for training.
    pub(super) training: Option<Seen>,
}

/// Follows `forward` of the module at the root of `data`. `files` are paths of modules and their text.
pub(super) fn follow(files: &[(String, Vec<u8>)], data: &Pickle<'_>) -> Flow {
    let unknown = |what: &str, place: String| Flow {
        state: Some(Seen { what: format!("torchlane cannot tell: {what}"), place }),
        training: None,
    };
    let on_a_large_stack = |work: &(dyn Fn() -> Flow + Sync)| {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("inspect".to_owned()).stack_size(STACK_BYTES);
            thread.spawn_scoped(scope, work).ok().and_then(|thread| thread.join().ok())
        })
    };
    let flow = on_a_large_stack(&|| {
        let mut program = Program::default();
        for (module, text) in files {
            let place = |line: usize| format!("code/{}.py:{line}", module.replace('.', "/"));
            let Ok(text) = std::str::from_utf8(text) else {
                return unknown("bytes that are not UTF-8", place(1));
            };
            if let Err((line, wrong)) = parse::read(&mut program, module, text) {
                return unknown(wrong, place(line));
            }
        }
        let opaque = |class: &str| {
            program.classes.get(class).is_some_and(|class| class.methods.contains_key("__setstate__"))
        };
        let mut run = Run::new(&program, Objects::new(data, opaque));
        run.all(data.root());
        Flow { state: run.found, training: run.training }
    });
    flow.unwrap_or_else(|| unknown("there is no memory to follow the code", "code".to_owned()))
}
