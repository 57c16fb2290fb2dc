"""Average the weights of several checkpoints, as timm's ``avg_checkpoints.py`` (arXiv:1803.05407).

A mean is computed in float64, running statistics included. Unlike in timm, whole numbers are not averaged.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tresnet_jax.checkpoints.match import to_flax
from tresnet_jax.checkpoints.names import flatten, split_collections
from tresnet_jax.checkpoints.report import Report
from tresnet_jax.checkpoints.run import is_run, rated_steps
from tresnet_jax.errors import ConversionError, listing
from tresnet_jax.models.base import Tree

from .reading import read

# What checkpoints must agree on, if they state it.
AGREED = ('num_classes', 'in_chans', 'global_pool', 'output_stride', 'abn_slope', 'data_config', 'label_names', 'task')


class Part(NamedTuple):
    """A checkpoint to average.

    Attributes:
        path: a file, the index of several, or the folder of a run.
        step: the checkpoint of a run; None for files.
    """

    path: Path
    step: int | None = None

    def __str__(self) -> str:
        return str(self.path) if self.step is None else f'{self.path}, step {self.step}'


def choose(sources: Sequence[Path], *, count: int = 10, steps: Sequence[int] = ()) -> list[Part]:
    """Return the checkpoints to average: every file, and of runs the `count` best by their metric, as timm does.

    Args:
        sources: files, and folders of training runs.
        count: the number of best checkpoints of all runs together; fewer if there are fewer.
        steps: use these steps of each run instead.

    Raises:
        ConversionError: a run has no rated checkpoint or not these steps, runs have different metrics, there are fewer
            than two checkpoints, or one is given twice.
    """
    runs = [path for path in sources if is_run(path)]
    parts = [Part(path) for path in sources if path not in runs]
    if steps and not runs:
        raise ConversionError('--steps selects checkpoints of training runs; none is given')
    rated: list[tuple[float, Part]] = []
    metrics: dict[str, Path] = {}
    for path in runs:
        metric, found = rated_steps(path)
        missing = [step for step in steps if step not in found]
        if missing:
            raise ConversionError(f'{path}: holds no checkpoint of step {missing[0]}; it has {_joined(sorted(found))}')
        ratings = {step: rating for step, rating in found.items() if rating is not None}
        if steps:
            parts += [Part(path, step) for step in steps]
        elif not ratings:
            raise ConversionError(f'{path}: no checkpoint was evaluated; choose --steps of {_joined(sorted(found))}')
        else:
            metrics[metric] = path
            rated += [(rating, Part(path, step)) for step, rating in ratings.items()]
    if len(metrics) > 1:
        text = ', '.join(f'{path} by {metric}' for metric, path in metrics.items())
        raise ConversionError(f'the best checkpoints are chosen by different metrics: {text}; choose --steps')
    # Later steps first among equal ones, as for the best checkpoint of a run.
    best = sorted(rated, key=lambda item: (item[0], item[1].step or 0), reverse=True)[:count]
    parts += [part for _, part in best]
    places = [Part(part.path.resolve(), part.step) for part in parts]
    twice = [part for part, place in zip(parts, places, strict=True) if places.count(place) > 1]
    if twice:
        raise ConversionError(f'{twice[0]}: is given twice')
    if len(parts) < 2:
        raise ConversionError(
            f'{", ".join(map(str, parts))}: one checkpoint alone cannot be averaged; a run keeps more with '
            '--save-epochs, --keep-best and --keep-last'
        )
    return parts


def average(
    parts: Sequence[Part], *, model: str | None = None, ema: bool = True, key: str | None = None
) -> tuple[Tree, Tree, Report]:
    """Return the mean of checkpoints as ``params, batch_stats, report``.

    Counters of batches are the largest ones. The report is that of the first checkpoint, completed by what the others
    state.

    Args:
        parts: at least one checkpoint.
        model: architecture, with or without a tag. None: find it from the shapes.
        ema: use the averaged weights of a training checkpoint if it has them, as timm does.
        key: the network of each file, for files with several; see `convert.read`.

    Raises:
        ConversionError: a checkpoint cannot be read or converted, has values that are not finite, or differs from the
            first one in its architecture, tensors, or what it states.
    """
    first: Report | None = None
    sums: dict[str, np.ndarray] = {}
    dtypes: dict[str, np.dtype] = {}
    for part in parts:
        params, batch_stats, report = to_flax(read(part.path, ema=ema, step=part.step, key=key), model)
        if report.warnings:
            raise ConversionError(f'{part}: {report.warnings[0]}')
        flat = flatten(params) | flatten(batch_stats)
        if first is None:
            first = report
            dtypes = {name: value.dtype for name, value in flat.items()}
            sums = {name: value.astype(np.float64) for name, value in flat.items()}
            continue
        first = _joint(first, report, parts[0], part)
        _check_same(sums, flat, parts[0], part)
        for name, value in flat.items():
            sums[name] += value
            dtypes[name] = np.result_type(dtypes[name], value.dtype)
    assert first is not None
    means = {name: (total / len(parts)).astype(dtypes[name]) for name, total in sums.items()}
    note = f'mean of {len(parts)} checkpoints: {"; ".join(map(str, parts))}'
    return *split_collections(means), dataclasses.replace(first, notes=(*first.notes, note), source_dtypes={})


def _joint(first: Report, other: Report, first_part: Part, part: Part) -> Report:
    """Return the first report, completed by what the other one states, with the larger counters.

    Raises:
        ConversionError: they contradict each other.
    """
    if first.architecture != other.architecture:
        raise ConversionError(f'{part}: is a {other.architecture}, but {first_part} is a {first.architecture}')
    values = {}
    for field in AGREED:
        one, two = getattr(first, field), getattr(other, field)
        if one is not None and two is not None and _plain(one) != _plain(two):
            shown = (json.dumps(_plain(value), ensure_ascii=True)[:100] for value in (two, one))
            raise ConversionError(f'{part}: {field} is {next(shown)}, but {next(shown)} in {first_part}')
        values[field] = two if one is None else one
    keys = first.counters.keys() | other.counters.keys()
    counters = {key: max(first.counters.get(key, 0), other.counters.get(key, 0)) for key in sorted(keys)}
    return dataclasses.replace(first, **values, counters=counters, tag=first.tag if first.tag == other.tag else None)


def _plain(value: object) -> object:
    """Return a value with lists for tuples, at any depth."""
    return json.loads(json.dumps(value))


def _check_same(first: dict[str, np.ndarray], other: dict[str, np.ndarray], first_part: Part, part: Part) -> None:
    """Raise ConversionError if the names or shapes of tensors differ."""
    wrong = [f'{name} is only in one' for name in first.keys() ^ other.keys()]
    shapes = ((name, first[name].shape, other[name].shape) for name in first.keys() & other.keys())
    wrong += [f'{name}: {two} instead of {one}' for name, one, two in shapes if one != two]
    if wrong:
        raise ConversionError(listing(f'{part}: does not have the tensors of {first_part}', wrong))


def _joined(steps: Sequence[int]) -> str:
    return ', '.join(map(str, steps))
