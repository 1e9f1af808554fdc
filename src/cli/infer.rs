//! `torchlane infer`

use std::{io::Write as _, path::PathBuf, time::Duration};

use serde::Serialize;
use serde_json::value::RawValue;
use tonic::Request;

use super::{
    Failure,
    client::{ServerArgs, block_on, refused},
    json::{JsonArgs, part, print_json},
    picture::Picture,
    show::{Table, Tone, show_duration, width},
};
use crate::{
    client::Stub,
    model::Lane,
    proto,
    tensor::{DType, TypedData, encode_typed},
};

mod values;

use values::{numbers_of, texts};

/// Inputs are given by name, as numbers or from files.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  torchlane infer digits --image tests/data/digits/png/3-0012.png\n  torchlane infer tagger --input tokens=1,4,2 --input weights=1,0.5,2\n  torchlane infer m --input x:FP32[2,3]=1,2,3,4,5,6 --input y:FP32[1024]=@y.bin --priority critical --timeout 50ms"
)]
pub(super) struct Args {
    /// The model
    model: String,
    #[command(flatten)]
    server: ServerArgs,
    /// A PNG or JPEG picture for a model that takes one; values go in as 0 to 1, or 0 to 255 if it takes UINT8
    #[arg(long, value_name = "FILE", conflicts_with = "input")]
    image: Option<PathBuf>,
    /// NAME[:DATATYPE[[SHAPE]]]=VALUES, or =@FILE for raw little-endian bytes; may be given several times
    #[arg(long, value_name = "SPEC")]
    input: Vec<String>,
    /// critical, high, normal or low
    #[arg(long)]
    priority: Option<Lane>,
    /// Give up after this long, as in 200ms
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// Version or label to ask
    #[arg(long)]
    version: Option<String>,
    /// Print every value, not only the first ones
    #[arg(long)]
    full: bool,
    #[command(flatten)]
    output: JsonArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    block_on(async {
        let mut client = args.server.connect().await?;
        let request = proto::LoadModelRequest { model: args.model.clone() };
        let model = client.load_model(request).await.map_err(refused)?.into_inner();
        let Some(proto::Signature { inputs: specs, outputs }) = model.signature else {
            let why = if model.last_error.is_empty() { "it is not loaded" } else { &model.last_error };
            return Err(Failure::Failed(format!("model '{}' has no version live: {why}", args.model)));
        };
        let (inputs, picture) = match &args.image {
            Some(path) => {
                let picture = Picture::read(path).map_err(Failure::Usage)?;
                let (tensor, note) = picture.tensor(&specs).map_err(Failure::Usage)?;
                if let Some(note) = note {
                    let _unwritable = writeln!(std::io::stderr(), "note: {note}");
                }
                (vec![tensor], Some(picture))
            }
            None => {
                let tensors =
                    args.input.iter().map(|text| parse_input(text, &specs)).collect::<Result<_, _>>();
                (tensors.map_err(Failure::Usage)?, None)
            }
        };
        let answer = send(&mut client, args, inputs).await?;
        if args.output.json {
            return print_json(&Answer::new(&answer)?);
        }
        match picture {
            Some(picture) if !args.full => print_class(&picture, &answer, &outputs),
            _ => print_outputs(&answer, args.full),
        }
        let timing = answer.timing.unwrap_or_default();
        println!(
            "\nversion {}  queue {}  batch wait {}  compute {}  total {}",
            answer.version,
            show_duration(timing.queue),
            show_duration(timing.batch_wait),
            show_duration(timing.compute),
            show_duration(timing.total)
        );
        Ok(())
    })
}

async fn send(
    client: &mut Stub,
    args: &Args,
    inputs: Vec<proto::Tensor>,
) -> Result<proto::InferResponse, Failure> {
    let priority = args.priority.map_or(0, |lane| i32::try_from(lane.index() + 1).unwrap_or(0));
    let mut request = Request::new(proto::InferRequest {
        model: args.model.clone(),
        version: args.version.clone().unwrap_or_default(),
        priority,
        inputs,
        ..proto::InferRequest::default()
    });
    if let Some(timeout) = args.timeout {
        request.set_timeout(timeout);
    }
    client.infer(request).await.map(tonic::Response::into_inner).map_err(refused)
}

