"""The online half: the mutable tier, and snapshots as requests happen."""
