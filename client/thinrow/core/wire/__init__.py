"""Encoding of requests and responses, and widening of their columns."""
