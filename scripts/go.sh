#!/usr/bin/env bash
# Prints a Go from 1.25 on: the user's own where that is new enough, else one that is put into the folder named, which the
# caller removes (70 MB to fetch):
#   go=$(scripts/go.sh "$work")
set -euo pipefail

needed=1.25 # what the modules that are built with it ask for
into=$1
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

go=$(command -v go || true)
have=
[ -z "$go" ] || have=$(GOTOOLCHAIN=local "$go" env GOVERSION 2>/dev/null | sed 's/^go//' || true)
if [ -z "$have" ] || [ "$(printf '%s\n' "$needed" "$have" | sort -V | head -1)" != "$needed" ]; then
    go=$into/go-venv/bin/go
    if [ ! -x "$go" ]; then
        echo "go: none from $needed on here: fetching one" >&2
        python3 -m venv "$into/go-venv" >&2
        "$into/go-venv/bin/python" -m pip install --quiet --require-hashes --only-binary=:all: \
            --requirement "$here/go-requirements.txt" >&2
    fi
fi
printf '%s\n' "$go"
