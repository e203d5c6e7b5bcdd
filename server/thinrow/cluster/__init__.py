"""The cluster of a store: which group of servers has which shards, and how shards move."""
