"""The relative errors that comparisons with timm allow in float64.

Rounding of 1e-16 grows over up to two hundred layers, and statistics of a batch with few values amplify it.
"""

LAYER = 1e-13
EVALUATION = 1e-12
TRAINING = 1e-11
