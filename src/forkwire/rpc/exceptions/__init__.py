"""Exceptions as data, and back."""
