#!/usr/bin/env bash
# A page of calls with grpcurl (https://github.com/fullstorydev/grpcurl), which asks the server for its API by reflection:
#   examples/grpcurl.sh 127.0.0.1:50051
# GRPCURL names another grpcurl than that on the PATH.
set -euo pipefail

address=${1:-127.0.0.1:50051}
call() { "${GRPCURL:-grpcurl}" -plaintext "$@"; }

# The pixels of tests/data/digits/png/3-0012.png, from 0 to 1, as JSON: picture 12 of those in heldout.bin, 65 bytes each
# after the first four.
held_out=$(dirname "${BASH_SOURCE[0]}")/../tests/data/digits/heldout.bin
pixels=$(od -An -v -tu1 -j $((4 + 12 * 65)) -N 64 "$held_out" |
    awk '{ for (i = 1; i <= NF; i++) printf "%s%g", n++ ? "," : "", $i / 16 }')

echo "# what the server offers"
call "$address" list
call "$address" describe torchlane.v1.InferRequest

echo "# health: of the server, and of a model"
call -d '{}' "$address" grpc.health.v1.Health/Check
call -d '{"service": "digits"}' "$address" grpc.health.v1.Health/Check

echo "# the models"
call -d '{}' "$address" torchlane.v1.ModelServer/ListModels
call -d '{"model": "digits"}' "$address" torchlane.v1.ModelServer/GetModel

echo "# a picture, before others, within two seconds; numbers in, numbers out"
answer=$(call -max-time 2 -d '{
  "model": "digits", "priority": "HIGH", "request_id": "by hand", "parameters": {"typed": "true"},
  "inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "float_data": ['"$pixels"']}]
}' "$address" torchlane.v1.ModelServer/Infer)
printf '%s\n' "$answer"
# The place of the largest of the ten probabilities, which stand one in a line.
awk '/floatData/ { on = 1; next }
    on && /]/ { exit }
    on { gsub(",", ""); if ($1 + 0 > best) { best = $1 + 0; digit = n + 0 } n++ }
    END { print "digit " digit }' <<<"$answer"

echo "# a refusal: it has a reason, and where it helps the field at fault or a time to come back"
call -d '{"model": "digits", "inputs": [{"name": "image", "datatype": "FP32", "shape": [1], "float_data": [0]}]}' \
    "$address" torchlane.v1.ModelServer/Infer || true

echo "# another version, and back"
call -max-time 60 -d '{"model": "digits", "version": "1"}' "$address" torchlane.v1.ModelServer/ReloadModel
call -max-time 60 -d '{"model": "digits"}' "$address" torchlane.v1.ModelServer/RollbackModel

echo "# the same by the Open Inference Protocol: is it ready, what does it take, and the picture"
call -d '{"name": "digits"}' "$address" inference.GRPCInferenceService/ModelReady
call -d '{"name": "digits"}' "$address" inference.GRPCInferenceService/ModelMetadata
# A timeout is in microseconds; outputs are bytes, which grpcurl prints in base64.
call -d '{
  "model_name": "digits", "id": "by hand", "parameters": {"priority": {"int64_param": 2}, "timeout": {"int64_param": 2000000}},
  "inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "contents": {"fp32_contents": ['"$pixels"']}}]
}' "$address" inference.GRPCInferenceService/ModelInfer
