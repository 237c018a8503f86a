"""What a student learns from a teacher beside its own labels, one idea a file."""
