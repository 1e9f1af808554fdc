//! A listing for web servers, which have none: `index.json` beside the models names what there is.
//!
//! ```json
//! {"files": [{"path": "digits/2/model.pt", "size": 12345, "sha256": "ab01..."}]}
//! ```
//!
//! A WebDAV server is listed without one.

use object_store::path::Path as Location;
use serde::Deserialize;

use super::layout::Listed;

/// The index's name below the repository's URL.
pub(super) const INDEX: &str = "index.json";

/// Longest index that is read, in bytes: some hundred thousand files.
pub(super) const MAX_INDEX_BYTES: u64 = 64 << 20;

#[derive(Deserialize)]
struct Index {
    files: Vec<IndexFile>,
}

#[derive(Deserialize)]
struct IndexFile {
    path: String,
    size: u64,
    sha256: String,
}

/// The files of an index. `odd` gets the paths that cannot be a file below it: these are left out.
///
/// # Errors
/// What is wrong with it, in one line.
pub(super) fn parse(text: &[u8], odd: &mut (dyn FnMut(&str) + Send)) -> Result<Vec<Listed>, String> {
    let index: Index = serde_json::from_slice(text).map_err(|error| {
        let error = torchlane_model::plain::error(&error.to_string(), torchlane_model::plain::Form::Json);
        format!("{INDEX} is not an index of files with path, size and sha256: {error}")
    })?;
    index
        .files
        .into_iter()
        .filter(|IndexFile { path, .. }| {
            let fits = path.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
                && Location::parse(path).is_ok();
            if !fits {
                odd(path);
            }
            fits
        })
        .map(|IndexFile { path, size, sha256 }| {
            let is_digest = sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit());
            if !is_digest {
                return Err(format!(
                    "{INDEX}: the sha256 of '{}' is not 64 hexadecimal digits",
                    shown(&path)
                ));
            }
            Ok(Listed { path, size, tag: None, modified: 0, sha256: Some(sha256.to_ascii_lowercase()) })
        })
        .collect()
}

fn shown(path: &str) -> String {
    torchlane_model::error::shown(path, 64).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_names_files_by_digest() {
        let digest = "AB".repeat(32);
        let text = |path: &str, digest: &str| {
            format!(r#"{{"files":[{{"path":"{path}","size":3,"sha256":"{digest}"}}]}}"#)
        };
        let mut odd = Vec::new();
        let mut parse = |text: &[u8]| parse(text, &mut |path| odd.push(path.to_owned()));
        let files = parse(text("m/1/model.pt", &digest).as_bytes()).unwrap();
        assert_eq!(files[0].sha256.as_deref(), Some("ab".repeat(32).as_str()));
        for path in ["../x", "/m", "a//b", "m/1/.hidden", "m/\\u0001"] {
            assert_eq!(parse(text(path, &digest).as_bytes()), Ok(Vec::new()), "{path} costs only itself");
        }
        assert!(parse(text("m.pt", "ab").as_bytes()).is_err());
        assert!(parse(b"<html>").unwrap_err().contains("index.json"));
        assert_eq!(odd.len(), 5);
    }
}
