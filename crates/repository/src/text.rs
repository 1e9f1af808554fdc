//! Small texts that lie beside a model's versions: descriptions, labels.

use std::{
    fmt,
    fs::{self, File},
    io::Read as _,
    path::Path,
};

/// Longest text that is read, in bytes.
pub const MOST_TEXT: u64 = 4 << 20;

/// The whole of a text, at most [`MOST_TEXT`] long.
///
/// # Errors
/// One line that begins with its path.
pub fn read_text(path: &Path) -> Result<String, String> {
    let wrong = |problem: &dyn fmt::Display| format!("{}: {problem}", path.display());
    let meta = fs::metadata(path).map_err(|error| wrong(&error))?;
    // What is no file may keep its reader waiting for ever.
    if !meta.is_file() {
        return Err(format!("{} is not a file", path.display()));
    }
    if meta.len() > MOST_TEXT {
        return Err(wrong(&format_args!("over {MOST_TEXT} bytes")));
    }
    let mut text = String::new();
    // It may have grown since.
    let mut file = File::open(path).map_err(|error| wrong(&error))?.take(MOST_TEXT);
    file.read_to_string(&mut text).map_err(|error| wrong(&error))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_a_bounded_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("labels.txt");
        assert!(read_text(&path).unwrap_err().contains("labels.txt: No such file"));
        assert!(read_text(dir.path()).unwrap_err().ends_with("is not a file"));
        fs::write(&path, "cat\ndog\n").unwrap();
        assert_eq!(read_text(&path).unwrap(), "cat\ndog\n");
        fs::write(&path, [0xff]).unwrap();
        assert!(read_text(&path).unwrap_err().contains("UTF-8"));
        File::create(&path).unwrap().set_len(MOST_TEXT + 1).unwrap();
        assert!(read_text(&path).unwrap_err().ends_with("over 4194304 bytes"));
    }
}
