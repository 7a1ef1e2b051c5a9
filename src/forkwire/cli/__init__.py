"""The command line. Only ``forkwire.__main__`` imports this, and only this imports the terminal."""