/// `tokens=1,2,3`, `x:FP32[2,2]=1,2,3,4`, `x:FP32[1024]=@file.bin`. Datatype and shape default to what the model declares.
fn parse_input(text: &str, specs: &[proto::TensorSpec]) -> Result<proto::Tensor, String> {
    let wrong = |what: String| format!("--input {text}: {what}");
    let (head, values) = text
        .split_once('=')
        .ok_or_else(|| wrong("write it as NAME=1,2,3 or NAME:FP32[2,3]=1,2,3,4,5,6".to_owned()))?;
    let (name, kind) = head.split_once(':').map_or((head, ""), |(name, kind)| (name, kind));
    let (datatype, shape) = match kind.split_once('[') {
        Some((datatype, shape)) => {
            let shape =
                shape.strip_suffix(']').ok_or_else(|| wrong("the shape does not end with ]".to_owned()))?;
            let dims = shape.split(',').filter(|d| !d.trim().is_empty()).map(|d| d.trim().parse::<i64>());
            (
                datatype,
                Some(
                    dims.collect::<Result<Vec<_>, _>>()
                        .map_err(|_| wrong(format!("[{shape}] is not a shape")))?,
                ),
            )
        }
        None => (kind, None),
    };
    let spec = specs.iter().find(|spec| spec.name == name);
    let datatype = Some(datatype)
        .filter(|d| !d.is_empty())
        .or(spec.map(|spec| spec.datatype.as_str()).filter(|d| !d.is_empty()))
        .unwrap_or("FP32");
    let dtype: DType = datatype.parse().map_err(|error| wrong(format!("{error}")))?;
    let raw: Vec<u8> = match values.strip_prefix('@') {
        Some(path) => std::fs::read(path).map_err(|error| wrong(format!("{path}: {error}")))?,
        None => numbers(values, dtype).map_err(wrong)?,
    };
    let count = i64::try_from(raw.len() / dtype.size()).unwrap_or(i64::MAX);
    // `[-1, 1, 8, 8]` with 64 numbers is one row; a rank of one takes them all.
    let declared = || {
        let shape = &spec?.shape;
        let known: i64 = shape.iter().filter(|d| **d != -1).product();
        let free = shape.iter().filter(|d| **d == -1).count();
        (free == 1 && known > 0 && count % known == 0)
            .then(|| shape.iter().map(|d| if *d == -1 { count / known } else { *d }).collect())
    };
    let shape = shape.or_else(declared).unwrap_or_else(|| vec![count]);
    Ok(proto::Tensor {
        name: name.to_owned(),
        datatype: dtype.as_str().to_owned(),
        shape,
        raw: raw.into(),
        ..proto::Tensor::default()
    })
}

fn numbers(text: &str, dtype: DType) -> Result<Vec<u8>, String> {
    let items: Vec<&str> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
    fn all<T: std::str::FromStr>(items: &[&str], what: &str) -> Result<Vec<T>, String> {
        items.iter().map(|item| item.parse().map_err(|_| format!("'{item}' is not {what}"))).collect()
    }
    let mut data = TypedData::default();
    match dtype {
        DType::Bool => {
            let bool = |item: &&str| match *item {
                "1" | "true" => Ok(true),
                "0" | "false" => Ok(false),
                other => Err(format!("'{other}' is not true, false, 1 or 0")),
            };
            data.bools = items.iter().map(bool).collect::<Result<_, _>>()?;
        }
        DType::U8 => data.uints = all(&items, "a whole number")?,
        DType::I8 | DType::I16 | DType::I32 => data.ints = all(&items, "a whole number")?,
        DType::I64 => data.int64s = all(&items, "a whole number")?,
        DType::F16 | DType::BF16 | DType::F32 => data.floats = all(&items, "a number")?,
        DType::F64 => data.doubles = all(&items, "a number")?,
    }
    let shape = [i64::try_from(items.len()).unwrap_or(i64::MAX)].as_slice().into();
    encode_typed(&data, dtype, &shape).map(|bytes| bytes.to_vec()).map_err(|error| error.to_string())
}

fn print_class(picture: &Picture, answer: &proto::InferResponse, specs: &[proto::TensorSpec]) {
    println!("{}", picture.draw().trim_end_matches('\n'));
    // The one whose indices have names, where there are several.
    let is_labelled = |output: &&proto::Tensor| {
        specs.iter().any(|spec| spec.name == output.name && !spec.labels.is_empty())
    };
    let labelled = answer.outputs.iter().find(is_labelled);
    let Some(output) = labelled.or(answer.outputs.first()) else { return };
    let scores = numbers_of(output);
    // Logits are no probabilities.
    let are_parts = scores.iter().all(|score| (0.0..=1.0).contains(score));
    let mut classes: Vec<(usize, f64)> = scores.into_iter().enumerate().collect();
    classes.sort_by(|a, b| b.1.total_cmp(&a.1));
    let Some((class, best)) = classes.first() else { return };
    let labels = specs.iter().find(|spec| spec.name == output.name).map_or(&[][..], |spec| &spec.labels);
    let label = |class: usize| labels.get(class).cloned().unwrap_or_else(|| class.to_string());
    let name = Tone::Good.paint(&label(*class));
    if !are_parts {
        println!("\nclass {name}, score {best:.3}");
        for (class, score) in classes.iter().take(3) {
            println!("  {}  {score:.3}", label(*class));
        }
        return;
    }
    println!("\nclass {name}, probability {:.1} %", best * 100.0);
    for (class, probability) in classes.iter().take(3) {
        let bar = "█".repeat((probability.clamp(0.0, 1.0) * 40.0).round() as usize);
        println!("  {}  {:5.1} %  {bar}", label(*class), probability * 100.0);
    }
}

