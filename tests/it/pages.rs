//! Pages of the documentation that must keep up with the code.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use torchlane::error::{Code, Reason};

fn page(name: &str) -> String {
    fs::read_to_string(Path::new("docs").join(name)).unwrap()
}

/// The status of gRPC as its specification writes it.
fn status(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(letter.to_uppercase());
    }
    name
}

#[test]
fn every_reason_is_explained_once_with_its_codes() {
    let page = page("reference/errors.md");
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    for reason in Reason::ALL {
        let named: Vec<_> = rows.iter().filter(|row| row[0] == format!("`{reason}`")).collect();
        let [row] = named.as_slice() else { panic!("errors.md has {} rows of {reason}", named.len()) };
        assert_eq!(row[1], status(reason.code()), "{reason}");
        assert_eq!(row[2], reason.http_status().to_string(), "{reason}");
        assert!(row[3].len() > 15 && row[4].len() > 5, "{reason}: what happened, and what to do");
    }
    assert_eq!(rows.len(), Reason::ALL.len(), "errors.md has reasons that the code does not");
}

#[test]
fn every_alert_has_its_line_in_the_runbook() {
    let (rules, runbook) =
        (fs::read_to_string("ops/prometheus/rules.yaml").unwrap(), page("guides/runbook.md"));
    let alerts: BTreeSet<_> =
        rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).map(str::to_owned).collect();
    assert!(alerts.len() > 10, "{alerts:?}");
    let explained: BTreeSet<_> = runbook
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .filter(|name| name.starts_with("Torchlane"))
        .map(str::to_owned)
        .collect();
    assert_eq!(explained, alerts);
}

#[test]
fn every_page_is_in_the_index_and_every_link_leads_somewhere() {
    let index = page("README.md");
    let mut pages: Vec<_> = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
        .map(|name| (PathBuf::from(name), fs::read_to_string(name).unwrap()))
        .into();
    for folder in ["", "guides/", "reference/"] {
        for entry in fs::read_dir(format!("docs/{folder}")).unwrap() {
            let path = entry.unwrap().path();
            let name = format!("{folder}{}", path.file_name().unwrap().to_str().unwrap());
            if name.ends_with(".md") {
                assert!(
                    name == "README.md" || index.contains(&format!("({name})")),
                    "docs/README.md lacks {name}"
                );
                pages.push((path.clone(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    for (path, text) in &pages {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            let target = path.parent().unwrap_or(Path::new("")).join(file);
            assert!(target.exists(), "{}: {link} leads nowhere", path.display());
            if let (Some(anchor), true) = (link.split('#').nth(1), file.ends_with(".md")) {
                let titles = fs::read_to_string(&target).unwrap();
                let known = titles.lines().filter(|line| line.starts_with('#')).any(|line| {
                    let title = line.trim_start_matches('#').trim().to_lowercase();
                    let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
                    kept.collect::<String>().replace(' ', "-") == anchor
                });
                assert!(known, "{}: {link} has no such title", path.display());
            }
        }
    }
}

#[test]
fn the_base_for_kubernetes_is_ready_without_models_and_may_write_its_cache() {
    let settings = fs::read_to_string("k8s/base/torchlane.toml").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("torchlane.toml");
    fs::write(&path, &settings).unwrap();
    let settings = torchlane::config::load(Some(&path), &[]).unwrap().settings;
    let deployment = fs::read_to_string("k8s/base/deployment.yaml").unwrap();
    let has = |line: &str| deployment.lines().any(|l| l.trim() == line);
    assert!(settings.allow_empty, "its volume of models is empty");
    let cache = settings.cache.directory;
    assert!(has(&format!("mountPath: {}", cache.display())), "the file system is read-only but for volumes");
    for repository in &settings.repositories {
        assert!(has(&format!("mountPath: {}", repository.display())));
    }
}
