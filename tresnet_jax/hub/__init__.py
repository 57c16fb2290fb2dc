"""Models and weights from the Hugging Face hub or from a folder."""
