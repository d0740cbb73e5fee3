// Package refusal answers produce requests as brokers do that refuse them, for tests.
package refusal

import "github.com/twmb/franz-go/pkg/kmsg"

// Of answers each partition of a request with an error code. logStart is the first offset that the broker still has, -1 if it does not say.
func Of(request *kmsg.ProduceRequest, code int16, logStart int64) *kmsg.ProduceResponse {
	response := request.ResponseKind().(*kmsg.ProduceResponse)
	for _, asked := range request.Topics {
		topic := kmsg.NewProduceResponseTopic()
		topic.Topic, topic.TopicID = asked.Topic, asked.TopicID
		for _, p := range asked.Partitions {
			partition := kmsg.NewProduceResponseTopicPartition()
			partition.Partition, partition.ErrorCode, partition.BaseOffset, partition.LogStartOffset = p.Partition, code, -1, logStart
			topic.Partitions = append(topic.Partitions, partition)
		}
		response.Topics = append(response.Topics, topic)
	}
	return response
}
