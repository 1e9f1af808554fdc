// Classifies a picture with the sample model digits, over the Open Inference Protocol:
//
//	examples/go/build.sh && examples/go/bin/oip 127.0.0.1:50051 tests/data/digits/png/3-0012.png
package main

import (
	"context"
	"log"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"torchlane.example/clients/digit"
	pb "torchlane.example/clients/gen/inference"
)

const priorityHigh = 2

func main() {
	address, pixels := digit.Arguments()
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	// The deadline travels with the request: past it the server does not run it.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	answer, err := pb.NewGRPCInferenceServiceClient(connection).ModelInfer(ctx, &pb.ModelInferRequest{
		ModelName: "digits",
		Inputs: []*pb.ModelInferRequest_InferInputTensor{
			{Name: "image", Datatype: "FP32", Shape: []int64{1, 1, 8, 8}},
		},
		Outputs: []*pb.ModelInferRequest_InferRequestedOutputTensor{{Name: "probabilities"}},
		// One entry for each input. The other way is Contents of the input.
		RawInputContents: [][]byte{digit.Bytes(pixels)},
		Parameters: map[string]*pb.InferParameter{
			"priority": {ParameterChoice: &pb.InferParameter_Int64Param{Int64Param: priorityHigh}},
		},
	})
	if err != nil {
		log.Fatalf("refused: %v: %s", status.Code(err), status.Convert(err).Message())
	}
	digit.Print(answer.GetRawOutputContents()[0], answer.GetModelVersion())
}
