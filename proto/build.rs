//! Generates the code of the .proto files, with protox: no `protoc` is needed.

use std::{env, error::Error, path::PathBuf};

use prost::Message as _;

/// Answers of REST too, field by field.
const AS_JSON: [&str; 10] = [
    "ServerMetadataResponse",
    "ModelMetadataResponse",
    "ModelStatisticsResponse",
    "ModelStatistics",
    "InferStatistics",
    "InferBatchStatistics",
    "InferResponseStatistics",
    "StatisticDuration",
    "MemoryUsage",
    "RepositoryIndexResponse",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=torchlane");
    println!("cargo:rerun-if-changed=inference");
    let files = protox::compile(["torchlane/v1/model_server.proto", "inference/grpc_service.proto"], ["."])?;
    let descriptors = PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin");
    std::fs::write(descriptors, files.encode_to_vec())?;
    // `bytes::Bytes` for payloads: a tensor's bytes stay where HTTP/2 put them.
    let mut code = tonic_prost_build::configure().bytes(".torchlane.v1").bytes(".inference");
    for message in AS_JSON {
        code = code.type_attribute(format!(".inference.{message}"), "#[derive(serde::Serialize)]");
    }
    code.compile_fds(files)?;
    Ok(())
}
