package pgoutput

import "encoding/binary"

// A capture is a stream of messages as a real server has sent it, in a file: each message behind its length, which is
// four bytes, big-endian. Nothing stands before, between or after them.

// AppendCaptured appends one message to a capture.
func AppendCaptured(b, message []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(message)))
	return append(b, message...)
}

// SplitCapture returns the messages of a capture, which alias it. A length that is larger than what is left stands for
// what is left, and less than four bytes at the end are left out, so that any bytes are a capture to a fuzzer.
func SplitCapture(b []byte) (messages [][]byte) {
	for len(b) >= 4 {
		length := min(uint64(binary.BigEndian.Uint32(b)), uint64(len(b)-4))
		end := 4 + int(length)
		messages = append(messages, b[4:end:end])
		b = b[end:]
	}
	return messages
}
