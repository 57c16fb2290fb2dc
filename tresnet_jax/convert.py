"""`tresnet_jax.convert` in a checkout: the folder convert/. In the wheel that folder is here, instead of this file."""

import sys
from pathlib import Path

from tresnet_jax.aliases import alias

if __name__ == '__main__':
    from tresnet_jax.cli.start import convert

    sys.argv[0] = str(Path(__file__).with_name('convert') / '__main__.py')  # --help says: python -m convert
    raise SystemExit(convert())
alias(__name__, 'convert')
