"""Part 1: outputs of every stage and gradients, in each precision, against timm's stored ones."""

import dataclasses
import functools
import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import safetensors
from benchmarking.command import draw_weights
from benchmarking.processes import failure

from convert.comparison import Comparison, relative_error
from convert.golden import timm_model
from convert.verify import compare_with_stored
from gpu_checking.attempts import attempt
from gpu_checking.machine import ROOT, missing_packages, pip_line
from gpu_checking.models import distances, seeded_model
from gpu_checking.records import Finding
from gpu_checking.sizes import Sizes
from gpu_checking.stored_gradients import NETWORKS, our_gradients, sampled, stored_gradients
from tresnet_jax.folding import fold_batchnorm

GOLDEN = ROOT / 'tests' / 'golden'
OUTPUTS, GRADIENTS = 'outputs of timm', 'gradients'
FIRST = ('test_resnet', 'test_tresnet', 'resnet50d', 'tresnet_m')  # in all precisions, before the other networks
# On a CPU the networks make errors of up to 5 roundings, and of 9 if the factors are cut off as TF32 might do it.
ROUNDINGS = 16
# In float32 'highest'. On a CPU it is 5 times torch's own error at most, about 2e-6. cuDNN may choose Winograd's
# convolutions, with 1e-6 to 1e-5 each. TF32, which 'highest' must not use, makes 3e-4 or more.
HIGHEST_FACTOR, HIGHEST_BOUND = 10, 3e-5
TORCH_FACTOR = 2  # torch's own error is one draw of the same noise, and so is ours
# An error as large as a value changes the sign of some inputs of ReLUs, as many as the rounding is large. Each of them
# adds or removes terms of the gradients, which add up like a random walk: the error is proportional to the square root
# of the rounding. On a CPU, float16 makes 0.29 and 0.36 of the errors of bfloat16, and the square root of 1/8 is 0.35.
# The error of a single tensor varies by a factor of two between programs that round equally often.
GRADIENT_FACTOR = 4
# Where maps have few pixels, a single input of a ReLU that changes its sign changes all gradients before it by 0.01 to
# 0.02: ResNet-50-D's on 8 images of 64 pixels, in float32, when the images are in another order. No bound is smaller.
SIGN_CHANGE = 0.05
LARGEST_BOUND = 0.9  # of a gradient: one that is missing has an error of 1, one of the wrong sign 2


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
BFLOAT16 = Precision('bfloat16', 'bfloat16', 'default', 2**-8)
PRECISIONS = (
    HIGHEST,
    BFLOAT16,
    Precision('float32 default', 'float32', 'default', 2**-11),  # TF32, which has 11 significant bits
    Precision('float16', 'float16', 'default', 2**-11),
)


def run(sizes: Sizes, folder: Path) -> Iterator[Finding]:
    """Yield one finding per network, precision and form: `FIRST` in each precision, then the others in each."""
    del folder
    jax.local_devices()  # loads cuDNN before torch does, whose version may be too old for JAX
    torch_missing = missing_packages(('torch', 'timm'))
    if torch_missing:
        yield Finding(OUTPUTS, "torch's own error", note=f'left out: {pip_line(torch_missing)}')
    first = [name for name in FIRST if name in sizes.architectures]
    others = [name for name in sizes.architectures if name not in first]
    for names, precision in itertools.product((first, others), PRECISIONS):
        for name in names:
            torchs = {} if torch_missing else torch_errors(name, GOLDEN / f'{name}.safetensors', precision)
            for folded in (False, True):
                row = row_name(name, precision, folded)
                yield from attempt(OUTPUTS, row, compare(name, precision, folded, torchs))
            if name in NETWORKS:
                yield from attempt(GRADIENTS, row_name(name, precision), compare_gradients(name, precision))


def row_name(name: str, precision: Precision, folded: bool = False) -> str:
    return f'{name}, {precision.name}' + ', folded' * folded


