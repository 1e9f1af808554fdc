#!/usr/bin/env bash
# Installs what the wire tests use, once for each user and pinned: a Python with grpcio and an S3 server (SeaweedFS), another
# with clients of the Open Inference Protocol, grpcurl, the Go examples as programs, and OpenTelemetry's collector.
#
# Standard output is for `eval "$(scripts/tools.sh)"`: it sets WIRE_PYTHON, WEED, OIP_PYTHON, GRPCURL, GO_EXAMPLES and
# COLLECTOR. All else goes to standard error.
set -euo pipefail

grpcurl_version=v1.9.4

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${TORCHLANE_CACHE:-${XDG_CACHE_HOME:-${HOME:?is not set: set TORCHLANE_CACHE}/.cache}/torchlane}
mkdir -p "$cache"
cache=$(cd "$cache" && pwd)

say() { printf 'tools: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

# A folder is named after what is in it, so that another pin or another Python gets a folder of its own.
python_tag=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
tag() { cat "$@" | sha256sum | cut -c1-12; }
venv=$cache/tools/wire-python-$python_tag-$(tag "$here/wire-requirements.txt")
# Apart from the other one: these clients ask for an older protobuf.
oip=$cache/tools/oip-python-$python_tag-$(tag "$here/oip-requirements.txt")
grpcurl=$cache/tools/grpcurl-$grpcurl_version/grpcurl
root=$(dirname "$here")
go_sources=("$root"/examples/go/{build.sh,go.mod,go.sum,*/main.go,digit/*.go} "$root"/proto/*/*.proto "$root"/proto/*/*/*.proto)
go_examples=$cache/tools/go-examples-$(tag "${go_sources[@]}")
collector=$cache/tools/collector-$(tag "$root"/tests/wire/collector/{main.go,go.mod,go.sum})

answer() {
    printf 'export WIRE_PYTHON=%q\nexport WEED=%q\nexport GRPCURL=%q\n' "$venv/bin/python" "$venv/bin/weed" "$grpcurl"
    printf 'export OIP_PYTHON=%q\nexport GO_EXAMPLES=%q\n' "$oip/bin/python" "$go_examples"
    printf 'export COLLECTOR=%q\n' "$collector"
}

is_whole() { [ -e "$1/complete" ] && "$1/bin/python" -c '' 2>/dev/null; }
done_already() {
    is_whole "$venv" && is_whole "$oip" && [ -x "$grpcurl" ] && [ -x "$go_examples/oip" ] && [ -x "$collector" ]
}

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

# install_python FOLDER REQUIREMENTS WHAT MODULES: a Python with what a file of requirements names.
install_python() {
    ! is_whole "$1" || return 0
    say "installing $3 for Python $python_tag"
    # A virtual environment cannot be moved: a mark, written last, says that this one is whole.
    rm -rf "$1"
    python3 -m venv "$1" >&2 || die "no virtual environment: sudo apt-get install python3-venv"
    # The files name everything. What they leave out of a package's own list is not used here, and may not go together.
    "$1/bin/python" -m pip install --quiet --require-hashes --no-deps --only-binary=:all: --requirement "$2" >&2 9>&- ||
        die "pip could not install $3 (it says why above)"
    "$1/bin/python" -c "import $4"
    touch "$1/complete"
}
install_python "$venv" "$here/wire-requirements.txt" "grpcio, its tools and SeaweedFS" \
    "grpc, grpc_tools.protoc, grpc_health.v1.health_pb2, opentelemetry.proto.trace.v1.trace_pb2, PIL.Image"
install_python "$oip" "$here/oip-requirements.txt" "Triton's and KServe's clients, pytest and schemathesis" \
    "tritonclient.grpc.aio, tritonclient.http.aio, schemathesis, zstandard, PIL.Image"

# Go's caches are kept apart and thrown away: they would be 1 GB.
with_go() {
    go=$("$here/go.sh" "$work" 9>&-) || die "there is no Go (it says why above)"
    env -u GOROOT GOWORK=off GOFLAGS=-modcacherw GOTOOLCHAIN=local CGO_ENABLED=0 GO="$go" PYTHON="$venv/bin/python" \
        GOPATH="$work/go" GOMODCACHE="$work/go/mod" GOCACHE="$work/go/build" GOBIN="$work/bin" "$@" >&2 9>&-
}

if [ ! -x "$grpcurl" ]; then
    say "building grpcurl $grpcurl_version (about a minute)"
    mkdir -p "$work/bin"
    with_go bash -c '"$GO" install -trimpath "$1"' - "github.com/fullstorydev/grpcurl/cmd/grpcurl@$grpcurl_version" ||
        die "grpcurl could not be built (Go says why above)"
    mkdir -p "$(dirname "$grpcurl")"
    mv "$work/bin/grpcurl" "$grpcurl"
fi
"$grpcurl" --version >/dev/null 2>&1 || die "$grpcurl does not run: remove it and run this again"

if [ ! -x "$go_examples/oip" ]; then
    say "building the Go examples (about a minute)"
    with_go "$root/examples/go/build.sh" "$work/examples" || die "the Go examples could not be built (it says why above)"
    rm -rf "$go_examples"
    mv "$work/examples" "$go_examples"
fi

if [ ! -x "$collector" ]; then
    say "building OpenTelemetry's collector (two minutes)"
    with_go bash -c 'cd "$1" && "$GO" build -trimpath -buildvcs=false -ldflags=-s -o "$2" .' - \
        "$root/tests/wire/collector" "$work/collector" || die "the collector could not be built (Go says why above)"
    mv "$work/collector" "$collector"
fi
answer
