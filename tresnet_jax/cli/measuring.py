"""Run an evaluation step over the images of evaluate.py, with the outputs and labels that are compared."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from tresnet_jax.cli.common import Progress
from tresnet_jax.cli.inputs import InputFlags, Inputs, input_batches
from tresnet_jax.folding import fold_batchnorm
from tresnet_jax.models.functional import functional
from tresnet_jax.training.devices import replicate
from tresnet_jax.training.step import over_devices

Result = TypeVar('Result')
Step = Callable[[Any, Any], Any]


def measure_all(
    inputs: Inputs,
    flags: InputFlags,
    outputs: np.ndarray | None,
    make_step: Callable[..., Step],
    evaluate: Callable[..., Result],
    change: Callable[[Step], Step] = lambda step: step,
    **options: Any,
) -> Result:
    """Evaluate the model on all images, on all devices and hosts, and show progress.

    Args:
        inputs, flags: the model and the data.
        outputs: the outputs of the model that are compared; None: all.
        make_step: `make_eval_step` or `make_multilabel_eval_step`.
        evaluate: `evaluate` or `evaluate_multilabel`.
        change: changes the step, such as its labels.
        **options: passed to `evaluate`.

    Raises:
        DataError: the data cannot be read.
        TrainingError: there is no image.
    """
    apply, *variables = functional(fold_batchnorm(inputs.model))
    mean, std = inputs.data_config['mean'], inputs.data_config['std']
    step = make_step(with_outputs(apply, outputs), mean=mean, std=std, dtype=inputs.dtype)
    with Progress(len(inputs.source), 'images', active=jax.process_index() == 0) as progress:
        return evaluate(
            over_devices(change(step)),
            replicate(tuple(variables), inputs.devices),
            input_batches(inputs, flags),
            progress.update,
            **options,
        )


def with_outputs(apply: Callable[..., Any], outputs: np.ndarray | None) -> Callable[..., Any]:
    """Return a function like `apply`, from `functional`, that returns only these outputs; None: all."""
    return apply if outputs is None else lambda *inputs: apply(*inputs)[..., jnp.asarray(outputs)]


def with_labels(step: Callable[[Any, Any], Any], labels: np.ndarray) -> Callable[[Any, Any], Any]:
    """Return an evaluation step that first maps the labels of the data to outputs: label i to ``labels[i]``."""
    if np.array_equal(labels, np.arange(len(labels))):
        return step
    return lambda variables, batch: step(variables, batch | {'label': jnp.asarray(labels)[batch['label']]})


def with_accepted(step: Callable[[Any, Any], Any], accepted: np.ndarray | None) -> Callable[[Any, Any], Any]:
    """Return an evaluation step with several right outputs for an image; one without any is not counted."""
    if accepted is None:
        return step

    def several(variables: Any, batch: Any) -> Any:
        right = jnp.asarray(accepted)[batch['index']]  # index -1 is padding, with mask 0
        mask = batch['mask'] * (right >= 0).any(-1).astype(batch['mask'].dtype)
        return step(variables, batch | {'accepted': right, 'mask': mask})

    return several