def compare(name: str, precision: Precision, folded: bool, torchs: dict[str, float]) -> Iterator[Finding]:
    """Compare the stem, the four stages and the logits of a network with timm's stored ones.

    Args:
        name: the architecture.
        precision: how it computes.
        folded: fold batch norm into the convolutions.
        torchs: the result of `torch_errors`.
    """
    model = seeded_model(name, dtype=precision.dtype)
    with jax.default_matmul_precision(precision.matmul):
        rows = compare_with_stored(fold_batchnorm(model) if folded else model, GOLDEN / f'{name}.safetensors')
    worst = worst_of(rows, precision, torchs)
    bound = bound_of(worst, precision, torchs)
    yield Finding(
        OUTPUTS,
        row_name(name, precision, folded),
        {
            'error of logits': next(row.error for row in rows if row.name == 'logits'),
            'median error': statistics.median(row.error for row in rows),
            'worst output': worst.name,
            'its error': worst.error,
            'bound': bound,
            "torch's error": torchs.get(worst.name),
            "torch's in float32": worst.noise,
        },
        passed=worst.error <= bound,
    )


def worst_of(rows: Sequence[Comparison], precision: Precision, torchs: dict[str, float]) -> Comparison:
    """Return the output whose error is the largest in proportion to its bound; NaN is the largest of all."""
    return max(rows, key=lambda row: excess(row.error, bound_of(row, precision, torchs)))


def excess(error: float, bound: float) -> float:
    """Return an error in proportion to its bound; infinity for NaN."""
    return math.inf if math.isnan(error) else error / bound


def bound_of(row: Comparison, precision: Precision, torchs: dict[str, float]) -> float:
    """Return the largest error that rounding explains; more if torch's own in the same precision is that large.

    torch may run a small convolution in a higher precision than it could, so that a small error of torch says nothing.
    """
    if precision == HIGHEST:
        return max(HIGHEST_FACTOR * row.noise, HIGHEST_BOUND)
    return max(ROUNDINGS * precision.rounding, TORCH_FACTOR * torchs.get(row.name, 0.0))


weights_of = functools.lru_cache(maxsize=len(FIRST))(draw_weights)


def torch_errors(name: str, path: Path, precision: Precision) -> dict[str, float]:
    """Return the errors of timm's model itself, on the GPU if torch has one; {} if it cannot run there."""
    try:
        import torch

        device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        is_highest = precision.matmul == 'highest'
        torch.backends.cudnn.allow_tf32 = not is_highest
        torch.set_float32_matmul_precision('highest' if is_highest else 'high')
        model: Any = timm_model(name)
        model.load_state_dict({key: torch.from_numpy(value) for key, value in weights_of(name).items()})
        dtype = getattr(torch, precision.dtype)
        with safetensors.safe_open(path, framework='np') as file:
            stored = file.get_tensors()
        with torch.no_grad():
            images = torch.from_numpy(stored.pop('images')).to(device, dtype)
            last, maps = model.to(device, dtype).forward_intermediates(images)
            found = {f'features.{i}': x for i, x in enumerate(maps)} | {'logits': model.forward_head(last)}
        errors = {key: relative_error(x.float().cpu().numpy(), stored[key]) for key, x in found.items()}
    except Exception as error:  # such as a torch that was built for another GPU, or an old timm
        print(f'torch cannot run {name} in {precision.name}: {failure(error)[0]}')
        return {}
    return {key: error for key, error in errors.items() if math.isfinite(error)}


def compare_gradients(name: str, precision: Precision) -> Iterator[Finding]:
    """Compare the gradients of a small network with the stored ones in float64."""
    exact, noise = stored_gradients(name)
    with jax.default_matmul_precision(precision.matmul):
        errors = distances(sampled(our_gradients(name, precision.dtype)), exact)
    bounds = gradient_bounds(noise, precision)
    worst = max(errors, key=lambda key: excess(errors[key], bounds[key]))
    yield Finding(
        GRADIENTS,
        row_name(name, precision),
        {
            'median error': statistics.median(errors.values()),
            'worst tensor': worst,
            'its error': errors[worst],
            'bound': bounds[worst],
        },
        passed=errors[worst] <= bounds[worst],
    )


def gradient_bounds(noise: dict[str, float], precision: Precision) -> dict[str, float]:
    """Return the largest error of each gradient that rounding explains, from those of bfloat16 on a CPU."""
    scale = GRADIENT_FACTOR * math.sqrt(precision.rounding / BFLOAT16.rounding)
    typical = statistics.median(noise.values())
    bounds = {name: max(scale * max(error, typical), SIGN_CHANGE) for name, error in noise.items()}
    return {name: min(bound, LARGEST_BOUND) for name, bound in bounds.items()}
