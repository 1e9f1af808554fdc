//! Rules about the code itself.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

fn all_sources() -> Vec<PathBuf> {
    let mut files = Vec::new();
    ["src", "crates", "proto"].iter().for_each(|root| sources(Path::new(root), &mut files));
    files.sort();
    files
}

fn naming(word: &str) -> Vec<String> {
    let files = all_sources();
    let names = |path: &PathBuf| {
        // Code only: pages and comments may speak of anything.
        fs::read_to_string(path).unwrap().lines().any(|line| {
            let is_word = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            !line.trim_start().starts_with("//") && line.match_indices(word).any(|(at, _)| is_word(at))
        })
    };
    let mut named: Vec<_> =
        files.iter().filter(|path| names(path)).map(|path| path.display().to_string()).collect();
    named.sort();
    named
}

#[test]
fn only_the_backend_names_tch() {
    assert_eq!(naming("tch::"), ["crates/torch/src/ffi.rs", "crates/torch/src/lib.rs"]);
}

#[test]
fn only_the_registry_names_arc_swap() {
    let files = naming("arc_swap");
    assert!(
        !files.is_empty() && files.iter().all(|file| file.starts_with("crates/engine/src/registry/")),
        "{files:?}"
    );
}

#[test]
fn only_the_torch_backend_is_unsafe() {
    // Signal handlers, which no safe crate installs for faults.
    assert_eq!(
        naming("unsafe {"),
        ["crates/engine/src/backend/crash.rs", "crates/torch/src/ffi.rs", "crates/torch/src/lib.rs"]
    );
}

#[test]
fn files_stay_short_enough_to_read() {
    for path in all_sources() {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= 500, "{} has {lines} lines", path.display());
    }
}

#[test]
fn the_architecture_page_names_every_module() {
    let page = fs::read_to_string("docs/architecture.md").unwrap();
    for (root, shown) in [("src", ""), ("crates", "crates/")] {
        for entry in fs::read_dir(root).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                let name = format!("{shown}{}/", path.file_name().unwrap().to_str().unwrap());
                assert!(page.contains(&format!("`{name}`")), "docs/architecture.md does not name {name}");
            }
        }
    }
}

/// The rooms of the server, as `src/lib.rs` orders them.
fn rooms() -> Vec<String> {
    let lib = fs::read_to_string("src/lib.rs").unwrap();
    let line = lib.lines().skip_while(|line| !line.contains("names only those after it")).nth(1).unwrap();
    line.trim_start_matches("//!")
        .split(',')
        .map(|room| room.trim().trim_end_matches('.').to_owned())
        .collect()
}

/// What a file names of this package, tests apart: `crate::room`, or a line of a `use crate::{`.
fn named(text: &str) -> Vec<&str> {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let mut heads: Vec<&str> = code.split("crate::").skip(1).collect();
    for group in code.split("use crate::{\n").skip(1) {
        let lines = group.split("\n};").next().unwrap().lines();
        heads
            .extend(lines.filter_map(|line| line.strip_prefix("    ").filter(|line| !line.starts_with(' '))));
    }
    for line in code.split("use crate::{").skip(1).filter_map(|rest| rest.lines().next()?.strip_suffix("};"))
    {
        heads.extend(line.split(", "));
    }
    let word = |text: &&str| text.find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap_or(text.len());
    heads.iter().map(|head| &head[..word(head)]).collect()
}

#[test]
fn arrows_point_down() {
    let rooms = rooms();
    assert_eq!(rooms.first().map(String::as_str), Some("cli"), "{rooms:?}");
    let at = |room: &str| rooms.iter().position(|known| known == room);
    let mut files = Vec::new();
    sources(Path::new("src"), &mut files);
    let mut arrows = 0;
    for path in files {
        let room = path.iter().nth(1).unwrap().to_str().unwrap().trim_end_matches(".rs");
        if matches!(room, "lib" | "main") || path.iter().any(|part| part == "tests" || part == "tests.rs") {
            continue;
        }
        let from = at(room).unwrap_or_else(|| panic!("src/lib.rs does not say where {room} stands"));
        for to in named(&fs::read_to_string(&path).unwrap()) {
            let Some(there) = at(to) else { continue };
            assert!(there >= from, "{} names {to}, which stands above {room}", path.display());
            arrows += usize::from(there > from);
        }
    }
    assert!(arrows > 50, "{arrows}");
}

/// People filter the log by these: they must not move with the code.
#[test]
fn lines_of_crates_say_their_target() {
    for path in
        all_sources().iter().filter(|path| path.starts_with("crates") && !path.starts_with("crates/client"))
    {
        let text = fs::read_to_string(path).unwrap();
        for level in ["error", "warn", "info", "debug"] {
            for after in text.split(&format!("tracing::{level}!(")).skip(1) {
                let said = after.trim_start().starts_with("target: \"torchlane::");
                assert!(said, "{}: a line without a target", path.display());
            }
        }
    }
}
