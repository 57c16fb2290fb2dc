"""The networks: no files and no downloads."""
