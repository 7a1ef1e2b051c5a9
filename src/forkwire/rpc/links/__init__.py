"""One connection: who moves it, what is in flight on it."""
