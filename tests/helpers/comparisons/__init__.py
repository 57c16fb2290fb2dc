"""Small versions of the suite's comparisons with timm, for `test_mutants.py`.

Each uses the smallest network or layer that shows a quirk. The decorator names the full test, whose tolerance it has.
Our side runs operation by operation: operations are compiled once for all mutants, and no cached program can replace
patched code.
"""

from tests.helpers.comparisons import layers, networks, options, preprocessing, weights
from tests.helpers.comparisons.registry import COMPARISONS, SMALL_ROWS

__all__ = ['COMPARISONS', 'SMALL_ROWS', 'layers', 'networks', 'options', 'preprocessing', 'weights']
