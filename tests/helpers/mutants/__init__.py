"""Mistakes that a port can make: patches of our code, and the comparison that must detect each.

Every quirk of timm's numbers has a row. `tests/helpers/comparisons` has the comparisons, and `test_mutants.py` runs the
table.
"""

from tests.helpers.mutants import layers, options, preprocessing, resnetd, tresnet, weights

MUTANTS = (
    *tresnet.MUTANTS, *layers.MUTANTS, *resnetd.MUTANTS, *options.MUTANTS, *weights.MUTANTS, *preprocessing.MUTANTS
)  # fmt: skip
