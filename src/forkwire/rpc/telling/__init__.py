"""What a worker tells beside its answers: logs, prints; and the context that travels with calls."""
