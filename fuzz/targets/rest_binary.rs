#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| torchlane::api::fuzz::rest_binary(data));
