"""Compile one program for a GPU that is not present, and measure it.

``python -m gpu_reporting.measure JSON DIGEST`` takes the fields of a `Program` and the digest of its earlier figures,
or '' if there are none. It prints the new figures as JSON, or null if the program has this digest. It needs the
environment variables of `devices.environment`; `subprocesses.py` starts it.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from loop_step import loop_step

from gpu_reporting.convolutions import convolutions, unfused
from gpu_reporting.devices import DEVICES, topology
from gpu_reporting.fingerprint import fingerprint
from gpu_reporting.hlo import Hlo
from gpu_reporting.program import Figures, Program
from tresnet_jax.data.transforms import resolve_data_config
from tresnet_jax.folding import fold_batchnorm
from tresnet_jax.models.base import ImageModel
from tresnet_jax.models.build import build_model
from tresnet_jax.models.functional import functional
from tresnet_jax.models.initializers import ShapesOnly
from tresnet_jax.training.devices import AXIS
from tresnet_jax.training.step import over_devices
from tresnet_jax.variants import split_name

CLASSES = 1000


def measure(program: Program, known: str = '') -> Figures | None:
    """Compile a program and return its cost, or return None if its digest is `known`.

    Returns:
        digest: of the program before XLA compiles it, and of the code and versions that compile and measure it. Figures
            with the same digest are the same.
        temp_bytes: peak memory of activations, gradients and workspaces.
        argument_bytes: parameters, state and the batch.
        output_bytes: results that do not reuse the memory of an argument.
        traffic_bytes: operands and result of every kernel, each in full.
        kernels, convolutions, fused_convolutions: numbers of launches: all, cuDNN's, and cuDNN's with a bias.
        operations: of the convolutions, including recomputed ones; a multiply-accumulate counts as two.
        seconds_by_bytes, seconds_by_operations: at the device's peak rates; the larger one is a lower bound.
        unfused: for inference, see `convolutions.unfused`.

    Raises:
        ValueError: the model does not support the memory mode.
    """
    program.check()
    device = DEVICES[program.device]
    described = dataclasses.replace(device, memory=10 * device.memory) if program.roomy else device
    build = train_step if program.mode == 'train' else prediction
    function, args = build(program, topology(described).devices)
    lowered = function.lower(*args)
    digest = hashlib.sha256(f'{fingerprint(within="gpu_reporting")} {lowered.as_text()}'.encode()).hexdigest()[:16]
    if digest == known:
        return None
    compiled = lowered.compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None and text is not None, 'the CUDA compiler provides both'
    hlo = Hlo(text)
    found = convolutions(hlo)
    operations, traffic = sum(one.operations for one in found), hlo.traffic()
    figures: Figures = {
        'digest': digest,
        'temp_bytes': memory.temp_size_in_bytes,
        'argument_bytes': memory.argument_size_in_bytes,
        'output_bytes': memory.output_size_in_bytes - memory.alias_size_in_bytes,
        'traffic_bytes': traffic,
        'kernels': len(hlo.kernels()),
        'convolutions': len(found),
        'fused_convolutions': sum(one.fused for one in found),
        'operations': operations,
        'seconds_by_bytes': traffic / device.bandwidth,
        'seconds_by_operations': operations / device.peak(program.dtype),
    }
    return figures | ({'unfused': unfused(found)} if program.mode == 'infer' else {})


def train_step(program: Program, devices: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
    """Return the training loop's step (`training/step.py`) on one device, and the shapes of its arguments.

    step(state, batch) donates the state: parameters, statistics, momentum, counters. Images are uint8; the step
    normalises them.
    """
    model = _model(program, ShapesOnly(), axis_name=AXIS, abn_memory=program.abn_memory, remat=program.remat)
    data_config = resolve_data_config(program.model)
    apply, params, batch_stats = functional(model)
    step, start = loop_step(apply, params, num_classes=CLASSES, mean=data_config['mean'], std=data_config['std'])
    state = jax.eval_shape(start, params, batch_stats)
    batch = {
        'image': jax.ShapeDtypeStruct((1, program.batch, program.image_size, program.image_size, 3), jnp.uint8),
        'label': jax.ShapeDtypeStruct((1, program.batch), jnp.int32),
    }
    # This is the loop's own call of pmap. It lowers for devices that are only described when they are passed to it.
    return over_devices(step, donate=True, devices=devices), (state, batch)


def prediction(program: Program, devices: Sequence[Any]) -> tuple[Any, tuple[Any, ...]]:
    """Return what ``scripts/predict.py`` runs on one device, and the shapes of its arguments.

    predict(variables, images) takes float32 weights and casts them to the compute dtype at each call; batch norm is
    folded into the convolutions. Images (B, S, S, 3) are float32 and normalised; the results are probabilities in
    float32.
    """
    model = _model(program, nnx.Rngs(0))  # folding needs values
    apply, params, batch_stats = functional(fold_batchnorm(model) if program.fold else model)

    def predict(variables: Any, images: jax.Array) -> jax.Array:
        return jax.nn.softmax(apply(*variables, images).astype(jnp.float32), axis=-1)

    on_device = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())
    images = jax.ShapeDtypeStruct((program.batch, program.image_size, program.image_size, 3), jnp.float32)
    args = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=on_device), ((params, batch_stats), images)
    )
    return jax.jit(predict), args


def _model(program: Program, rngs: nnx.Rngs, **options: Any) -> ImageModel:
    """Build the model as `create_model` does without a checkpoint, with the dtype of the program."""
    architecture, _ = split_name(program.model)
    return build_model(architecture, num_classes=CLASSES, in_chans=3, rngs=rngs, dtype=program.dtype, **options)


def main() -> int:
    """Print the figures of the program in ``sys.argv[1]``; return the exit code."""
    try:
        figures = measure(Program(**json.loads(sys.argv[1])), *sys.argv[2:])
    except ValueError as error:  # for example a memory mode that the model does not support
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(json.dumps(figures))
    return 0


if __name__ == '__main__':
    sys.exit(main())
