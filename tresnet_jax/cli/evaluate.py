"""`evaluate.py`: accuracy of a model on labelled images, compared with the published accuracy of its weights."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from tresnet_jax.checkpoints.report import describe_images
from tresnet_jax.cli.common import Progress, fail, parse, quiet_libraries
from tresnet_jax.cli.inputs import InputFlags, Inputs, input_batches, load_inputs, match_inputs
from tresnet_jax.data.transforms import resolve_data_config
from tresnet_jax.errors import TrainingError
from tresnet_jax.folding import fold_batchnorm
from tresnet_jax.models.functional import functional
from tresnet_jax.training.devices import replicate
from tresnet_jax.training.evaluate import EvalResult, evaluate
from tresnet_jax.training.hosts import Hosts
from tresnet_jax.training.step import make_eval_step, over_devices
from tresnet_jax.variants import PublishedAccuracy

MAX_DISTANCE = 3.0  # standard errors that an accuracy may differ from the published one


@dataclasses.dataclass(frozen=True)
class EvaluateArguments:
    """Measure top-1 and top-5 accuracy with standard errors, and compare them with the published values of the tag.

    Standard error shows a progress bar on a terminal, and one line every 30 seconds elsewhere.

    Exit codes: 0; 1, with --check, an accuracy differs from the published one; 2, an error in the flags or the data,
    or, with --check, there is no published accuracy; 130, interrupted.
    """

    flags: tyro.conf.OmitArgPrefixes[InputFlags]
    hosts: tyro.conf.OmitArgPrefixes[Hosts] = Hosts()
    json: bool = False
    """Print one JSON document instead of lines."""
    check: bool = False
    """Fail if top-1 or top-5 differs from the published value by more than three standard errors."""
    valid_labels: bool = False
    """Compare only the outputs of the classes that the data has, as is done for ImageNet-A and ImageNet-R."""


class Classes(NamedTuple):
    """Which outputs of the model are compared, and which of them belong to the classes of the data.

    Attributes:
        labels: (classes of the data,) int32, the position of each class among the outputs that are compared.
        outputs: the outputs that are compared, ascending; None: all.
        text: how classes were matched, for people.
    """

    labels: np.ndarray
    outputs: np.ndarray | None
    text: str


@dataclasses.dataclass(frozen=True)
class Figure:
    """A measured accuracy and the published one, in percent.

    Attributes:
        value: the measured accuracy.
        error: its standard error.
        published: the published accuracy; None if there is none.
        distance: `value` minus `published`, in standard errors of the published accuracy over as many images.
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Wrong usage and ``--help`` raise SystemExit."""
    arguments = parse(EvaluateArguments, argv, default=EvaluateArguments(InputFlags()))
    quiet_libraries()
    try:
        inputs = load_inputs(arguments.flags, arguments.hosts)
        published = published_for(inputs)
        if arguments.check and published is None:
            raise TrainingError(_nothing_to_check(inputs))
        classes = choose_outputs(inputs, valid_labels=arguments.valid_labels)
        result = measure(inputs, arguments.flags, classes)
    except (ValueError, KeyboardInterrupt) as error:  # the library's errors are ValueErrors of one readable line
        return fail(error)
    top1 = figure(result, result.top1, published and published.top1)
    top5 = figure(result, result.top5, published and published.top5)
    if jax.process_index() == 0:
        print((_as_json if arguments.json else _as_text)(inputs, classes, result, top1, top5))
    agree = all(abs(f.distance) <= MAX_DISTANCE for f in (top1, top5) if f.distance is not None)
    return 1 if arguments.check and not agree else 0


def choose_outputs(inputs: Inputs, *, valid_labels: bool) -> Classes:
    """Match the classes of the data to the outputs of the model.

    Args:
        inputs: the model and the data.
        valid_labels: keep only the outputs of the classes that the data has.

    Raises:
        DataError: the classes of the data are not the model's.
        TrainingError: the model has no classifier.
    """
    if not inputs.model.num_classes:
        raise TrainingError(f'{inputs.name}: has no classifier')
    match = match_inputs(inputs)
    if not valid_labels:
        return Classes(match.places, None, match.text)
    kept = np.sort(match.places[list(inputs.source.present)])
    text = f'{match.text}; outputs of {len(kept)} classes compared'
    return Classes(np.searchsorted(kept, match.places).astype(np.int32), kept, text)


def measure(inputs: Inputs, flags: InputFlags, classes: Classes) -> EvalResult:
    """Evaluate the model on all images, on all devices and hosts, and show progress.

    Raises:
        DataError: the data cannot be read.
        TrainingError: there is no image.
    """
    apply, *variables = functional(fold_batchnorm(inputs.model))
    mean, std = inputs.data_config['mean'], inputs.data_config['std']
    step = make_eval_step(with_outputs(apply, classes.outputs), mean=mean, std=std, dtype=inputs.dtype)
    with Progress(len(inputs.source), 'images', active=jax.process_index() == 0) as progress:
        return evaluate(
            over_devices(with_labels(step, classes.labels)),
            replicate(tuple(variables), inputs.devices),
            input_batches(inputs, flags),
            tick=progress.update,
        )


def with_outputs(apply: Callable[..., Any], outputs: np.ndarray | None) -> Callable[..., Any]:
    """Return a function like `apply`, from `functional`, that returns only these outputs; None: all."""
    return apply if outputs is None else lambda *inputs: apply(*inputs)[..., jnp.asarray(outputs)]


def with_labels(step: Callable[[Any, Any], Any], labels: np.ndarray) -> Callable[[Any, Any], Any]:
    """Return an evaluation step that first maps the labels of the data to outputs: label i to ``labels[i]``."""
    if np.array_equal(labels, np.arange(len(labels))):
        return step
    return lambda variables, batch: step(variables, batch | {'label': jnp.asarray(labels)[batch['label']]})


def published_for(inputs: Inputs) -> PublishedAccuracy | None:
    """Return the published accuracy of these weights at this size and crop on all classes, or None."""
    row = inputs.model.pretrained_cfg
    if not inputs.named or row is None or inputs.source.num_classes != inputs.model.num_classes:
        return None
    if inputs.data_config not in (resolve_data_config(row), resolve_data_config(row, use_test_size=True)):
        return None
    return next((a for a in row.accuracies if inputs.data_config['input_size'][1:] == (a.size, a.size)), None)


def figure(result: EvalResult, share: float, published: float | None) -> Figure:
    """Compare a share of the images of `result` with the published accuracy, which is in percent."""
    error = 100 * result.standard_error(share)
    if published is None:
        return Figure(100 * share, error, None, None)
    distance = (100 * share - published) / (100 * result.standard_error(published / 100))
    return Figure(100 * share, error, published, distance)


def _nothing_to_check(inputs: Inputs) -> str:
    """Return the message that says why --check has no published accuracy, and which flags would have one."""
    row, source = inputs.model.pretrained_cfg, inputs.source
    what = f'--check: nothing is published for {inputs.name}'
    if not inputs.named or row is None or not row.accuracies:
        return f'{what}; give a timm tag with published accuracies'
    if source.num_classes != inputs.model.num_classes:
        return f'{what} on {source.num_classes} of its {inputs.model.num_classes} classes'
    size, test = row.input_size[1], row.test_input_size and row.test_input_size[1]
    published = [
        f'{a.top1} % at {a.size} pixels' + {size: ' by default', test: ' with --test-size'}.get(a.size, '')
        for a in row.accuracies
    ]
    return f'{what} at {describe_images(inputs.data_config)}; published: {", ".join(published)}'


def _as_text(inputs: Inputs, classes: Classes, result: EvalResult, top1: Figure, top5: Figure) -> str:
    skipped = len(inputs.source) - result.count
    return '\n'.join(
        [
            f'{inputs.name} on {inputs.source.name}: {result.count:,} images'
            + (f'; {skipped:,} unreadable images are not counted' if skipped else ''),
            f'images    {describe_images(inputs.data_config)}',
            f'classes   {classes.text}',
            f'top-1     {top1}',
            f'top-5     {top5}',
            f'loss      {result.loss:.4f}',
        ]
    )


def _as_json(inputs: Inputs, classes: Classes, result: EvalResult, top1: Figure, top5: Figure) -> str:
    document = {
        'model': inputs.name,
        'data': inputs.source.name,
        'pictures': len(inputs.source),
        'count': result.count,
        'classes': classes.text,
        'data_config': inputs.data_config,
        'loss': result.loss,
        'top1': dataclasses.asdict(top1),
        'top5': dataclasses.asdict(top5),
    }
    return json.dumps(document, indent=2)
