//! A listing for web servers, which have none: `index.json` beside the models names what there is.
//!
//! ```json
//! {"files": [{"path": "digits/2/model.pt", "size": 12345, "sha256": "ab01..."}]}
//! ```
//!
//! A WebDAV server is listed without one.

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

/// The files of an index.
///
/// # Errors
/// What is wrong with it, in one line.
pub(super) fn parse(text: &[u8]) -> Result<Vec<Listed>, String> {
    let index: Index = serde_json::from_slice(text).map_err(|error| {
        let error = crate::plain::error(&error.to_string(), crate::plain::Form::Json);
        format!("{INDEX} is not an index of files with path, size and sha256: {error}")
    })?;
    index
        .files
        .into_iter()
        .map(|IndexFile { path, size, sha256 }| {
            let is_digest = sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit());
            if !is_digest {
                return Err(format!(
                    "{INDEX}: the sha256 of '{}' is not 64 hexadecimal digits",
                    shown(&path)
                ));
            }
            if !path.split('/').all(|part| !part.is_empty() && !part.starts_with('.')) {
                return Err(format!("{INDEX}: '{}' is not a path below it", shown(&path)));
            }
            Ok(Listed { path, size, tag: None, modified: 0, sha256: Some(sha256.to_ascii_lowercase()) })
        })
        .collect()
}

fn shown(path: &str) -> String {
    crate::error::shown(path, 64).into_owned()
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
        let files = parse(text("m/1/model.pt", &digest).as_bytes()).unwrap();
        assert_eq!(files[0].sha256.as_deref(), Some("ab".repeat(32).as_str()));
        for (path, digest) in [("../x", digest.as_str()), ("/m", &digest), ("a//b", &digest), ("m.pt", "ab")]
        {
            assert!(parse(text(path, digest).as_bytes()).is_err(), "{path} {digest}");
        }
        assert!(parse(b"<html>").unwrap_err().contains("index.json"));
    }
}
