"""The networks. Nothing here reads files or downloads."""
