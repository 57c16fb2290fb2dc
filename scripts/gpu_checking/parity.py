"""Part 1: outputs of every stage and gradients, in each precision, against timm's stored ones."""

import dataclasses
import itertools
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
from benchmarking.command import draw_weights

from convert.comparison import Comparison, relative_error
from convert.golden import timm_model
from convert.verify import compare_with_stored
from gpu_checking.machine import ROOT, missing_packages, pip_line
from gpu_checking.models import largest_error, seeded_model
from gpu_checking.records import Finding
from gpu_checking.sizes import Sizes
from gpu_checking.stored_gradients import NETWORKS, our_gradients, sampled, stored_gradients
from tresnet_jax.errors import reason
from tresnet_jax.folding import fold_batchnorm

GOLDEN = ROOT / 'tests' / 'golden'
OUTPUTS, GRADIENTS = 'outputs of timm', 'gradients'
# Each layer rounds once, and errors add up like a random walk: 14 roundings over 200 layers, and the largest of many
# values is about twice the typical one.
ROUNDINGS = 32
# Of gradients: a tensor that is missing has an error of 1, one of the wrong sign 2. In bfloat16 rounding alone causes
# 0.5 in the worst tensor of these networks, because the gradient of a batch norm is a difference of sums.
LARGEST_BOUND = 0.9
# The error of the worst tensor is twice as large in one program as in another that rounds as often: in float16 0.15 to
# 0.29, where float32's error on a CPU, scaled by the rounding, is 0.025.
GRADIENT_FACTOR = 20
TORCH_FACTOR = 2  # torch's own error is one draw of the same noise, and so is ours
LEAST_ROUNDINGS = 4  # where torch happens to be exact


@dataclasses.dataclass(frozen=True)
class Precision:
    """How a network computes.

    Attributes:
        name: for the tables.
        dtype: compute dtype.
        matmul: JAX's matrix precision.
        rounding: half the distance from 1 to the next number that a factor of a product may be.
    """

    name: str
    dtype: str
    matmul: str
    rounding: float


HIGHEST = Precision('float32 highest', 'float32', 'highest', 2**-24)
PRECISIONS = (
    HIGHEST,
    Precision('bfloat16', 'bfloat16', 'default', 2**-8),
    Precision('float32 default', 'float32', 'default', 2**-11),  # TF32, which has 11 significant bits
    Precision('float16', 'float16', 'default', 2**-11),
)


def run(sizes: Sizes, folder: Path) -> Iterator[Finding]:
    """Yield one finding per network, precision and form: every network in one precision, then the next precision."""
    del folder
    torch_missing = missing_packages(('torch', 'timm'))
    if torch_missing:
        yield Finding(OUTPUTS, "torch's own error", note=f'left out: {pip_line(torch_missing)}')
    for precision, folded in itertools.product(PRECISIONS, (False, True)):
        for name in sizes.architectures:
            yield compare(name, precision, folded, has_torch=not torch_missing)
        if not folded:
            yield from (compare_gradients(name, precision) for name in NETWORKS)


def compare(name: str, precision: Precision, folded: bool, *, has_torch: bool) -> Finding:
    """Compare the stem, the four stages and the logits of a network with timm's stored ones."""
    model = seeded_model(name, dtype=precision.dtype)
    path = GOLDEN / f'{name}.safetensors'
    with jax.default_matmul_precision(precision.matmul):
        rows = compare_with_stored(fold_batchnorm(model) if folded else model, path)
    torchs = torch_errors(name, path, precision) if has_torch else {}
    worst = max(rows, key=lambda row: row.error / bound_of(row, precision, torchs))
    bound = bound_of(worst, precision, torchs)
    return Finding(
        OUTPUTS,
        f'{name}, {precision.name}{", folded" * folded}',
        {
            'error of logits': next(row.error for row in rows if row.name == 'logits'),
            'median error': statistics.median(row.error for row in rows),
            'worst output': worst.name,
            'its error': worst.error,
            'bound': bound,
            "torch's error": torchs.get(worst.name),
        },
        passed=worst.error <= bound,
    )


def bound_of(row: Comparison, precision: Precision, torchs: dict[str, float]) -> float:
    """Return the largest error that rounding explains, from torch's error in the same precision where it is known."""
    if precision == HIGHEST:  # the converter's own criterion
        return 10 * max(row.noise, 1e-7)
    if row.name in torchs:
        return TORCH_FACTOR * max(torchs[row.name], LEAST_ROUNDINGS * precision.rounding)
    return ROUNDINGS * precision.rounding


def torch_errors(name: str, path: Path, precision: Precision) -> dict[str, float]:
    """Return the errors of timm's model itself, on the GPU if torch has one; {} if it cannot run there."""
    import torch

    try:
        device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        is_highest = precision.matmul == 'highest'
        torch.backends.cudnn.allow_tf32 = not is_highest
        torch.set_float32_matmul_precision('highest' if is_highest else 'high')
        model: Any = timm_model(name)
        model.load_state_dict({key: torch.from_numpy(value) for key, value in draw_weights(name).items()})
        dtype = getattr(torch, precision.dtype)
        with safetensors.safe_open(path, framework='np') as file:
            stored = file.get_tensors()
        with torch.no_grad():
            images = torch.from_numpy(stored.pop('images')).to(device, dtype)
            last, maps = model.to(device, dtype).forward_intermediates(images)
            found = {f'features.{i}': x for i, x in enumerate(maps)} | {'logits': model.forward_head(last)}
        return {key: relative_error(x.float().cpu().numpy(), stored[key]) for key, x in found.items()}
    except RuntimeError as error:  # such as a torch that was built for another GPU
        print(f'torch cannot run {name} in {precision.name}: {reason(error)}')
        return {}


def compare_gradients(name: str, precision: Precision) -> Finding:
    """Compare the gradients of a small network with the stored ones in float64."""
    exact, noise = stored_gradients(name)
    with jax.default_matmul_precision(precision.matmul):
        found = sampled(our_gradients(name, precision.dtype))
    error = largest_error({key: np.asarray(value, np.float64) for key, value in found.items()}, exact)
    bound = min(GRADIENT_FACTOR * noise * precision.rounding / HIGHEST.rounding, LARGEST_BOUND)
    return Finding(
        GRADIENTS, f'{name}, {precision.name}', {'largest error': error, 'bound': bound}, passed=error <= bound
    )
