#!/usr/bin/env bash
# Makes the committed models and their golden outputs again. MODELS_PYTHON names a Python that has PyTorch already.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${MODELS_PYTHON:-$(scripts/python.sh tools/models/requirements.txt)}
for maker in digits tagger read_digits test_models; do
    echo "== $maker"
    "$python" -W ignore "tools/models/$maker.py"
done
