"""Values of options against their annotations, and how they are shown."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Literal

import pytest

from tresnet_jax.errors import TrainingError
from tresnet_jax.options import (
    BELOW_1,
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    OneOf,
    as_flag,
    check_options,
    faults,
    flag,
    from_json,
)


@dataclasses.dataclass(frozen=True)
class Inner:
    number: Annotated[int | None, POSITIVE, flag('N', 'all')] = None


@dataclasses.dataclass(frozen=True)
class Options:
    switch: bool = False
    count: Annotated[int, NOT_NEGATIVE] = 0
    rate: Annotated[float | None, POSITIVE, flag('RATE', 'none')] = None
    share: Annotated[float, SHARE] = 0.5
    decay: Annotated[float, BELOW_1] = 0.9
    name: str = 'a'
    file: Annotated[Path | None, flag('FILE', 'none')] = None
    kind: Literal['a', 'b'] = 'a'
    mean: Annotated[tuple[float, float, float] | None, POSITIVE] = None
    parts: Annotated[tuple[str, ...], OneOf(('stem', 'head'))] = ()
    step: Annotated[int | Literal['best'] | None, NOT_NEGATIVE] = None
    inner: Inner = Inner()


@pytest.mark.parametrize(
    'field, values',
    [
        ('switch', [True, False]),
        ('count', [0, 2**31 - 1]),
        ('rate', [1, 1e-300, None]),
        ('share', [0, 1, 0.5]),
        ('decay', [0.0, 0.999]),
        ('file', [Path('x'), None]),
        ('mean', [(1, 2.0, 3.0), None]),
        ('parts', [(), ('stem', 'stem')]),
        ('step', [0, 'best', None]),
        ('inner', [Inner(1)]),
    ],
)
def test_good_values(field, values):
    for value in values:
        assert list(faults(Options(**{field: value}))) == []


@pytest.mark.parametrize(
    'field, value, message',
    [
        ('switch', 1, 'must be true or false, got 1'),
        ('switch', None, 'must be true or false, got null'),
        ('count', True, 'must be a whole number of at most 2147483647, got true'),
        ('count', 1.0, 'must be a whole number of at most 2147483647, got 1.0'),
        ('count', 2**31, 'must be a whole number of at most 2147483647, got 2147483648'),
        ('count', -1, 'must be at least 0, got -1'),
        ('rate', 0, 'must be positive, got 0'),
        ('rate', True, 'must be a number, got true'),
        ('rate', math.nan, 'must be a number, got NaN'),
        ('rate', math.inf, 'must be a number, got Infinity'),
        ('rate', '1', 'must be a number, got "1"'),
        ('share', 1.01, 'must be between 0 and 1, got 1.01'),
        ('decay', 1.0, 'must be at least 0 and less than 1, got 1.0'),
        ('name', None, 'must be a text, got null'),
        ('file', 3, 'must be a path, got 3'),
        ('kind', 'c', 'must be one of a, b, got "c"'),
        ('mean', (1.0, 2.0), 'must be 3 numbers, got [1.0, 2.0]'),
        ('mean', (1.0, 2.0, True), 'must be 3 numbers, got [1.0, 2.0, true]'),
        ('mean', (1.0, 0.0, 1.0), 'must be positive, got [1.0, 0.0, 1.0]'),
        ('mean', 1.0, 'must be 3 numbers, got 1.0'),
        ('parts', ('stem', 'tail'), 'must be one of stem, head, got ["stem", "tail"]'),
        ('parts', (1,), 'must be a list of texts, got [1]'),
        ('step', 'worst', 'must be a whole number of at most 2147483647 or one of best, got "worst"'),
        ('inner', Inner(0), 'must be positive, got 0'),
    ],
)
def test_bad_values(field, value, message):
    options = Options(**{field: value})
    name = 'number' if field == 'inner' else field
    assert list(faults(options)) == [(name, message)]
    with pytest.raises(TrainingError) as error:
        check_options(options, TrainingError)
    assert str(error.value) == f'--{name} {message}'


def test_from_json():
    """Paths and tuples are texts and lists in JSON; other values stay as they are, to be checked."""
    kinds = {'file': Annotated[Path | None, 'mark'], 'mean': tuple[float, ...], 'name': str, 'folder': Path}
    values = {'file': 'a', 'mean': [1, 2], 'name': 'b', 'folder': 3}
    assert from_json(kinds, values) == {'file': Path('a'), 'mean': (1, 2), 'name': 'b', 'folder': 3}


@pytest.mark.parametrize(
    'field, value, shown',
    [
        ('clip_grad', None, 'no --clip-grad'),
        ('clip_grad', 1.0, '--clip-grad 1.0'),
        ('remat', True, '--remat'),
        ('sync_bn', False, '--no-sync-bn'),
        ('freeze', ('stem', 'head'), '--freeze stem head'),
        ('freeze', (), 'no --freeze'),
    ],
)
def test_as_flag(field, value, shown):
    assert as_flag(field, value) == shown
