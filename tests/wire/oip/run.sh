#!/usr/bin/env bash
# The Open Inference Protocol as its clients know it, against the real server. What is called is in CALLS.md.
# Needs OIP_PYTHON and WIRE_PYTHON (scripts/tools.sh) and a server: target/debug/torchlane, or WIRE_SERVER. Arguments go to pytest: -k stream, -x, ...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

# What hypothesis would keep from run to run.
HYPOTHESIS_STORAGE_DIRECTORY=$(mktemp -d)
export HYPOTHESIS_STORAGE_DIRECTORY
trap 'rm -rf "$HYPOTHESIS_STORAGE_DIRECTORY"' EXIT
# Names of messages and services are the same in every client, so those that do not go together have a process of their own.
pytest() { "$OIP_PYTHON" -B -m pytest -c tests/wire/oip/pytest.ini --rootdir tests/wire/oip "$@"; }
pytest --ignore=tests/wire/oip/kserve_client tests/wire/oip "$@"
pytest tests/wire/oip/kserve_client "$@"
