#!/usr/bin/env bash
# Makes the zoo and serves it under load for SECONDS (600). MODELS_PYTHON names a Python that has PyTorch already.
#   scripts/zoo.sh [SECONDS]
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${MODELS_PYTHON:-$(scripts/python.sh tools/models/requirements.txt)}
tools=$(scripts/tools.sh)
eval "$tools"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -W ignore tests/zoo/models.py "$work/zoo"
WIRE_SERVER=${CARGO_TARGET_DIR:-target}/release/torchlane "$WIRE_PYTHON" tests/zoo/run.py "$work/zoo" "$@"
