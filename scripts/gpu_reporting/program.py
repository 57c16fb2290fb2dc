"""One program: a training step or a prediction, compiled for a GPU that need not be there, and what it costs.

As a command, ``python -m tresnet_jax.gpu_report.program JSON`` with the fields of a `Program`, in the environment of
`devices.environment`; it prints the figures as JSON. `running.py` starts it.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpu_reporting.convolutions import convolutions, unfused
from gpu_reporting.devices import DEVICES, topology
from gpu_reporting.hlo import Hlo
from tresnet_jax.data.transforms import resolve_data_config
from tresnet_jax.factory import create_model
from tresnet_jax.folding import fold_batchnorm
from tresnet_jax.models.base import functional
from tresnet_jax.models.build import build_model
from tresnet_jax.models.initializers import ShapesOnly
from tresnet_jax.variants import split_name

Function = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled.

    Attributes:
        mode: 'train' is a whole step, 'infer' a prediction.
        model: an architecture of the table, with its 1000 classes.
        batch: images.
        image_size: their edge in pixels.
        dtype: that is computed in; parameters are float32.
        abn_memory, remat: of `create_model`, for training.
        fold: batch norm is folded into the convolutions, for inference.
        device: a name of `DEVICES`.
        roomy: give the device ten times its memory. XLA computes parts of a program again that takes more than about
            three quarters of what there is; what a program needs by itself is found without.
    """

    mode: Literal['train', 'infer']
    model: str
    batch: int
    image_size: int = 224
    dtype: str = 'bfloat16'
    abn_memory: str = 'plain'
    remat: bool = False
    fold: bool = True
    device: str = 'h100'
    roomy: bool = False

    @property
    def name(self) -> str:
        """What tells it from the others in a report; batch and size aside, which stand beside it."""
        if self.mode == 'train':
            return f'train {self.model} {self.abn_memory}' + ' remat' * self.remat
        return f'infer {self.model}' + ' unfolded' * (not self.fold)

    def check(self) -> None:
        """Raises ValueError for what cannot be compiled, as far as that is seen without building the model."""
        split_name(self.model)
        if self.batch < 1 or self.image_size < 1:
            raise ValueError(f'--batch and --image-size must be positive, got {self.batch} and {self.image_size}')
        if self.mode == 'infer' and (self.abn_memory != 'plain' or self.remat):
            raise ValueError('--abn-memory and --remat are for --mode train: they choose what is kept for gradients')
        if self.mode == 'train' and not self.fold:
            raise ValueError('--no-fold is for --mode infer: training never folds')


def measure(program: Program) -> dict[str, Any]:
    """Compile a program and say what it costs.

    Returns:
        temp_bytes: the most that activations, gradients and workspaces take at a time.
        argument_bytes: parameters, state and the batch.
        output_bytes: results that do not take the place of an argument.
        traffic_bytes: that the kernels read and write, each operand and result whole.
        kernels, convolutions, fused_convolutions: how many are launched; all by cuDNN, and those with a bias in them.
        operations: of the convolutions, those computed twice too; a multiply-accumulate is two.
        seconds_by_bytes, seconds_by_operations: of the device at its best; the larger one is a bound.
        unfused: for inference, see `convolutions.unfused`.

    Raises:
        ValueError: the model does not have such a mode.
    """
    program.check()
    device = DEVICES[program.device]
    if program.mode == 'train':
        step, args = train_step(program)
    else:
        step, args = prediction(program)
    described = dataclasses.replace(device, memory=10 * device.memory) if program.roomy else device
    one = NamedSharding(Mesh(np.array(topology(described).devices), ('batch',)), PartitionSpec())
    args = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=one), args)
    compiled = jax.jit(step, donate_argnums=(0,) if program.mode == 'train' else ()).lower(*args).compile()
    memory, text = compiled.memory_analysis(), compiled.as_text()
    assert memory is not None and text is not None, 'the CUDA compiler gives both'
    hlo = Hlo(text)
    found = convolutions(hlo)
    count, traffic = sum(one.operations for one in found), hlo.traffic()
    figures: dict[str, Any] = {
        'temp_bytes': memory.temp_size_in_bytes,
        'argument_bytes': memory.argument_size_in_bytes,
        'output_bytes': memory.output_size_in_bytes - memory.alias_size_in_bytes,
        'traffic_bytes': traffic,
        'kernels': len(hlo.kernels()),
        'convolutions': len(found),
        'fused_convolutions': sum(one.fused for one in found),
        'operations': count,
        'seconds_by_bytes': traffic / device.bandwidth,
        'seconds_by_operations': count / device.peak(program.dtype),
    }
    return figures | ({'unfused': unfused(found)} if program.mode == 'infer' else {})


def train_step(program: Program) -> tuple[Function, tuple[Any, ...]]:
    """Forward, backward, SGD with momentum: step(state, images, labels) and the shapes of its arguments.

    The state (parameters, statistics, momentum) is to be donated; images are (B, S, S, 3) uint8 and normalised inside.
    """
    import optax

    from tresnet_jax.training.step import normalise

    model = build_model(
        split_name(program.model)[0],
        num_classes=1000,
        in_chans=3,
        rngs=ShapesOnly(),
        dtype=program.dtype,
        abn_memory=program.abn_memory,
        remat=program.remat,
    )
    data_config = resolve_data_config(program.model)
    apply, params, batch_stats = functional(model)
    optimizer = optax.sgd(0.1, momentum=0.9)

    def step(state: Any, images: jax.Array, labels: jax.Array) -> tuple[Any, jax.Array]:
        params, batch_stats, opt_state = state

        def loss_of(params: Any) -> tuple[jax.Array, Any]:
            x = normalise(images, data_config['mean'], data_config['std'], jnp.float32)
            logits, new = apply(params, batch_stats, x, train=True)
            logits = logits.astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), new

        (loss, batch_stats), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), batch_stats, opt_state), loss

    images = jax.ShapeDtypeStruct((program.batch, program.image_size, program.image_size, 3), jnp.uint8)
    labels = jax.ShapeDtypeStruct((program.batch,), jnp.int32)
    return step, ((params, batch_stats, jax.eval_shape(optimizer.init, params)), images, labels)


def prediction(program: Program) -> tuple[Function, tuple[Any, ...]]:
    """What ``scripts/predict.py`` runs: predict(variables, images) and the shapes of its arguments.

    Folded, and the weights are float32 arguments, which the convolutions cast to the compute dtype at each call;
    images are (B, S, S, 3) float32, normalised; what comes out are probabilities in float32.
    """
    model = create_model(split_name(program.model)[0], num_classes=1000, dtype=program.dtype)
    apply, params, batch_stats = functional(fold_batchnorm(model) if program.fold else model)

    def predict(variables: Any, images: jax.Array) -> jax.Array:
        return jax.nn.softmax(apply(*variables, images).astype(jnp.float32), axis=-1)

    images = jax.ShapeDtypeStruct((program.batch, program.image_size, program.image_size, 3), jnp.float32)
    return predict, ((params, batch_stats), images)


def main() -> int:
    try:
        figures = measure(Program(**json.loads(sys.argv[1])))
    except ValueError as error:  # such as a mode that the model does not have
        print(f'error: {error}', file=sys.stderr)
        return 2
    print(json.dumps(figures))
    return 0


if __name__ == '__main__':
    sys.exit(main())
