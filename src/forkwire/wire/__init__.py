"""Bytes to meaning: no I/O, no clock, no process."""
