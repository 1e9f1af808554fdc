//! A model repository as Triton has it, served as it is.

use std::{fs, path::Path, time::Duration};

use torchlane::{
    app::{self, ModelCheck},
    config::{BackendKind, Settings},
    proto,
};

use super::server::{Client, Server, f32s, floats, refused, request};

const CLASSIFIER: &str = r#"
name: "classifier"
platform: "pytorch_libtorch"
max_batch_size: 4
input [ { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [
  {
    name: "OUTPUT__0"
    data_type: TYPE_FP32
    dims: [ 2 ]
    label_filename: "labels.txt"
  }
]
version_policy: { specific: { versions: [ 1, 2 ] } }
instance_group [ { count: 1 kind: KIND_GPU } ]
dynamic_batching { preferred_batch_size: [ 4 ] }
"#;

/// Inputs by the names of arguments, in another order; of two results only the second.
const RENAMED: &str = r#"
backend: "pytorch"
default_model_filename: "net.ts"
input { name: "b" data_type: TYPE_FP32 dims: 1 }
input { name: "a" data_type: TYPE_FP32 dims: 1 }
output { name: "second__1" data_type: TYPE_FP32 dims: 1 }
"#;

/// Of two results only the first.
const FIRST: &str = r#"
backend: "pytorch"
input { name: "one" data_type: TYPE_FP32 dims: 1 }
input { name: "two" data_type: TYPE_FP32 dims: 1 }
output { name: "sum" data_type: TYPE_FP32 dims: 1 }
"#;

/// Of one step, which the classifier runs.
const PIPELINE: &str = r#"
platform: "ensemble"
max_batch_size: 4
input [ { name: "image" data_type: TYPE_FP32 dims: [ 2 ] } ]
output [ { name: "scores" data_type: TYPE_FP32 dims: [ 2 ] } ]
ensemble_scheduling {
  step [
    {
      model_name: "classifier"
      model_version: -1
      input_map { key: "INPUT__0" value: "image" }
      output_map { key: "OUTPUT__0" value: "scores" }
    }
  ]
}
"#;

fn put(repository: &Path, files: &[(&str, &str)]) {
    for (file, text) in files {
        let path = repository.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
}

fn triton_repository() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    put(
        dir.path(),
        &[
            ("classifier/config.pbtxt", CLASSIFIER),
            ("classifier/labels.txt", "cat\ndog\n"),
            ("classifier/1/model.pt", "scale = 1.0"),
            ("classifier/2/model.pt", "scale = 2.0"),
            ("classifier/3/model.pt", "scale = 3.0"),
            ("renamed/config.pbtxt", RENAMED),
            ("renamed/1/net.ts", "inputs = ['a', 'b']\nscale = 10.0"),
            ("first/config.pbtxt", FIRST),
            ("first/1/model.pt", "inputs = ['x', 'y']"),
            ("pipeline/config.pbtxt", PIPELINE),
            // As in Triton a version of an ensemble is an empty directory.
            ("pipeline/1/.keep", ""),
            ("other/config.pbtxt", "platform: \"onnxruntime_onnx\""),
            ("other/1/model.onnx", "?"),
            ("plain/1/model.pt", ""),
        ],
    );
    dir
}

async fn model(client: &mut Client, name: &str) -> proto::Model {
    client.get_model(proto::GetModelRequest { model: name.into() }).await.unwrap().into_inner()
}

async fn answer(client: &mut Client, request: proto::InferRequest) -> Vec<(String, Vec<f32>)> {
    let outputs = client.infer(request).await.unwrap().into_inner().outputs;
    outputs.iter().map(|output| (output.name.clone(), floats(output))).collect()
}

#[tokio::test]
async fn a_repository_is_served_as_it_is() {
    let dir = triton_repository();
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;

    let classifier = model(&mut client, "classifier").await;
    assert_eq!(
        (classifier.live_version.as_str(), classifier.max_batch),
        ("2", 4),
        "3 is not one of those named"
    );
    let beside: Vec<_> = classifier.loaded.iter().map(|loaded| loaded.version.as_str()).collect();
    assert_eq!(beside, ["1"]);
    let signature = classifier.signature.unwrap();
    assert_eq!(
        (signature.inputs[0].name.as_str(), signature.inputs[0].shape.as_slice()),
        ("INPUT__0", &[-1, 2][..])
    );
    assert_eq!(signature.outputs[0].labels, ["cat", "dog"]);
    let image = |version: &str| proto::InferRequest {
        version: version.into(),
        ..request("classifier", vec![f32s("INPUT__0", &[1, 2], &[1.0, 2.0])])
    };
    assert_eq!(answer(&mut client, image("")).await, [("OUTPUT__0".to_owned(), vec![2.0, 4.0])]);
    assert_eq!(answer(&mut client, image("1")).await, [("OUTPUT__0".to_owned(), vec![1.0, 2.0])]);
    let flat = request("classifier", vec![f32s("INPUT__0", &[2], &[1.0, 2.0])]);
    assert_eq!(refused(&mut client, flat).await.0, "WRONG_SHAPE", "the batch dimension is part of a request");

    let both = request("renamed", vec![f32s("a", &[1], &[1.0]), f32s("b", &[1], &[2.0])]);
    let expected = [("output_0".to_owned(), vec![10.0]), ("second__1".to_owned(), vec![20.0])];
    assert_eq!(answer(&mut client, both).await, expected, "b is the second argument, as forward has it");

    let both = request("first", vec![f32s("one", &[1], &[1.0]), f32s("two", &[1], &[2.0])]);
    assert_eq!(
        answer(&mut client, both).await,
        [("sum".to_owned(), vec![1.0])],
        "what is not named is left out"
    );

    let image = request("pipeline", vec![f32s("image", &[1, 2], &[1.0, 2.0])]);
    assert_eq!(answer(&mut client, image).await, [("scores".to_owned(), vec![2.0, 4.0])]);

    let other = model(&mut client, "other").await;
    assert!(other.live_version.is_empty());
    assert!(
        other.last_error.contains("config.pbtxt: platform: 'onnxruntime_onnx' is not pytorch_libtorch"),
        "{}",
        other.last_error
    );
    assert_eq!(model(&mut client, "plain").await.live_version, "1", "models of both kinds live side by side");
}

/// Waits until the model is as wanted, for at most 20 s.
async fn until(client: &mut Client, name: &str, so: impl Fn(&proto::Model) -> bool) {
    for _ in 0..2000 {
        if so(&model(client, name).await) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not come to that: {:?}", model(client, name).await);
}

#[tokio::test]
async fn a_changed_config_and_changed_labels_are_picked_up() {
    let dir = triton_repository();
    let server = Server::fake(dir.path(), |settings| {
        settings.watch.interval = Duration::from_millis(100);
        settings.watch.settle = Duration::from_millis(200);
    });
    let mut client = server.ready().await;
    let has_labels = |labels: &'static [&'static str]| {
        move |model: &proto::Model| model.signature.as_ref().is_some_and(|s| s.outputs[0].labels == labels)
    };
    until(&mut client, "classifier", has_labels(&["cat", "dog"])).await;
    put(dir.path(), &[("classifier/labels.txt", "tiger\r\nwolf\r\n")]);
    until(&mut client, "classifier", has_labels(&["tiger", "wolf"])).await;

    let larger = CLASSIFIER.replace("max_batch_size: 4", "max_batch_size: 8");
    put(dir.path(), &[("classifier/config.pbtxt", larger.as_str())]);
    until(&mut client, "classifier", |model| model.max_batch == 8).await;

    // A mistake changes nothing, and is told with its place.
    let mistaken = CLASSIFIER.replace("max_batch_size", "max_batch");
    put(dir.path(), &[("classifier/config.pbtxt", mistaken.as_str())]);
    until(&mut client, "classifier", |model| {
        model.last_error.contains("config.pbtxt:4:1: field 'max_batch'")
    })
    .await;
    let serves = model(&mut client, "classifier").await;
    assert_eq!((serves.live_version.as_str(), serves.max_batch), ("2", 8));

    // A model.toml takes its place.
    put(dir.path(), &[("classifier/model.toml", "[batching]\nmax_batch = 16\n")]);
    until(&mut client, "classifier", |model| (model.live_version.as_str(), model.max_batch) == ("3", 16))
        .await;
}

fn checked(repository: &Path) -> Vec<ModelCheck> {
    let settings = Settings {
        repositories: vec![repository.to_owned()],
        backend: BackendKind::Fake,
        ..Settings::default()
    };
    app::check_models(&settings).unwrap()
}

#[test]
fn check_lists_what_is_not_heeded() {
    let dir = triton_repository();
    put(dir.path(), &[("first/model.toml", "description = 'another way to say it'")]);
    let checks = checked(dir.path());
    let of = |name: &str| checks.iter().find(|check| check.name == name).unwrap();
    let classifier = of("classifier");
    assert_eq!(classifier.problem, None);
    let fields = ["dynamic_batching.preferred_batch_size", "instance_group[0].kind"];
    assert_eq!(classifier.warnings.len(), fields.len(), "{:?}", classifier.warnings);
    for field in fields {
        let line = format!("config.pbtxt: {field}: ");
        assert!(classifier.warnings.iter().any(|warning| warning.starts_with(&line)), "{field}");
    }
    for fine in ["renamed", "pipeline", "plain"] {
        assert_eq!((of(fine).problem.as_ref(), of(fine).warnings.len()), (None, 0), "{fine}");
    }
    assert_eq!(of("first").warnings, ["config.pbtxt is not read: model.toml is there too"]);
    assert!(of("other").problem.as_ref().unwrap().contains("platform"), "{:?}", of("other"));
}

#[test]
fn what_contradicts_the_archive_is_said_by_the_names_of_the_config() {
    let dir = tempfile::tempdir().unwrap();
    put(
        dir.path(),
        &[
            ("far/config.pbtxt", "input { name: 'INPUT__3' } output { name: 'y' }"),
            ("far/1/model.pt", "inputs = ['x']"),
            (
                "shape/config.pbtxt",
                "input { name: 'x' data_type: TYPE_FP32 dims: 3 } output { name: 'y' dims: 4 }",
            ),
            ("shape/1/model.pt", ""),
            ("pipe/config.pbtxt/oops", ""),
            ("pipe/1/model.pt", ""),
        ],
    );
    let checks = checked(dir.path());
    let problem =
        |name: &str| checks.iter().find(|check| check.name == name).unwrap().problem.clone().unwrap();
    let far = "config.pbtxt: input 'INPUT__3' stands for argument number 3, but forward takes (x)";
    assert!(problem("far").contains(far), "{}", problem("far"));
    assert!(problem("shape").contains("output 'y' has shape [3], [4] is declared"), "{}", problem("shape"));
    assert!(problem("pipe").contains("config.pbtxt is not a file"), "{}", problem("pipe"));
}
