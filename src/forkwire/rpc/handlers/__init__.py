"""What is offered, and how its functions are run."""
