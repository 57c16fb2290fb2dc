"""Command lines: parse flags, call the library, return an exit code."""
