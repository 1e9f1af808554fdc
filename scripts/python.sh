#!/usr/bin/env bash
# Prints a Python with what a requirements file names, in a virtual environment in the user's cache:
#   scripts/python.sh tools/models/requirements.txt
set -euo pipefail

requirements=$1
cache=${TORCHLANE_CACHE:-${XDG_CACHE_HOME:-${HOME:?is not set: set TORCHLANE_CACHE}/.cache}/torchlane}
mkdir -p "$cache/tools"
cache=$(cd "$cache" && pwd)
tag=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')-$(sha256sum "$requirements" | cut -c1-12)
venv=$cache/tools/models-python-$tag

say() { printf 'python: %s\n' "$*" >&2; }

exec 9>"$cache/tools/.python.lock"
flock --nonblock 9 || { say "another run is installing; waiting for that one"; flock 9; }
if ! { [ -e "$venv/complete" ] && "$venv/bin/python" -c '' 2>/dev/null; }; then
    say "installing PyTorch for making models into $venv (5 GB in all, once)"
    rm -rf "$venv"
    python3 -m venv "$venv" >&2
    progress=off
    [ ! -t 2 ] || progress=on
    "$venv/bin/python" -m pip install --disable-pip-version-check --quiet --no-input --no-cache-dir --progress-bar "$progress" \
        --only-binary=:all: --requirement "$requirements" >&2 9>&-
    touch "$venv/complete"
fi
printf '%s\n' "$venv/bin/python"
