#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| torchlane::api::fuzz::open_inference(data));
