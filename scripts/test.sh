#!/usr/bin/env bash
# Every check, one after another; stops at the first that fails and names it. `make test` sets the machine up first.
# Steps named as arguments are the only ones run: scripts/test.sh fmt clippy
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
cargo_deny_version=0.20.2

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
# Everything is compiled once: incremental state would only cost time and disk.
export CARGO_INCREMENTAL=0

# The tests with libtorch are all of those without: these are for machines that have none.
steps=(fmt clippy-no-torch clippy test deny advisories wire console)
declare -A does=(
    [fmt]="formatting"
    [clippy-no-torch]="clippy without libtorch"
    [test-no-torch]="tests without libtorch"
    [clippy]="clippy"
    [test]="tests"
    [deny]="licences, bans and sources of the dependencies"
    [advisories]="security advisories"
    [wire]="grpcurl, clients in several languages, an S3 server, a collector, Prometheus, the Open Inference Protocol and broken versions"
    [console]="the console in a browser"
)

# The checks share the tests' profile, so that libtorch's C++ bindings (two minutes) are compiled once for both.
step_fmt() { cargo fmt --all --check; }
step_clippy-no-torch() { cargo clippy --workspace --exclude torchlane-torch --profile test --all-targets --no-default-features --locked -- -D warnings; }
step_test-no-torch() { cargo test --workspace --exclude torchlane-torch --no-default-features --locked; }
step_clippy() { cargo clippy --workspace --profile test --all-targets --locked -- -D warnings; }
step_test() { cargo test --workspace --locked; }
# What the steps after it serve with: the server that the tests have built. It checks for overflows and what its libraries assert,
# and is there minutes before a release build would be.
server() { cargo build --profile test --bin torchlane --example client --locked --quiet; }

# Prints a cargo-deny: the user's own of this version, else one installed once for all clones.
cargo_deny() {
    local root
    if [ "$(cargo-deny --version 2>/dev/null)" = "cargo-deny $cargo_deny_version" ]; then
        command -v cargo-deny
        return
    fi
    root=${TORCHLANE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/torchlane}/tools/cargo-deny-$cargo_deny_version
    if [ ! -x "$root/bin/cargo-deny" ]; then
        echo "installing cargo-deny $cargo_deny_version, once (one to two minutes)" >&2
        mkdir -p "$root"
        # Not optimised: it runs for a second, and would compile for three times as long. cargo builds it in a
        # temporary folder of its own and keeps two installs into one root apart.
        env -u CARGO_TARGET_DIR CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off \
            CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
            cargo install --locked --quiet "cargo-deny@$cargo_deny_version" --root "$root" >&2
    fi
    printf '%s\n' "$root/bin/cargo-deny"
}
step_deny() {
    local deny
    deny=$(cargo_deny)
    "$deny" --locked check licenses bans sources
}
step_advisories() {
    local deny
    deny=$(cargo_deny)
    if ! timeout 60 "$deny" --locked fetch db >/dev/null 2>&1; then
        echo "SKIPPED: the advisory database cannot be reached from here"
        return
    fi
    "$deny" --locked check --disable-fetch advisories
}

step_wire() {
    local tools prometheus
    if [ ! -x tests/wire/run.sh ]; then
        echo "SKIPPED: there is no tests/wire/run.sh"
        return
    fi
    tools=$(scripts/tools.sh)
    eval "$tools"
    server
    tests/wire/run.sh
    tests/wire/examples.sh
    tests/wire/store.sh
    tests/wire/oip/run.sh
    "$WIRE_PYTHON" tests/wire/faults.py
    "$WIRE_PYTHON" tests/wire/hostile.py
    "$WIRE_PYTHON" tests/wire/traces.py
    prometheus=$(scripts/prometheus.sh)
    "$WIRE_PYTHON" tests/wire/dashboard.py "$prometheus"
}

step_console() {
    local chromium
    chromium=$(scripts/chromium.sh)
    if [ -z "$chromium" ]; then
        echo "SKIPPED: there is no Chromium here"
        return
    fi
    server
    python3 tests/wire/console.py "$chromium"
}

took() { printf '%dm%02ds' $(($1 / 60)) $(($1 % 60)); }

[ $# -eq 0 ] || steps=("$@")
current=
finish() {
    local status=$?
    if [ $status -ne 0 ] && [ -n "$current" ]; then
        printf '\nFAILED: %s (again: scripts/test.sh %s)\n' "${does[$current]}" "$current" >&2
    fi
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

began=$SECONDS
for step in "${steps[@]}"; do
    [ -n "${does[$step]:-}" ] || { echo "no such step: $step (there are: ${!does[*]})" >&2 && exit 2; }
    current=$step
    since=$SECONDS
    printf '\n== %s\n' "${does[$step]}"
    "step_$step" </dev/null
    printf '== %s: fine, %s\n' "${does[$step]}" "$(took $((SECONDS - since)))"
done
current=
printf '\nAll %d checks passed in %s\n' "${#steps[@]}" "$(took $((SECONDS - began)))"
