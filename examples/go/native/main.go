// Classifies a picture with the sample model digits, over torchlane's own API:
//
//	examples/go/build.sh && examples/go/bin/native 127.0.0.1:50051 tests/data/digits/png/3-0012.png
package main

import (
	"context"
	"log"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"torchlane.example/clients/digit"
	pb "torchlane.example/clients/gen/torchlane"
)

// With dns:///NAME:PORT as the address, calls go to each of the name's addresses in turn. What cannot be served now is tried
// again; repetitions stay within a tenth of the good answers.
const service = `{
  "loadBalancingConfig": [{"round_robin": {}}],
  "methodConfig": [{
    "name": [{"service": "torchlane.v1.ModelServer", "method": "Infer"}],
    "retryPolicy": {
      "maxAttempts": 4, "initialBackoff": "0.05s", "maxBackoff": "2s", "backoffMultiplier": 2,
      "retryableStatusCodes": ["UNAVAILABLE"]
    }
  }],
  "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1}
}`

func main() {
	address, pixels := digit.Arguments()
	connection, err := grpc.NewClient(address,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultServiceConfig(service))
	if err != nil {
		log.Fatal(err)
	}
	// The deadline travels with the request: past it the server does not run it.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	answer, err := pb.NewModelServerClient(connection).Infer(ctx, &pb.InferRequest{
		Model:    "digits",
		Priority: pb.Priority_HIGH,
		Inputs: []*pb.Tensor{
			{Name: "image", Datatype: "FP32", Shape: []int64{1, 1, 8, 8}, Raw: digit.Bytes(pixels)},
		},
		Outputs: []string{"probabilities"},
	})
	if err != nil {
		log.Fatalf("refused: %v: %s", status.Code(err), status.Convert(err).Message())
	}
	digit.Print(answer.GetOutputs()[0].GetRaw(), answer.GetVersion())
}
