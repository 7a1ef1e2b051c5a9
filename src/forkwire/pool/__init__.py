"""Many workers: who of them does what, and what becomes of those that die."""
