"""What a program calls the other side with."""
