#!/usr/bin/env bash
# Feeds the decoders with made-up bytes: each target of fuzz/ for SECONDS_EACH (300). Ends with an error where one breaks.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${SECONDS_EACH:-300}
cargo_fuzz=${TORCHLANE_CACHE:-$HOME/.cache/torchlane}/tools/cargo-fuzz
if [ ! -x "$cargo_fuzz/bin/cargo-fuzz" ]; then
    cargo install --quiet --locked --root "$cargo_fuzz" --version 0.13.1 cargo-fuzz
fi
export PATH="$cargo_fuzz/bin:$PATH"
for target in native open_inference rest_json rest_binary config_pbtxt; do
    echo "== $target, $seconds s"
    mkdir -p "fuzz/corpus/$target"
    # No sanitizer: the code has no unsafe block, and a stable compiler is enough.
    cargo fuzz run --sanitizer none "$target" "fuzz/corpus/$target" "fuzz/seeds/$target" -- \
        -max_total_time="$seconds" -max_len=65536 -rss_limit_mb=2048 -timeout=10
done
