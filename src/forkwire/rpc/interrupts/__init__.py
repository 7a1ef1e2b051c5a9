"""Stopping a plain function: where the order comes from, and where it may strike."""
