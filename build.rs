//! Generates the gRPC code (with protox, so no `protoc` is needed) and tells the linker where libtorch lies,
//! so that the binary finds it at run time without an environment variable.

use std::{
    env,
    path::{Path, PathBuf},
};

use prost::Message as _;

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

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    println!("cargo:rerun-if-changed=proto");

    let files =
        protox::compile(["torchlane/v1/model_server.proto", "inference/grpc_service.proto"], ["proto"])?;
    std::fs::write(out.join("descriptors.bin"), files.encode_to_vec())?;
    // `bytes::Bytes` for payloads: a tensor's bytes stay where HTTP/2 put them.
    let mut code = tonic_prost_build::configure().bytes(".torchlane.v1").bytes(".inference");
    // These are the answers of REST too, field by field.
    for message in AS_JSON {
        code = code.type_attribute(format!(".inference.{message}"), "#[derive(serde::Serialize)]");
    }
    code.compile_fds(files)?;

    if env::var_os("CARGO_FEATURE_TORCH").is_some() {
        compile_shim();
    }
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let (Some(_), Some(libtorch)) = (env::var_os("CARGO_FEATURE_TORCH"), env::var_os("LIBTORCH")) {
        let lib = PathBuf::from(libtorch).join("lib");
        // First beside the binary (a container image), then where it was built against.
        println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib:{}", lib.display());
    }
    Ok(())
}

/// The calls into libtorch that tch does not have. Where libtorch lies is found as torch-sys finds it.
fn compile_shim() {
    const SHIM: &str = "src/backend/torch/shim.cpp";
    println!("cargo:rerun-if-changed={SHIM}");
    let set = |name: &str| {
        println!("cargo:rerun-if-env-changed={name}");
        env::var(name).ok()
    };
    let (own, libtorch) = (set("LIBTORCH_INCLUDE"), set("LIBTORCH"));
    let include = Path::new(&own.or(libtorch).unwrap_or_else(|| "/usr".to_owned())).join("include");
    let abi = set("LIBTORCH_CXX11_ABI").unwrap_or_else(|| "1".to_owned());
    cc::Build::new()
        .cpp(true)
        .pic(true)
        .warnings(false)
        .std("c++17")
        .include(include.join("torch/csrc/api/include"))
        .include(include)
        .define("_GLIBCXX_USE_CXX11_ABI", abi.as_str())
        .file(SHIM)
        .compile("torchlane_shim");
}
