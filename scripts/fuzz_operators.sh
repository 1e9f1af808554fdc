#!/usr/bin/env bash
# Calls every operator that models may call with odd arguments. MODELS_PYTHON names a Python that has PyTorch already.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${MODELS_PYTHON:-$(scripts/python.sh tools/models/requirements.txt)}
"$python" -W ignore tools/operators/fuzz.py "$@"
