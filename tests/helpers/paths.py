"""Places in the checkout."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / 'scripts'
FILES = ROOT / 'tests' / 'files'
GOLDEN = ROOT / 'tests' / 'golden'
EMBEDDED = ROOT / 'tresnet_jax' / 'embedded'
