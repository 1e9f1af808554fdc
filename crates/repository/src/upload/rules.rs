//! What an upload may hold. Pure: no disk is looked at.

use std::collections::BTreeMap;

use bytes::Bytes;
use torchlane_model::{
    Version,
    error::{Error, Reason, Result, shown},
};

use crate::{
    description::{ARCHIVE, CONFIG, MANIFEST},
    directory::{SAMPLES, WEIGHTS},
    seal::FILE as SEAL,
    triton::{ConfigError, MOST_BYTES, NamedFiles, TritonConfig},
};

/// Most files of one upload. Their bytes are bounded by the message that they come in (`server.max_message_bytes`).
pub const MOST_FILES: usize = 1000;

/// Longest name of a file or directory, in bytes: no file system of Linux has longer ones.
const LONGEST_NAME: usize = 255;

/// The field of a request that is at fault.
const FIELD: &str = "parameters";

/// What comes for one model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upload {
    /// All files of its directory, by their paths below it.
    Whole(BTreeMap<String, Bytes>),
    /// The text of a `config.pbtxt`, in the place of what describes it on disk. The other files stay.
    Config(String),
}

impl Upload {
    /// `config` is a `ModelConfig` in JSON; `files` are by their paths below the model's directory.
    ///
    /// # Errors
    /// A configuration that is none, none at all, two of them, too many files, or a path that is no place for a file of a model.
    pub fn new(config: Option<&str>, files: Vec<(String, Bytes)>) -> Result<Self> {
        let config = config.map(TritonConfig::from_json).transpose().map_err(|error| not_a_config(&error))?;
        let written = config.as_ref().map(TritonConfig::to_text);
        let mut whole = BTreeMap::new();
        if files.len() > MOST_FILES {
            return Err(refused(format!("{} files are too many: at most {MOST_FILES}", files.len())));
        }
        for (path, content) in files {
            if whole.insert(path.clone(), content).is_some() {
                return Err(refused(format!("file:{} comes twice", shown(&path, 128))));
            }
        }
        let (manifest, pbtxt) = (whole.contains_key(MANIFEST), whole.get(CONFIG));
        let named = match (&config, pbtxt) {
            (Some(_), _) if manifest || pbtxt.is_some() => {
                let other = if manifest { MANIFEST } else { CONFIG };
                let message = format!("'config' and file:{other} both describe the model: send one of them");
                return Err(refused(message));
            }
            (None, None) if !manifest => {
                let message = format!(
                    "files come with what describes their model: 'config', or file:{MANIFEST}, or file:{CONFIG}"
                );
                return Err(refused(message));
            }
            // It is not read where both are there.
            (None, Some(_)) if manifest => NamedFiles::default(),
            (None, Some(text)) => NamedFiles::in_config(&read(text)?),
            (None, None) => NamedFiles::default(),
            (Some(config), _) => NamedFiles::in_config(config),
        };
        for path in whole.keys() {
            check(path, &named).map_err(|why| refused(format!("file:{}: {why}", shown(path, 128))))?;
        }
        match written {
            Some(config) if whole.is_empty() => Ok(Self::Config(config)),
            written => {
                whole.extend(written.map(|text| (CONFIG.to_owned(), text.into())));
                Ok(Self::Whole(whole))
            }
        }
    }
}

fn refused(message: String) -> Error {
    Error::new(Reason::BadRequest, message).with_field(FIELD)
}

fn not_a_config(error: &ConfigError) -> Error {
    refused(error.to_string())
}

fn read(config: &[u8]) -> Result<TritonConfig> {
    let text = std::str::from_utf8(config).ok().filter(|text| text.len() as u64 <= MOST_BYTES);
    let text = text.ok_or_else(|| {
        refused(format!("file:{CONFIG}: not a text in UTF-8 of at most {MOST_BYTES} bytes"))
    })?;
    TritonConfig::parse(text).map_err(|error| not_a_config(&error))
}

/// Whether a file may lie there: it is one that a model's directory has, and the path leads nowhere but down.
fn check(path: &str, named: &NamedFiles) -> Result<(), String> {
    let parts: Vec<&str> = path.split('/').collect();
    for part in &parts {
        if part.is_empty() || matches!(*part, "." | "..") {
            return Err("not a path below the model's directory, such as 1/model.pt".to_owned());
        }
        if part.starts_with('.') {
            return Err("hidden files are not looked at".to_owned());
        }
        if part.len() > LONGEST_NAME || part.chars().any(|c| c.is_control() || c == '\\') {
            return Err("a name with odd characters, or too long".to_owned());
        }
    }
    if named.labels.iter().any(|label| label == path) {
        return Ok(());
    }
    match parts.as_slice() {
        [file] if [MANIFEST, CONFIG].contains(file) || is_labels(file) => Ok(()),
        [file] => Err(format!(
            "'{file}' is no file of a model: beside its versions there are {MANIFEST}, {CONFIG}, labels*.txt and what {CONFIG} names"
        )),
        [version, file] => {
            let _number: Version = version
                .parse()
                .map_err(|_| format!("'{version}' is no version: a whole number without leading zeros"))?;
            let archive = named.archive.as_deref().unwrap_or(ARCHIVE);
            if *file == archive || WEIGHTS.contains(file) || [SAMPLES, SEAL].contains(file) {
                return Ok(());
            }
            let [weights, pth] = WEIGHTS;
            Err(format!(
                "'{file}' is no file of a version: it has {archive}, {weights}, {pth}, {SAMPLES} and {SEAL}"
            ))
        }
        _ => Err("a version has no directories in it".to_owned()),
    }
}

