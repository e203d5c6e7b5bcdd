"""Raw events: read into one canonical form, split by shard, put in order."""
