"""The gRPC service that answers pointers."""
