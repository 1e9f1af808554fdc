// Package digit is what both programs share: a picture in, a digit out.
package digit

import (
	"encoding/binary"
	"fmt"
	"image/color"
	"image/png"
	"log"
	"math"
	"os"
)

// Arguments returns the server's address and the pixels of a picture, from 0 to 1, as the command line says.
func Arguments() (address string, pixels []float32) {
	address, picture := "127.0.0.1:50051", "tests/data/digits/png/3-0012.png"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	if len(os.Args) > 2 {
		picture = os.Args[2]
	}
	file, err := os.Open(picture)
	if err != nil {
		log.Fatal(err)
	}
	defer file.Close()
	decoded, err := png.Decode(file)
	if err != nil {
		log.Fatalf("%s: %v", picture, err)
	}
	bounds := decoded.Bounds()
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			grey := color.GrayModel.Convert(decoded.At(x, y)).(color.Gray)
			pixels = append(pixels, float32(grey.Y)/255)
		}
	}
	return address, pixels
}

// Bytes returns a tensor's elements as they travel: row-major, little-endian.
func Bytes(values []float32) []byte {
	var raw []byte
	for _, value := range values {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(value))
	}
	return raw
}

// Print says which digit has the highest of the ten probabilities in raw.
func Print(raw []byte, version string) {
	digit, highest := 0, float32(-1)
	for i := 0; i+4 <= len(raw); i += 4 {
		if probability := math.Float32frombits(binary.LittleEndian.Uint32(raw[i:])); probability > highest {
			digit, highest = i/4, probability
		}
	}
	fmt.Printf("digit %d (%.1f %%), version %s\n", digit, 100*highest, version)
}
