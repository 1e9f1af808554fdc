#!/usr/bin/env bash
# Models from a real S3 server (SeaweedFS) that dies in the middle of a file, and torchlane with it.
# Needs GRPCURL, WIRE_PYTHON and WEED (scripts/tools.sh) and a server: target/debug/torchlane, or WIRE_SERVER.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

bin=${WIRE_SERVER:-${CARGO_TARGET_DIR:-target}/debug/torchlane}
work=$(mktemp -d)
server= store= proxy=
cleanup() {
    for process in $server $store $proxy; do kill -KILL "$process" && wait "$process" || true; done 2>/dev/null
    rm -rf "$work"
}
trap cleanup EXIT
passed=0
ok() { passed=$((passed + 1)); printf 'ok %s\n' "$1"; }
die() { printf 'not ok %s\n' "$1" >&2; tail -5 "$work/log" "$work/weed.log" >&2 || true; exit 1; }
has() { grep -qF -- "$2" <<<"$1" || die "$3: no '$2' in: $1"; }
# within SECONDS COMMAND...: tries until it succeeds.
within() { local n=$(($1 * 20)); shift; for _ in $(seq "$n"); do "$@" >/dev/null 2>&1 && return; sleep 0.05; done; return 1; }

# SeaweedFS adds 10000 to each port for its gRPC.
ports=$("$WIRE_PYTHON" - <<'PYTHON'
import random, socket
def free(port):
    with socket.socket() as s:
        try: s.bind(("127.0.0.1", port))
        except OSError: return False
    return True
found = []
while len(found) < 4:
    port = random.randrange(12000, 22000)
    if port not in found and free(port) and free(port + 10000): found.append(port)
print(*found)
PYTHON
)
read -r master volume filer s3 <<<"$ports"
cat >"$work/s3.json" <<'JSON'
{"identities": [{"name": "reader", "credentials": [{"accessKey": "wire", "secretKey": "wire-secret"}],
                 "actions": ["Read:models", "List:models"]}]}
JSON
mkdir "$work/data"
start_store() {
    "$WEED" server -dir="$work/data" -ip=127.0.0.1 -master.port="$master" -master.volumeSizeLimitMB=16 \
        -volume.port="$volume" -volume.max=8 -filer -filer.port="$filer" -s3 -s3.port="$s3" -s3.config="$work/s3.json" \
        -s3.port.iceberg=0 >>"$work/weed.log" 2>&1 &
    store=$!
}
put() {
    "$WIRE_PYTHON" - "http://127.0.0.1:$filer/buckets/models/prod/$1" "$2" <<'PYTHON'
import sys, urllib.parse, urllib.request
url, path = sys.argv[1:]
host, key = url.split("/buckets/")
url = f"{host}/buckets/{urllib.parse.quote(key)}"
urllib.request.urlopen(urllib.request.Request(url, data=open(path, "rb").read(), method="PUT"), timeout=5)
PYTHON
}
s3_answers() { "$WIRE_PYTHON" -c "import socket; socket.create_connection(('127.0.0.1', $s3), 1)"; }
start_store
within 60 put digits/1/model.pt models/digits/1/model.pt || die "the S3 server takes a file"
put digits/model.toml models/digits/model.toml
put digits/2/model.pt models/digits/2/model.pt
put idle/1/model.pt models/tagger/1/model.pt
# Names that a URL has to encode, and what marks folders.
printf 'read me' >"$work/note"
for name in '100%.txt' 'größe#1.txt' 'a b+c?.txt' '[x]{y}~%41.txt'; do put "digits/2/$name" "$work/note"; done
: >"$work/empty"
put digits/2/folder "$work/empty"
put digits/7/deeper/marker "$work/empty"
within 30 s3_answers || die "the S3 server listens"
"$WIRE_PYTHON" tests/wire/cut.py "$s3" 30000 "$work/cut" >"$work/port" &
proxy=$!
within 10 test -s "$work/port" || die "the proxy listens"

serve() {
    : >"$work/log"
    AWS_ACCESS_KEY_ID=wire AWS_SECRET_ACCESS_KEY=wire-secret AWS_REGION=us-east-1 \
        AWS_ENDPOINT="http://127.0.0.1:$(cat "$work/port")" AWS_ALLOW_HTTP=true \
        "$bin" serve --repository s3://models/prod --grpc-addr 127.0.0.1:0 --http-addr 127.0.0.1:0 --log-format json \
        --set cache.directory="$work/cache" --set store.patience=2s "$@" 2>"$work/log" &
    server=$!
    within 60 grep -q '"message":"listening"' "$work/log" || die "torchlane starts"
    grpc=$(sed -n 's/.*"grpc":"\([0-9.:]*\)".*/\1/p' "$work/log" | head -1)
    http=$(sed -n 's/.*"http":"\([0-9.:]*\)".*/\1/p' "$work/log" | head -1)
}
cli() { "$bin" "$@" --addr "$grpc"; }

