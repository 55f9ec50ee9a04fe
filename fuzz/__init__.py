"""Fuzzing: bytes that nobody meant, against everything that reads bytes from outside. Never needed to run Headgate."""
