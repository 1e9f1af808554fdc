#!/usr/bin/env bash
# Names everything that is missing on this machine, each with the line that installs it on Debian.
# With `--test`, also what only the tests need.
set -euo pipefail

rust_needed=1.88
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
for_tests=
[ "${1:-}" != --test ] || for_tests=yes

missing=()
lacks() { missing+=("$(printf '  %-38s %s' "$1" "$2")"); }
has() { command -v "$1" >/dev/null 2>&1; }

if ! has cargo || ! has rustc; then
    lacks "cargo and rustc (Rust $rust_needed or newer)" "https://rustup.rs  (Debian 13 on: sudo apt-get install rustup && rustup default stable)"
else
    rust=$(rustc --version 2>/dev/null | awk '{ print $2 }' || true)
    if [ -z "$rust" ] || [ "$(printf '%s\n' "$rust_needed" "$rust" | sort -V | head -1)" != "$rust_needed" ]; then
        lacks "Rust $rust_needed or newer (here: ${rust:-none set})" "rustup update stable && rustup default stable"
    fi
    if [ -n "$for_tests" ]; then
        cargo fmt --version >/dev/null 2>&1 || lacks "rustfmt" "rustup component add rustfmt"
        cargo clippy --version >/dev/null 2>&1 || lacks "clippy" "rustup component add clippy"
    fi
fi

has cc || lacks "a C compiler and linker (cc)" "sudo apt-get install gcc libc6-dev"
if [ -n "${CXX:-}" ]; then
    has "${CXX%% *}" || lacks "the C++ compiler that CXX names" "unset CXX, or install $CXX"
else
    has c++ || lacks "a C++ compiler (c++)" "sudo apt-get install g++"
fi
has make || lacks "make" "sudo apt-get install make"
has flock || lacks "flock" "sudo apt-get install util-linux"

# Python fetches libtorch, once. A server that is built needs none.
if [ -n "$for_tests" ] || ! "$here/libtorch.sh" --ready; then
    if ! has python3; then
        lacks "python3 with pip and venv" "sudo apt-get install python3 python3-pip python3-venv"
    else
        python3 -m pip --version >/dev/null 2>&1 || lacks "pip for python3" "sudo apt-get install python3-pip"
        if [ -n "$for_tests" ]; then
            python3 -c 'import venv, ensurepip' 2>/dev/null || lacks "venv for python3" "sudo apt-get install python3-venv"
        fi
    fi
fi

if [ ${#missing[@]} -gt 0 ]; then
    {
        echo "setup: missing on this machine, and what installs it on Debian:"
        printf '%s\n' "${missing[@]}"
    } >&2
    exit 1
fi
