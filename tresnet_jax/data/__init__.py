"""Images and data sets on the host."""
