"""The demo: sample data, a model trained from the stream, a ladder of lengths."""
