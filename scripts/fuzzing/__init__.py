"""Files and command lines made to break the readers, and the checks that they do not; `scripts/fuzz.py` runs them."""
