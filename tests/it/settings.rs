//! Settings of the log and of traces that callers read and change, by both doors of the Open Inference Protocol.

use std::sync::OnceLock;

use serde_json::{Value, json};
use tonic::Code;
use torchlane::{
    config::LogFormat,
    proto::inference::{
        LogSettingsRequest, TraceSettingRequest,
        log_settings_request::{SettingValue, setting_value::ParameterChoice},
        log_settings_response::setting_value::ParameterChoice as Told,
        trace_setting_request,
    },
    telemetry::init_logging,
};

use super::{
    fake::repository,
    oip::{Oip, call, oip, post},
    server::{Server, reason},
};

/// The log is the process's: all tests here have it, and what they do not turn on stays off.
fn log() {
    static LOG: OnceLock<Box<dyn std::any::Any + Send + Sync>> = OnceLock::new();
    LOG.get_or_init(|| Box::new(init_logging(LogFormat::Json, "off").unwrap()));
}

async fn log_settings(
    open: &mut Oip,
    changes: &[(&str, ParameterChoice)],
) -> Result<Vec<bool>, tonic::Status> {
    let settings = changes
        .iter()
        .map(|(key, value)| ((*key).to_owned(), SettingValue { parameter_choice: Some(value.clone()) }));
    let asked = LogSettingsRequest { settings: settings.collect() };
    let told = open.log_settings(asked).await?.into_inner().settings;
    assert_eq!(told.len(), 6);
    let is_on = |key: &str| told[key].parameter_choice == Some(Told::BoolParam(true));
    Ok(["log_error", "log_warning", "log_info"].map(is_on).to_vec())
}

#[tokio::test]
async fn levels_of_the_log_can_be_changed_while_the_server_runs() {
    log();
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |_| {});
    let mut open = oip(&server).await;
    let on = ParameterChoice::BoolParam;
    assert_eq!(log_settings(&mut open, &[]).await.unwrap(), [false; 3]);
    assert_eq!(log_settings(&mut open, &[("log_warning", on(true))]).await.unwrap(), [true, true, false]);
    let told = call(&server, "GET", "/v2/logging", &[], b"").await.json();
    let expected = json!({
        "log_file": "", "log_info": false, "log_warning": true, "log_error": true, "log_verbose_level": 0,
        "log_format": "default",
    });
    assert_eq!(told, expected, "both doors tell the same");
    let extensions = call(&server, "GET", "/v2", &[], b"").await.json()["extensions"].to_string();
    assert!(extensions.contains("\"logging\""), "{extensions}");

    // What is sent back as it was told is no change.
    assert_eq!(post(&server, "/v2/logging", &expected).await.json(), expected);
    for (changes, status, says) in [
        (json!({"log_file": "/tmp/log"}), 501, "log_file"),
        (json!({"log_format": "ISO8601"}), 501, "log.format"),
        (json!({"log_colour": true}), 400, "log_colour"),
        (json!({"log_error": null}), 400, "log_error"),
        (json!({"log_verbose_level": 3}), 400, "log_verbose_level"),
        (json!({"log_verbose_level": -1}), 400, "log_verbose_level"),
        (json!({"log_info": true, "log_error": false}), 400, "contradict"),
        (json!({"log_error": false, "log_file": "x"}), 501, "log_file"),
    ] {
        let answer = post(&server, "/v2/logging", &changes).await;
        let told = answer.json()["error"].as_str().unwrap().to_owned();
        assert_eq!(answer.status, status, "{changes}: {told}");
        assert!(told.contains(says), "{changes}: {told}");
    }
    let foreign = [("origin", "http://elsewhere.example")];
    let answer = call(&server, "POST", "/v2/logging", &foreign, br#"{"log_error": false}"#).await;
    assert_eq!(answer.error(), (403, "FORBIDDEN".to_owned()));
    assert_eq!(call(&server, "GET", "/v2/logging", &[], b"").await.json(), expected, "nothing was changed");

    let odd = [("log_error", ParameterChoice::Uint32Param(0))];
    assert_eq!(log_settings(&mut open, &odd).await.unwrap_err().code(), Code::InvalidArgument);
    let told = post(&server, "/v2/logging", &json!({"log_warning": false})).await.json();
    assert_eq!((&told["log_error"], &told["log_warning"]), (&Value::Bool(true), &Value::Bool(false)));
    assert_eq!(log_settings(&mut open, &[("log_error", on(false))]).await.unwrap(), [false; 3]);
}

