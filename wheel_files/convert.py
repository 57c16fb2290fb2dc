"""``import convert`` and ``python -m convert`` in the wheel, where the converter is `tresnet_jax.convert`.

This is a module, and not a package, so that neither overwrites the other if another distribution has a package of this
name: Python then finds that package, and this module again when it is gone.
"""

import sys
from pathlib import Path

from tresnet_jax.aliases import alias
from tresnet_jax.convert import *  # noqa: F403  for type checkers

if __name__ == '__main__':
    from tresnet_jax.cli.start import convert

    sys.argv[0] = str(Path(__file__).with_name('convert') / '__main__.py')  # --help says: python -m convert
    raise SystemExit(convert())
alias(__name__, 'tresnet_jax.convert')
