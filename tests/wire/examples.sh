#!/usr/bin/env bash
# Every client in examples/ against one server, as their heads say how to run them: each must find out which digit it is.
# Needs GRPCURL, WIRE_PYTHON, OIP_PYTHON and GO_EXAMPLES (scripts/tools.sh), target/debug/examples/client, and a server:
# target/debug/torchlane, or WIRE_SERVER.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

bin=${WIRE_SERVER:-${CARGO_TARGET_DIR:-target}/debug/torchlane}
work=$(mktemp -d)
server=
cleanup() {
    if [ -n "$server" ]; then kill -KILL "$server" 2>/dev/null || true; fi
    rm -rf "$work"
}
trap cleanup EXIT
passed=0
die() { printf 'not ok %s\n' "$1" >&2; [ ! -f "$work/log" ] || tail -5 "$work/log" >&2; exit 1; }
# example WHAT COMMAND...: runs it; what it prints must have a line that begins with "digit N".
example() {
    local what=$1 answer
    shift
    answer=$("$@" 2>&1) || die "$what: $answer"
    grep -qE "^digit $digit( |\$)" <<<"$answer" || die "$what: no 'digit $digit' in: $answer"
    passed=$((passed + 1))
    printf 'ok %s: %s\n' "$what" "$(grep -E '^digit ' <<<"$answer")"
}

"$WIRE_PYTHON" -m grpc_tools.protoc -Iproto --python_out="$work" --grpc_python_out="$work" \
    proto/torchlane/v1/model_server.proto proto/inference/grpc_service.proto proto/inference/model_config.proto

"$bin" serve --repository models --grpc-addr 127.0.0.1:0 --http-addr 127.0.0.1:0 --log-format json 2>"$work/log" &
server=$!
address() { sed -n 's/.*"'"$1"'":"\([0-9.:]*\)".*/\1/p' "$work/log" | head -1; }
for _ in $(seq 600); do grep -q '"message":"ready"' "$work/log" && break; sleep 0.02; done
grep -q '"message":"ready"' "$work/log" || die "the server is ready"
grpc=$(address grpc) http=$(address http)

for picture in tests/data/digits/png/3-0012.png tests/data/digits/png/7-0003.png; do
    name=${picture##*/} digit=${picture##*/}
    digit=${digit%%-*}
    example "Rust, $name" "${CARGO_TARGET_DIR:-target}/debug/examples/client" "$grpc" "$picture"
    example "Go, native, $name" "$GO_EXAMPLES/native" "$grpc" "$picture"
    example "Go, Open Inference, $name" "$GO_EXAMPLES/oip" "$grpc" "$picture"
    example "Python, Open Inference, $name" \
        env PYTHONPATH="$work" "$WIRE_PYTHON" examples/oip_grpcio.py "$grpc" "$picture"
    example "tritonclient, gRPC, $name" "$OIP_PYTHON" examples/triton_grpc.py "$grpc" "$picture"
    example "tritonclient, HTTP, $name" "$OIP_PYTHON" examples/triton_http.py "$http" "$picture"
done
digit=3
example "grpcurl" examples/grpcurl.sh "$grpc"
has() { grep -qF -- "$1" <<<"$answer" || die "Python, native: no '$1' in: $answer"; }
answer=$(PYTHONPATH=$work "$WIRE_PYTHON" examples/client.py "$grpc") || die "Python, native: $answer"
has "360 pictures"
passed=$((passed + 1))
printf 'ok Python, native: %s\n' "$(tail -1 <<<"$answer")"

kill "$server" && wait "$server" && server= || die "the server ends well"
# Nobody is there any more: one line that says so, and a status that does.
"${CARGO_TARGET_DIR:-target}/debug/examples/client" "$grpc" >"$work/out" 2>&1 && die "a server that is gone"
grep -q "^error: cannot reach a server: $grpc: " "$work/out" || die "a server that is gone: $(cat "$work/out")"
[ "$(wc -l <"$work/out")" = 1 ] || die "an error is one line"
passed=$((passed + 1))
echo "ok a server that is gone"
printf '%d passed, 0 failed\n' "$passed"
