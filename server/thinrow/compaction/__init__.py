"""Compaction of raw events into the next generation of the store."""
