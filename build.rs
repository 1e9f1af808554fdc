//! Generates the gRPC code (with protox, so no `protoc` is needed) and tells the linker where libtorch lies,
//! so that the binary finds it at run time without an environment variable.

use std::{env, path::PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    println!("cargo:rerun-if-changed=proto");

    let files = protox::compile(["torchlane/v1/model_server.proto"], ["proto"])?;
    std::fs::write(out.join("descriptors.bin"), files.encode_to_vec())?;
    // `bytes::Bytes` for payloads: a tensor's bytes stay where HTTP/2 put them.
    tonic_prost_build::configure().bytes(".torchlane.v1").compile_fds(files)?;
    // `torchlane bench` speaks the Open Inference Protocol to whatever server does.
    let inference = protox::compile(["inference/grpc_service.proto"], ["proto"])?;
    tonic_prost_build::configure().bytes(".inference").build_server(false).compile_fds(inference)?;

    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let (Some(_), Some(libtorch)) = (env::var_os("CARGO_FEATURE_TORCH"), env::var_os("LIBTORCH")) {
        let lib = PathBuf::from(libtorch).join("lib");
        // First beside the binary (a container image), then where it was built against.
        println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib:{}", lib.display());
    }
    Ok(())
}
