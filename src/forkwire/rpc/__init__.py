"""The upper layer: calls by name over the messages of the base layer."""
