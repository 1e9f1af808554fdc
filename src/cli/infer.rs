//! `torchlane infer`

use std::{path::PathBuf, time::Duration};

use tonic::Request;

use super::{
    Failure,
    client::{ServerArgs, block_on, refused, show_duration},
    picture::Picture,
    print_table,
};
use crate::{
    client::Stub,
    model::Lane,
    proto,
    tensor::{DType, TypedData, encode_typed},
};

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
    /// A PNG picture for a model that takes one; grey values go in as 0 to 1, or 0 to 255 where it takes UINT8
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
    /// Version that must be live
    #[arg(long)]
    version: Option<String>,
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
                (vec![picture_tensor(&picture, &specs).map_err(Failure::Usage)?], Some(picture))
            }
            None => {
                let tensors =
                    args.input.iter().map(|text| parse_input(text, &specs)).collect::<Result<_, _>>();
                (tensors.map_err(Failure::Usage)?, None)
            }
        };
        let answer = send(&mut client, args, inputs).await?;
        match picture {
            Some(picture) => print_class(&picture, &answer, &outputs),
            None => print_outputs(&answer),
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

/// A picture as the model's only input declares it: `[-1, 1, height, width]`, or without the channel.
fn picture_tensor(picture: &Picture, specs: &[proto::TensorSpec]) -> Result<proto::Tensor, String> {
    let [spec] = specs else {
        return Err(format!(
            "the model takes {} inputs: --image is for models of one; use --input",
            specs.len()
        ));
    };
    let (height, width) = (picture.height as i64, picture.width as i64);
    let wanted = match spec.shape.as_slice() {
        // Channels, or the pictures of a batch.
        [.., 1 | -1, h, w] => (*h, *w),
        [] => (-1, -1),
        other => {
            return Err(format!(
                "the model's input has shape {other:?}: --image needs [-1, 1, height, width]; use --input"
            ));
        }
    };
    let fits = |want: i64, have: i64| want == -1 || want == have;
    if !fits(wanted.0, height) || !fits(wanted.1, width) {
        return Err(format!(
            "the picture is {width} x {height} pixels, the model takes {} x {}: scale it first",
            wanted.1, wanted.0
        ));
    }
    let rank = if spec.shape.is_empty() { 4 } else { spec.shape.len() };
    let mut shape = vec![1; rank - 2];
    shape.extend([height, width]);
    let (datatype, raw) = if spec.datatype == DType::U8.as_str() {
        (DType::U8, picture.grey.iter().map(|value| (value * 255.0).round() as u8).collect::<Vec<_>>())
    } else {
        (DType::F32, picture.grey.iter().flat_map(|value| value.to_le_bytes()).collect())
    };
    Ok(proto::Tensor {
        name: spec.name.clone(),
        datatype: datatype.as_str().to_owned(),
        shape,
        raw: raw.into(),
        ..proto::Tensor::default()
    })
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

fn values(output: &proto::Tensor) -> Vec<f64> {
    let Ok(dtype) = output.datatype.parse() else { return Vec::new() };
    let data = TypedData::decode(dtype, &output.raw);
    let mut all: Vec<f64> = data.bools.iter().map(|b| f64::from(u8::from(*b))).collect();
    all.extend(data.ints.iter().map(|v| f64::from(*v)));
    all.extend(data.int64s.iter().map(|v| *v as f64));
    all.extend(data.uints.iter().map(|v| f64::from(*v)));
    all.extend(data.floats.iter().map(|v| f64::from(*v)));
    all.extend(data.doubles);
    all
}

fn print_class(picture: &Picture, answer: &proto::InferResponse, specs: &[proto::TensorSpec]) {
    println!("{}", picture.draw().trim_end_matches('\n'));
    // The one whose indices have names, where there are several.
    let is_labelled = |output: &&proto::Tensor| {
        specs.iter().any(|spec| spec.name == output.name && !spec.labels.is_empty())
    };
    let labelled = answer.outputs.iter().find(is_labelled);
    let Some(output) = labelled.or(answer.outputs.first()) else { return };
    let mut classes: Vec<(usize, f64)> = values(output).into_iter().enumerate().collect();
    classes.sort_by(|a, b| b.1.total_cmp(&a.1));
    let Some((class, probability)) = classes.first() else { return };
    let labels = specs.iter().find(|spec| spec.name == output.name).map_or(&[][..], |spec| &spec.labels);
    let label = |class: usize| labels.get(class).cloned().unwrap_or_else(|| class.to_string());
    println!("\nclass {}, probability {:.1} %", label(*class), probability * 100.0);
    for (class, probability) in classes.iter().take(3) {
        let bar = "█".repeat((probability.clamp(0.0, 1.0) * 40.0).round() as usize);
        println!("  {}  {:5.1} %  {bar}", label(*class), probability * 100.0);
    }
}

fn print_outputs(answer: &proto::InferResponse) {
    const FIRST: usize = 8;
    let rows: Vec<_> = answer
        .outputs
        .iter()
        .map(|output| {
            let all = values(output);
            let mut shown = all.iter().take(FIRST).map(ToString::to_string).collect::<Vec<_>>().join(", ");
            if all.len() > FIRST {
                shown.push_str(&format!(", ... ({} in all)", all.len()));
            }
            vec![output.name.clone(), output.datatype.clone(), format!("{:?}", output.shape), shown]
        })
        .collect();
    print_table(&["OUTPUT", "DATATYPE", "SHAPE", "VALUES"], &rows);
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
    fn a_picture_must_have_the_models_size() {
        let picture = Picture { width: 3, height: 2, grey: vec![0.0; 6] };
        assert_eq!(
            picture_tensor(&picture, &[spec("i", "FP32", &[-1, 1, 2, 3])]).unwrap().shape,
            [1, 1, 2, 3]
        );
        for (declared, expected) in
            [(&[1, 2, 3][..], &[1, 2, 3][..]), (&[-1, -1, -1], &[1, 2, 3]), (&[], &[1, 1, 2, 3])]
        {
            assert_eq!(picture_tensor(&picture, &[spec("i", "FP32", declared)]).unwrap().shape, expected);
        }
        let bytes = Picture { width: 3, height: 1, grey: vec![0.0, 0.5, 1.0] };
        let sent = picture_tensor(&bytes, &[spec("i", "UINT8", &[-1, -1, -1])]).unwrap();
        assert_eq!((sent.datatype.as_str(), sent.raw.to_vec()), ("UINT8", vec![0, 128, 255]));
        let error = picture_tensor(&picture, &[spec("i", "FP32", &[-1, 1, 8, 8])]).unwrap_err();
        assert!(error.contains("3 x 2") && error.contains("8 x 8"), "{error}");
    }
}
