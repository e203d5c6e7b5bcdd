"""A Kafka topic of events as the input of jobs: each partition exactly up to a watermark."""
