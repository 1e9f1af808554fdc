#!/usr/bin/env bash
# Generates code from proto/ and builds both programs into examples/go/bin, or into the folder that is named:
#   examples/go/build.sh
# Needs Go from 1.25 on (GO names another than that on the PATH) and a protoc: Python's grpcio-tools bring one (PYTHON
# names a Python that has them: pip install grpcio-tools).
set -euo pipefail

# The first is the version of google.golang.org/protobuf in go.mod.
protoc_gen_go=v1.36.11
protoc_gen_go_grpc=v1.6.2

out=$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/bin}")
cd "$(dirname "${BASH_SOURCE[0]}")"
go=${GO:-go} python=${PYTHON:-python3}
plugins=$PWD/bin/plugins
module=torchlane.example/clients

GOBIN=$plugins "$go" install "google.golang.org/protobuf/cmd/protoc-gen-go@$protoc_gen_go"
GOBIN=$plugins "$go" install "google.golang.org/grpc/cmd/protoc-gen-go-grpc@$protoc_gen_go_grpc"

options=("module=$module" "Mtorchlane/v1/model_server.proto=$module/gen/torchlane")
for file in inference/grpc_service.proto inference/model_config.proto; do
    options+=("M$file=$module/gen/inference")
done
PATH=$plugins:$PATH "$python" -m grpc_tools.protoc -I../../proto --go_out=. --go-grpc_out=. \
    "${options[@]/#/--go_opt=}" "${options[@]/#/--go-grpc_opt=}" \
    torchlane/v1/model_server.proto inference/grpc_service.proto inference/model_config.proto

mkdir -p "$out"
CGO_ENABLED=0 "$go" build -trimpath -buildvcs=false -o "$out/" ./native ./oip
