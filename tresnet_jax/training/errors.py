"""What is wrong with the data."""


class DataError(ValueError):
    """Data that cannot be trained on or evaluated; one line with the data set, what was expected and what to do."""