#[tokio::test]
async fn without_a_collector_nothing_is_traced_and_nothing_can_be_changed() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |_| {});
    let mut open = oip(&server).await;
    let asked = |model: &str, changes: &[(&str, &str)]| {
        let value = |value: &str| trace_setting_request::SettingValue { value: vec![value.to_owned()] };
        let settings = changes.iter().map(|(key, text)| ((*key).to_owned(), value(text)));
        TraceSettingRequest { settings: settings.collect(), model_name: model.to_owned() }
    };
    for model in ["", "m"] {
        let told = open.trace_setting(asked(model, &[])).await.unwrap().into_inner().settings;
        assert_eq!((told.len(), told["trace_level"].value.concat()), (5, "OFF".to_owned()));
        open.trace_setting(asked(model, &[("trace_level", "OFF")])).await.expect("it is so");
    }
    let status = open.trace_setting(asked("", &[("trace_rate", "7")])).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unimplemented, "UNIMPLEMENTED"));
    assert!(status.message().contains("telemetry.otlp_endpoint"), "{status}");
    let unknown = open.trace_setting(asked("none", &[])).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert_eq!(call(&server, "GET", "/v2/models/none/trace/setting", &[], b"").await.status, 404);
    let answer = post(&server, "/v2/trace/setting", &json!({"trace_level": ["TIMESTAMPS"]})).await;
    assert_eq!(answer.error(), (501, "UNIMPLEMENTED".to_owned()));
    let extensions = call(&server, "GET", "/v2", &[], b"").await.json()["extensions"].to_string();
    assert!(!extensions.contains("\"trace\""), "{extensions}");
}

#[tokio::test]
async fn the_rate_of_traces_can_be_changed_over_http() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |settings| {
        // Nothing is sent there: no request comes.
        settings.telemetry.otlp_endpoint = "http://127.0.0.1:1".to_owned();
        settings.telemetry.sample = 0.01;
    });
    server.ready().await;
    let path = "/v2/trace/setting";
    let told = call(&server, "GET", path, &[], b"").await.json();
    let expected = json!({
        "trace_file": "", "trace_level": ["TIMESTAMPS"], "trace_rate": "100", "trace_count": "-1", "log_frequency": "0",
    });
    assert_eq!(told, expected);
    let extensions = call(&server, "GET", "/v2", &[], b"").await.json()["extensions"].to_string();
    assert!(extensions.contains("\"trace\""), "{extensions}");
    assert_eq!(post(&server, path, &expected).await.json(), expected, "what is told is no change");
    for (changes, rate, level) in [
        (json!({"trace_rate": "4"}), "4", "TIMESTAMPS"),
        (json!({"trace_rate": 8, "trace_level": "OFF"}), "8", "OFF"),
        (json!({"trace_level": ["TIMESTAMPS"]}), "8", "TIMESTAMPS"),
        (json!({"trace_rate": 0}), "0", "TIMESTAMPS"),
        (json!({"trace_rate": null}), "100", "TIMESTAMPS"),
    ] {
        let told = post(&server, path, &changes).await.json();
        assert_eq!((&told["trace_rate"], &told["trace_level"]), (&json!(rate), &json!([level])), "{changes}");
    }
    for (path, changes, status, says) in [
        (path, json!({"trace_level": ["TENSORS"]}), 501, "TENSORS"),
        (path, json!({"trace_file": "x"}), 501, "trace_file"),
        (path, json!({"trace_colour": "red"}), 400, "trace_colour"),
        (path, json!({"trace_rate": "7", "trace_count": "x"}), 501, "trace_count"),
        (path, json!({"trace_rate": {"a": 1}}), 400, "null"),
        ("/v2/models/m/trace/setting", json!({"trace_rate": "7"}), 501, "model"),
    ] {
        let answer = post(&server, path, &changes).await;
        let told = answer.json()["error"].as_str().unwrap().to_owned();
        assert_eq!(answer.status, status, "{changes}: {told}");
        assert!(told.contains(says), "{changes}: {told}");
    }
    let told = call(&server, "GET", "/v2/models/m/trace/setting", &[], b"").await.json();
    assert_eq!(told, expected, "what was refused has changed nothing");
}
