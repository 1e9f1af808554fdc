//! Compiles the calls into libtorch that tch does not have, and tells the linker of this crate's tests where libtorch lies.

use std::{
    env,
    path::{Path, PathBuf},
};

fn main() {
    compile_shim();
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let Some(libtorch) = env::var_os("LIBTORCH") {
        let lib = PathBuf::from(libtorch).join("lib");
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    }
}

/// The calls into libtorch that tch does not have. Where libtorch lies is found as torch-sys finds it.
fn compile_shim() {
    const SHIM: &str = "src/shim.cpp";
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
