#!/usr/bin/env bash
# Writes scripts/NAME-requirements.txt from scripts/NAME-requirements.in: all that is needed, each at one version and with the
# digests of its files. For newer versions, change the .in and run it again:
# A line `# no-deps: PACKAGE==VERSION` pins a package without what it asks for.
#   scripts/pin.sh wire oip
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

[ $# -gt 0 ] || { echo "usage: scripts/pin.sh NAME..." >&2 && exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check pip-tools==7.6.2
for name in "$@"; do
    {
        sed '/^#/!Q' "$name-requirements.in"
        # Where they are fetched from is each machine's own business.
        "$work/venv/bin/python" -m piptools compile --quiet --generate-hashes --allow-unsafe --strip-extras \
            --no-annotate --no-header --no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
            --output-file - "$name-requirements.in"
        for package in $(sed -n 's/^# no-deps: //p' "$name-requirements.in"); do
            rm -rf "$work/one"
            "$work/venv/bin/python" -m pip download --quiet --no-deps --only-binary=:all: --dest "$work/one" "$package"
            printf '%s \\\n    --hash=sha256:%s\n' "$package" "$(sha256sum "$work"/one/* | cut -d' ' -f1)"
        done
    } >"$work/$name.txt"
    cat "$work/$name.txt" >"$name-requirements.txt"
done
