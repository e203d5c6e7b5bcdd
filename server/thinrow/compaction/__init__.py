"""From raw events to the next generation of the store."""