fn print_outputs(answer: &proto::InferResponse, full: bool) {
    const FIRST: usize = 8;
    let most = if full { usize::MAX } else { FIRST };
    let row = |output: &proto::Tensor| {
        let all = texts(output);
        let mut shown = all.iter().take(most).map(String::as_str).collect::<Vec<_>>().join(", ");
        if all.len() > most {
            shown.push_str(&format!(", ... ({} in all, --full)", all.len()));
        }
        vec![output.name.clone(), output.datatype.clone(), format!("{:?}", output.shape), shown]
    };
    if full && width().is_some() {
        // In a column they would be hard to read.
        for output in &answer.outputs {
            println!("{} {} {:?}", output.name, output.datatype, output.shape);
            println!("{}", texts(output).join(", "));
        }
        return;
    }
    let rows = answer.outputs.iter().map(row).collect();
    Table::new(&["OUTPUT", "DATATYPE", "SHAPE", "VALUES"], rows).print();
}

#[derive(Debug, Serialize)]
struct Answer<'a> {
    request_id: &'a str,
    model: &'a str,
    version: &'a str,
    outputs: Vec<Output<'a>>,
    timing: Box<RawValue>,
}

#[derive(Debug, Serialize)]
struct Output<'a> {
    name: &'a str,
    datatype: &'a str,
    shape: &'a [i64],
    /// All values, row by row. What JSON has no number for is a text: "NaN", "Infinity", "-Infinity".
    data: Box<RawValue>,
}

impl<'a> Answer<'a> {
    fn new(answer: &'a proto::InferResponse) -> Result<Self, Failure> {
        let output = |output: &'a proto::Tensor| {
            let quoted = |text: String| match text.as_str() {
                "NaN" => "\"NaN\"".to_owned(),
                "inf" => "\"Infinity\"".to_owned(),
                "-inf" => "\"-Infinity\"".to_owned(),
                _ => text,
            };
            let data = texts(output).into_iter().map(quoted).collect::<Vec<_>>().join(",");
            Ok(Output {
                name: &output.name,
                datatype: &output.datatype,
                shape: &output.shape,
                data: RawValue::from_string(format!("[{data}]")).map_err(Failure::failed)?,
            })
        };
        Ok(Self {
            request_id: &answer.request_id,
            model: &answer.model,
            version: &answer.version,
            outputs: answer.outputs.iter().map(output).collect::<Result<_, Failure>>()?,
            timing: part("Timing", &answer.timing.unwrap_or_default())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, datatype: &str, shape: &[i64]) -> proto::TensorSpec {
        proto::TensorSpec {
            name: name.into(),
            datatype: datatype.into(),
            shape: shape.to_vec(),
            ..Default::default()
        }
    }

    #[test]
    fn inputs_are_read_as_people_write_them() {
        let specs = [spec("tokens", "INT64", &[-1]), spec("image", "FP32", &[-1, 1, 2, 2])];
        let tokens = parse_input("tokens=1, 2,3", &specs).unwrap();
        assert_eq!((tokens.datatype.as_str(), tokens.shape, tokens.raw.len()), ("INT64", vec![3], 24));
        let image = parse_input("image=1,2,3,4", &specs).unwrap();
        assert_eq!(image.shape, [1, 1, 2, 2]);
        let typed = parse_input("x:FP16[2,1]=1,2", &specs).unwrap();
        assert_eq!((typed.datatype.as_str(), typed.shape, typed.raw.len()), ("FP16", vec![2, 1], 4));
        assert_eq!(parse_input("tokens=", &specs).unwrap().shape, [0]);
    }

    #[test]
    fn mistakes_are_named() {
        for (text, expect) in [
            ("x", "write it as"),
            ("x=a", "'a' is not a number"),
            ("x:FP32[2=1", "does not end with ]"),
            ("x:FP33=1", "'FP33' is not one of"),
            ("x:INT8=300", "does not fit INT8"),
            ("x:BOOL=true,maybe", "'maybe' is not true"),
            ("x=@/no/such/file", "/no/such/file"),
        ] {
            let error = parse_input(text, &[]).unwrap_err();
            assert!(error.contains(expect), "{text}: {error}");
        }
    }

    #[test]
    fn scripts_get_every_value() {
        let raw: Vec<u8> =
            [0.1_f32, f32::NAN, f32::INFINITY, 1e-20].iter().flat_map(|v| v.to_le_bytes()).collect();
        let output = proto::Tensor {
            name: "y".into(),
            datatype: "FP32".into(),
            shape: vec![4],
            raw: raw.into(),
            ..Default::default()
        };
        let answer = proto::InferResponse { outputs: vec![output], ..Default::default() };
        let text = serde_json::to_string(&Answer::new(&answer).unwrap()).unwrap();
        assert!(text.contains(r#""data":[0.1,"NaN","Infinity",1e-20]"#), "{text}");
        assert!(text.contains(r#""timing":{"#), "{text}");
    }
}
