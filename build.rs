//! Tells the linker where libtorch lies, so that the binary finds it at run time without an environment variable.

use std::{env, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let (Some(_), Some(libtorch)) = (env::var_os("CARGO_FEATURE_TORCH"), env::var_os("LIBTORCH")) {
        let lib = PathBuf::from(libtorch).join("lib");
        // First beside the binary (a container image), then where it was built against.
        println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib:{}", lib.display());
    }
}
