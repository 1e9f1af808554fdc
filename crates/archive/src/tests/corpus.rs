//! The code of real exports, which `tools/operators/corpus.py` writes into a folder that TORCHLANE_CODE names.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::super::code::Code;
use super::super::safety::Severity;

fn files(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files(&path, into) } else { into.push(path) }
    }
}

/// The folders that hold the code of one archive each: `family/model/way`.
fn archives(root: &Path) -> Vec<PathBuf> {
    let below = |folders: Vec<PathBuf>| -> Vec<PathBuf> {
        folders
            .iter()
            .flat_map(|folder| fs::read_dir(folder).unwrap())
            .map(|entry| entry.unwrap().path())
            .collect()
    };
    below(below(below(vec![root.to_owned()])))
}

#[test]
#[ignore = "needs a folder that corpus.py has filled"]
fn exports_have_no_findings_but_notes() {
    let root = PathBuf::from(std::env::var("TORCHLANE_CODE").unwrap());
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let archives = archives(&root);
    for archive in &archives {
        let (mut code, mut paths) = (Code::default(), Vec::new());
        files(archive, &mut paths);
        for path in paths {
            let module = path.strip_prefix(archive).unwrap().with_extension("");
            code.read(&module.display().to_string().replace('/', "."), &fs::read(&path).unwrap());
        }
        for finding in code.take_findings().into_list() {
            let kind = if finding.severity == Severity::Note { "note" } else { "REFUSED" };
            let name = archive.strip_prefix(&root).unwrap().display();
            let what = format!("{kind} {} ({:?})", finding.what, finding.danger);
            found.entry(what).or_default().push(format!("{name} {}", finding.place));
        }
    }
    for (what, places) in &found {
        println!("{what}: {} archives, first {}", places.len(), places[0]);
    }
    println!("{} archives", archives.len());
    assert!(!found.keys().any(|what| what.starts_with("REFUSED")));
}
