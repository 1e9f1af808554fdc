//! One request to `digits`, with a priority and a deadline: `cargo run --example client -- 127.0.0.1:50051`

#![allow(missing_docs, reason = "an example")]

use std::time::Duration;

use tonic_types::StatusExt as _;
use torchlane::proto::{InferRequest, Priority, Tensor, model_server_client::ModelServerClient};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:50051".to_owned());
    let mut client = ModelServerClient::connect(format!("http://{address}")).await?;

    // A vertical stroke: with some goodwill, a one.
    let image = Tensor {
        name: "image".into(),
        datatype: "FP32".into(),
        shape: vec![1, 1, 8, 8],
        float_data: (0..64).map(|i| if matches!(i % 8, 3 | 4) { 1.0 } else { 0.0 }).collect(),
        ..Tensor::default()
    };
    let mut request = tonic::Request::new(InferRequest {
        model: "digits".into(),
        priority: Priority::High.into(),
        inputs: vec![image],
        ..InferRequest::default()
    });
    request.set_timeout(Duration::from_millis(500));
    match client.infer(request).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            let raw = answer.outputs.first().map(|output| output.raw.as_ref()).unwrap_or_default();
            for (digit, bytes) in raw.chunks_exact(4).enumerate() {
                let probability = bytes.try_into().map(f32::from_le_bytes)?;
                println!("{digit}: {:5.1} %", probability * 100.0);
            }
            println!("version {}", answer.version);
        }
        Err(status) => {
            let retry = status.get_error_details().retry_info().and_then(|info| info.retry_delay);
            println!("refused: {} (try again in {retry:?})", status.message());
        }
    }
    Ok(())
}
