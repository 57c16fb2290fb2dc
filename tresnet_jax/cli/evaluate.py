"""`evaluate.py`: the accuracy of a model on labelled images, beside what is published for its weights."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
import tyro

from tresnet_jax.checkpoints.report import describe_images
from tresnet_jax.cli.common import fail, parse
from tresnet_jax.cli.inputs import Flags, Subject, batches_of, class_places, prepare
from tresnet_jax.data.transforms import resolve_data_config
from tresnet_jax.errors import TrainingError
from tresnet_jax.folding import fold_batchnorm
from tresnet_jax.models.base import functional
from tresnet_jax.training.devices import Hosts, replicate
from tresnet_jax.training.evaluate import EvalResult, evaluate
from tresnet_jax.training.step import make_eval_step, over_devices
from tresnet_jax.variants import PublishedAccuracy

MOST_ERRORS = 3.0  # standard errors that a figure may differ from the published one


@dataclasses.dataclass(frozen=True)
class Command:
    """Top-1 and top-5 accuracy with their standard errors, beside the published figures of the tag.

    Exit codes: 0; 1, with --check, a figure is not the published one; 2, nothing could be evaluated, or checked.
    """

    flags: tyro.conf.OmitArgPrefixes[Flags]
    hosts: tyro.conf.OmitArgPrefixes[Hosts] = Hosts()
    json: bool = False
    """Print one JSON document instead of lines."""
    check: bool = False
    """Fail where top-1 or top-5 differs from the published one by more than three standard errors."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """A share of the images and its standard error, and the published one, all in percent.

    `distance` is from the published one, in standard errors that the published share has over so many images.
    """

    value: float
    error: float
    published: float | None
    distance: float | None

    def __str__(self) -> str:
        text = f'{self.value:.3f} % ± {self.error:.2f}'
        if self.published is None:
            return text
        return f'{text}, published {self.published:.3f} ({self.distance:+.1f} standard errors)'


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; wrong usage and ``--help`` raise SystemExit."""
    command = parse(Command, arguments, default=Command(Flags()))
    try:
        subject = prepare(command.flags, command.hosts)
        published = published_for(subject)
        if command.check and published is None:
            raise TrainingError(_nothing_to_check(subject))
        accuracy = measure(subject, command.flags)
    except ValueError as error:  # TrainingError, DataError, ConversionError, HubError: each one readable line
        return fail(error)
    top1 = figure(accuracy, accuracy.top1, published and published.top1)
    top5 = figure(accuracy, accuracy.top5, published and published.top5)
    if jax.process_index() == 0:
        print(_as_json(subject, accuracy, top1, top5) if command.json else _as_text(subject, accuracy, top1, top5))
    agree = all(abs(f.distance) <= MOST_ERRORS for f in (top1, top5) if f.distance is not None)
    return 1 if command.check and not agree else 0


def measure(subject: Subject, flags: Flags) -> EvalResult:
    """Put all images through the model, on all devices and hosts; a progress bar shows on a terminal.

    Raises:
        DataError: the classes of the data are not the model's, or the data cannot be read.
        TrainingError: the model has no classifier, or there is no image.
    """
    if not subject.model.num_classes:
        raise TrainingError(f'{subject.name}: has no classifier')
    places = class_places(subject)
    apply, *variables = functional(fold_batchnorm(subject.model))
    mean, std = subject.data_config['mean'], subject.data_config['std']
    step = make_eval_step(apply, mean=mean, std=std, dtype=subject.dtype)
    silent = None if jax.process_index() == 0 else True  # None is: but on a terminal
    with tqdm.tqdm(total=len(subject.source), unit=' images', disable=silent) as bar:
        return evaluate(
            over_devices(step if places is None else _with_places(step, places)),
            replicate(tuple(variables), subject.devices),
            batches_of(subject, flags),
            tick=lambda done: bar.update(done - bar.n),
        )


def _with_places(step: Callable[[Any, Any], Any], places: np.ndarray) -> Callable[[Any, Any], Any]:
    """A step whose labels are the data's, of one whose labels are the model's."""
    return lambda variables, batch: step(variables, batch | {'label': jnp.asarray(places)[batch['label']]})


def published_for(subject: Subject) -> PublishedAccuracy | None:
    """What is published for these weights at this size and crop on all classes; None where nothing is."""
    row = subject.model.pretrained_cfg
    if not subject.named or row is None or subject.source.num_classes != subject.model.num_classes:
        return None
    if subject.data_config not in (resolve_data_config(row), resolve_data_config(row, use_test_size=True)):
        return None
    return next((a for a in row.accuracies if subject.data_config['input_size'][1:] == (a.size, a.size)), None)


def figure(accuracy: EvalResult, share: float, published: float | None) -> Figure:
    """One of the shares of an accuracy beside the published one, which is in percent."""
    error = 100 * accuracy.standard_error(share)
    if published is None:
        return Figure(100 * share, error, None, None)
    distance = (100 * share - published) / (100 * accuracy.standard_error(published / 100))
    return Figure(100 * share, error, published, distance)


def _nothing_to_check(subject: Subject) -> str:
    row, source = subject.model.pretrained_cfg, subject.source
    what = f'--check: nothing is published for {subject.name}'
    if not subject.named or row is None or not row.accuracies:
        return f'{what}; name a tag of timm that has published figures'
    if source.num_classes != subject.model.num_classes:
        return f'{what} on {source.num_classes} of its {subject.model.num_classes} classes'
    size, test = row.input_size[1], row.test_input_size and row.test_input_size[1]
    there = [
        f'{a.top1} % at {a.size} pixels' + {size: ' as it is', test: ' with --test-size'}.get(a.size, '')
        for a in row.accuracies
    ]
    return f'{what} at {describe_images(subject.data_config)}; published: {", ".join(there)}'


def _as_text(subject: Subject, accuracy: EvalResult, top1: Figure, top5: Figure) -> str:
    left_out = len(subject.source) - accuracy.count
    return '\n'.join(
        [
            f'{subject.name} on {subject.source.name}: {accuracy.count:,} images'
            + (f'; {left_out:,} cannot be read and are not counted' if left_out else ''),
            f'images  {describe_images(subject.data_config)}',
            f'top-1     {top1}',
            f'top-5     {top5}',
            f'loss      {accuracy.loss:.4f}',
        ]
    )


def _as_json(subject: Subject, accuracy: EvalResult, top1: Figure, top5: Figure) -> str:
    document = {
        'model': subject.name,
        'data': subject.source.name,
        'pictures': len(subject.source),
        'count': accuracy.count,
        'data_config': subject.data_config,
        'loss': accuracy.loss,
        'top1': dataclasses.asdict(top1),
        'top5': dataclasses.asdict(top5),
    }
    return json.dumps(document, indent=2)
