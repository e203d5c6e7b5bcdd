"""The online half whose log is a Kafka topic: events are produced to it, and read from it."""
