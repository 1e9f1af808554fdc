#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| torchlane::api::fuzz::config_pbtxt(data));
