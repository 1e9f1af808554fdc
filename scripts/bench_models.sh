#!/usr/bin/env bash
# Makes the benchmark's models in bench-models/, unless they are there. MODELS_PYTHON names a Python that has PyTorch already.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
maker=tools/models/bench_models.py
mark=bench-models/.made-by
made_by=$(cat "$maker" tools/models/archive.py tools/models/requirements.txt | sha256sum | cut -d' ' -f1)
[ "$(cat "$mark" 2>/dev/null)" != "$made_by" ] || exit 0

python=${MODELS_PYTHON:-$(scripts/python.sh tools/models/requirements.txt)}
rm -rf bench-models bench-models.part
"$python" -W ignore "$maker" bench-models.part
mv bench-models.part bench-models
printf '%s\n' "$made_by" >"$mark"