fn is_labels(file: &str) -> bool {
    file.starts_with("labels") && file.ends_with(".txt")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload(config: Option<&str>, paths: &[&str]) -> Result<Upload> {
        let files = paths.iter().map(|path| ((*path).to_owned(), Bytes::from_static(b"x"))).collect();
        Upload::new(config, files)
    }

    #[test]
    fn files_of_a_model_are_taken() {
        for path in [
            "1/model.pt",
            "12/weights.safetensors",
            "3/weights.pth",
            "3/samples.safetensors",
            "3/manifest.json",
            "labels.txt",
            "labels_top.txt",
        ] {
            assert!(upload(Some("{}"), &[path]).is_ok(), "{path}");
            assert!(upload(None, &[path, "model.toml"]).is_ok(), "{path}");
        }
        let config =
            r#"{"default_model_filename": "net.ts", "output": [{"name": "y", "label_filename": "a/names"}]}"#;
        assert!(upload(Some(config), &["1/net.ts", "a/names"]).is_ok());
        assert!(upload(Some(config), &["1/model.pt"]).is_err(), "it would not be looked at");
        assert!(upload(Some("{}"), &["1/net.ts"]).is_err());
        let text = Bytes::from_static(b"default_model_filename: 'net.ts'");
        let files =
            |path: &str| vec![("config.pbtxt".to_owned(), text.clone()), (path.to_owned(), Bytes::new())];
        assert!(Upload::new(None, files("1/net.ts")).is_ok());
        assert!(Upload::new(None, files("1/model.pt")).is_err());
    }

    #[test]
    fn paths_that_lead_elsewhere_or_nowhere_are_refused() {
        for path in [
            "",
            "/",
            ".",
            "..",
            "1",
            "1/",
            "/1/model.pt",
            "/tmp/model.pt",
            "../out/1/model.pt",
            "1/../../out.pt",
            "1/..",
            "./1/model.pt",
            "1//model.pt",
            "1/./model.pt",
            "1/.model.pt",
            ".1/model.pt",
            ".unproven",
            "1\\model.pt",
            "..\\model.pt",
            "1/model.pt\0",
            "1/model\n.pt",
            "1/model.pt/x",
            "01/model.pt",
            "-1/model.pt",
            "+1/model.pt",
            "v1/model.pt",
            "1/model.exe",
            "model.pt",
            "1/config.pbtxt",
            "notes.txt",
        ] {
            let error = upload(Some("{}"), &[path]).unwrap_err();
            assert_eq!(error.reason(), Reason::BadRequest, "{path:?}");
            assert!(error.message().starts_with("file:"), "{path:?}: {error}");
        }
        let long = format!("labels{}.txt", "x".repeat(LONGEST_NAME));
        assert!(upload(Some("{}"), &[&long]).is_err());
        let hidden = r#"{"output": [{"name": "y", "label_filename": ".names"}]}"#;
        assert!(upload(Some(hidden), &[".names"]).is_err(), "a config cannot allow it either");
        let out = r#"{"output": [{"name": "y", "label_filename": "../names"}]}"#;
        assert!(upload(Some(out), &["../names"]).is_err());
    }

    #[test]
    fn one_thing_describes_a_model() {
        let says = |config, paths: &[&str]| upload(config, paths).unwrap_err().message().to_owned();
        assert!(says(Some("{}"), &["1/model.pt", "model.toml"]).contains("file:model.toml"));
        assert!(says(Some("{}"), &["1/model.pt", "config.pbtxt"]).contains("file:config.pbtxt"));
        assert!(says(None, &["1/model.pt"]).contains("'config'"));
        assert!(says(None, &[]).contains("'config'"));
        assert!(
            says(None, &["config.pbtxt"]).starts_with("config.pbtxt:1:"),
            "it is read before it is written"
        );
        let many: Vec<String> = (0..=MOST_FILES).map(|version| format!("{version}/model.pt")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(says(Some("{}"), &many).contains("too many"));
        let twice = vec![("model.toml".to_owned(), Bytes::new()); 2];
        assert!(Upload::new(None, twice).unwrap_err().message().contains("twice"));
    }

    #[test]
    fn a_configuration_becomes_a_file() {
        let config = Some(r#"{"max_batch_size": 4}"#);
        let Upload::Config(text) = upload(config, &[]).unwrap() else { panic!("it came alone") };
        assert_eq!(TritonConfig::parse(&text).unwrap().config().max_batch_size, 4);
        let Upload::Whole(files) = upload(config, &["1/model.pt"]).unwrap() else { panic!("files came") };
        assert_eq!(files.keys().collect::<Vec<_>>(), ["1/model.pt", "config.pbtxt"]);
        assert_eq!(files["config.pbtxt"], text);
        for wrong in ["", "{", "[]", "{} {}", r#"{"max_batch_size": "many"}"#] {
            let error = upload(Some(wrong), &["1/model.pt"]).unwrap_err();
            assert!(error.message().starts_with("config: "), "{wrong}: {error}");
        }
        let error = upload(Some(r#"{"input": [{"colour": "red"}]}"#), &[]).unwrap_err();
        assert!(error.message().contains("'colour'"), "{error}");
    }
}