# The S3 server dies in the middle of the first model, and torchlane is killed too.
serve
within 30 grep -q '^cut' "$work/cut" || die "the transfer is cut"
kill -KILL "$store" && { wait "$store" 2>/dev/null || true; } && store=
within 30 grep -q 'STORE_UNAVAILABLE\|cannot be read\|gave no byte\|trying again' "$work/log" || die "the log says that the store is gone"
! grep -q 'wire-secret' "$work/log" || die "credentials in the log"
kill -KILL "$server" && { wait "$server" 2>/dev/null || true; } && server=
[ -n "$(find "$work/cache/parts" -name '*.part' -size +0)" ] || die "what had come is kept"
ok "an S3 server that dies in the middle of a file"

had=$(find "$work/cache/parts" -name '*.part' -size +0 -printf '%s\n' | head -1)
size=$(stat -c %s models/digits/2/model.pt)
start_store
within 60 s3_answers || die "the S3 server comes back"
: >"$work/cut"
serve
within 60 grep -q '"message":"ready"' "$work/log" || die "ready after the S3 server came back"
within 30 eval 'cli models | grep -q "digits.*ready"' || die "digits serves"
grep -q "digits/2/model.pt bytes=$had-" "$work/cut" || die "it goes on from byte $had: $(cat "$work/cut")"
! grep -q 'digits/2/model.pt all' "$work/cut" || die "it began anew: $(cat "$work/cut")"
has "$(cli infer digits --image tests/data/digits/png/3-0012.png)" "class 3" "infer"
ok "after a kill -9 of both it goes on from byte $had of $size"
[ "$(find "$work/cache/repos" -name model.pt | grep -c /digits/)" = 1 ] || die "only the version that serves was fetched"
ok "of a model's versions only the one that is loaded is fetched"
for name in '100%.txt' 'größe#1.txt' 'a b+c?.txt' '[x]{y}~%41.txt'; do
    [ "$(cat "$work"/cache/repos/*/*/digits/2/"$name")" = "read me" ] || die "the object '$name'"
done
ok "names with characters that a URL encodes"
has "$(cli reload digits --version 1)" "version 1 is live" "reload"
metrics=$("$WIRE_PYTHON" -c "import urllib.request; print(urllib.request.urlopen('http://$http/metrics').read().decode())")
has "$metrics" 'torchlane_store_fetches_total{store="s3",result="ok"}' "metrics"
has "$metrics" 'torchlane_store_downloaded_bytes_total{store="s3"}' "metrics"
ok "a reload from S3, and its metrics"

# Without the store what is here serves on: a rollback, and even a start.
kill -KILL "$store" && { wait "$store" 2>/dev/null || true; } && store=
has "$(cli rollback digits)" "version 2 is live" "rollback without the store"
answer=$(cli reload nothing 2>&1 || true)
has "$answer" "STORE_UNAVAILABLE" "an unknown model while the store is away"
kill -KILL "$server" && { wait "$server" 2>/dev/null || true; } && server=
serve
within 60 eval 'cli models | grep -q "digits.*ready"' || die "a start without the store"
has "$(cli infer digits --image tests/data/digits/png/3-0012.png)" "class 3" "infer without the store"
ok "rollback and restart while the S3 server is away"

# No file may grow over 40 KiB, as on a disk that is full: the write itself fails. The log goes through a pipe.
kill "$server" && { wait "$server" || true; } && server=
start_store
within 60 s3_answers || die "the S3 server comes back"
mkfifo "$work/pipe"
cat "$work/pipe" >"$work/full.log" &
(
    trap '' XFSZ
    ulimit -f 40
    AWS_ACCESS_KEY_ID=wire AWS_SECRET_ACCESS_KEY=wire-secret AWS_REGION=us-east-1 \
        AWS_ENDPOINT="http://127.0.0.1:$(cat "$work/port")" AWS_ALLOW_HTTP=true \
        exec "$bin" check --repository s3://models/prod --set cache.directory="$work/small" >"$work/out" 2>"$work/pipe"
) && die "a model that does not fit on the disk" || true
has "$(cat "$work/out")" "cache.directory" "a disk that is full"
has "$(cat "$work/out")" "digits/2/model.pt" "a disk that is full"
# What was small enough is there, and whole.
[ -z "$(find "$work/small/objects" "$work/small/parts" -type f -size +16k)" ] || die "nothing of the archive is left"
ok "a disk that is full is named, and nothing is left behind"
printf '%d passed, 0 failed\n' "$passed"
