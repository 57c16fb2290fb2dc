"""Other JAX libraries with ResNet-D, loaded with timm's weights: jaxnn 0.2, jax-resnet 0.0.4, keras-hub 0.32.

They cannot read timm's files, so this module maps the parameter names of each to timm's.
"""

import importlib
import os
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util
from safetensors.numpy import load_file

from benchmarking.jax_side import JaxSide
from benchmarking.sides import CLASSES, Side, Workload
from tresnet_jax.checkpoints.names import flax_key_to_torch, torch_to_flax_layout
from tresnet_jax.variants import ARCHITECTURES


def import_peer(package: str) -> Any:
    """Import one of the libraries."""
    if package == 'keras_hub':  # Keras reads it once, on import
        os.environ['KERAS_BACKEND'] = 'jax'
    return importlib.import_module(package)


def filled(names: Iterable[str], workload: Workload) -> dict[str, np.ndarray]:
    """Return timm's weights by name, in Flax's layouts.

    Args:
        names: timm's names with Flax's leaf names ('layer1.0.conv1.kernel').
        workload: the file with the weights.

    Raises:
        ValueError: the names do not match those in the file.
    """
    state = {key: value for key, value in load_file(workload.weights).items() if 'num_batches' not in key}
    keys = {name: flax_key_to_torch(name) for name in names}
    if set(keys.values()) != set(state):
        other = sorted(set(keys.values()) ^ set(state))
        raise ValueError(f'its weights are not those of {workload.architecture}: {", ".join(other[:5])}')
    return {name: np.ascontiguousarray(torch_to_flax_layout(name, state[key])) for name, key in keys.items()}


def jaxnn(workload: Workload) -> Side:
    """Load a model of jaxnn (https://pypi.org/project/jaxnn), in Flax NNX."""
    model = import_peer('jaxnn').create_model(workload.architecture)
    graphdef, *trees = nnx.split(model, nnx.Param, nnx.BatchStat)
    flat = [dict(nnx.to_flat_state(tree)) for tree in trees]
    names = {path: _jaxnn_name(path) for tree in flat for path in tree}
    values = filled(names.values(), workload)
    params, stats = (traverse_util.unflatten_dict({path: values[names[path]] for path in tree}) for tree in flat)

    def apply(params: Any, stats: Any, x: jax.Array, train: bool = False, rngs: Any = None) -> Any:
        del rngs  # nothing is random
        m = nnx.merge(graphdef, params, stats)
        m.train() if train else m.eval()
        logits = m(x)
        return (logits, nnx.to_pure_dict(nnx.state(m, nnx.BatchStat))) if train else logits

    return JaxSide(apply, params, stats, workload.dtype)


def _jaxnn_name(path: tuple[Any, ...]) -> str:
    name = '.'.join(map(str, path))
    name = re.sub(r'^stage_modules\.(\d+)\.layers', lambda m: f'layer{int(m[1]) + 1}', name)
    name = name.replace('conv1.layers.', 'conv1.').replace('fc.fc.', 'fc.')
    return name.replace('downsample.conv', 'downsample.1').replace('downsample.bn', 'downsample.2')


def jax_resnet(workload: Workload) -> Side:
    """Load a model of jax-resnet (https://github.com/n2cholas/jax-resnet), in Flax Linen.

    Its activation before the residual sum matches timm's.
    """
    depth = workload.architecture.removeprefix('resnet').removesuffix('d')
    model = getattr(import_peer('jax_resnet'), f'ResNetD{depth}')(n_classes=CLASSES)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    layers = ARCHITECTURES[workload.architecture].layers
    names = {path: _jax_resnet_name(path[1:], layers) for path in traverse_util.flatten_dict(shapes)}
    values = filled(names.values(), workload)
    variables = traverse_util.unflatten_dict({path: values[name] for path, name in names.items()})

    def apply(params: Any, stats: Any, x: jax.Array, train: bool = False, rngs: Any = None) -> Any:
        del rngs  # nothing is random
        given = {'params': params, 'batch_stats': stats}
        if not train:
            return model.apply(given, x)
        logits, new = model.apply(given, x, mutable=['batch_stats'])
        return logits, new['batch_stats']

    return JaxSide(apply, variables['params'], variables['batch_stats'], workload.dtype)


def _jax_resnet_name(path: tuple[str, ...], layers: tuple[int, ...]) -> str:
    """Map a path to timm's name. The layers are a list: the stem, a pool, all blocks, a mean, the classifier."""
    index, leaf = int(path[0].removeprefix('layers_')), path[-1]
    blocks = [f'layer{stage}.{i}' for stage, count in enumerate(layers, 1) for i in range(count)]
    if index == 0:
        number, is_norm = int(path[1][-1]), path[2] == 'BatchNorm_0'
        return f'bn1.{leaf}' if is_norm and number == 2 else f'conv1.{3 * number + is_norm}.{leaf}'
    if index - 2 >= len(blocks):
        return f'fc.{leaf}'
    block, is_norm = blocks[index - 2], path[-2] == 'BatchNorm_0'
    if path[1].startswith('ResNetDSkipConnection'):
        return f'{block}.downsample.{1 + is_norm}.{leaf}'
    return f'{block}.{"bn" if is_norm else "conv"}{int(path[1][-1]) + 1}.{leaf}'


KERAS_LEAVES = {'gamma': 'scale', 'beta': 'bias', 'moving_mean': 'mean', 'moving_variance': 'var'}


def keras_hub(workload: Workload) -> Side:
    """Load a ResNet-vd of keras-hub (https://keras.io/keras_hub)."""
    library = import_peer('keras_hub')
    backend = importlib.import_module('keras').config.backend()
    if backend != 'jax':
        raise ValueError(f'Keras was imported with the backend {backend}; the benchmark needs jax')
    backbone = library.models.ResNetBackbone(
        input_conv_filters=[32, 32, 64],
        input_conv_kernel_sizes=[3, 3, 3],
        stackwise_num_filters=[64, 128, 256, 512],
        stackwise_num_blocks=list(ARCHITECTURES[workload.architecture].layers),
        stackwise_num_strides=[1, 2, 2, 2],
        block_type='bottleneck_block_vd',
        data_format='channels_last',
    )
    model = library.models.ResNetImageClassifier(backbone=backbone, num_classes=CLASSES)
    given = model.trainable_variables, model.non_trainable_variables
    names = [[_keras_name(variable.path) for variable in variables] for variables in given]
    values = filled([name for group in names for name in group], workload)

    def apply(params: Any, stats: Any, x: jax.Array, train: bool = False, rngs: Any = None) -> Any:
        del rngs  # nothing is random
        logits, new = model.stateless_call([params[name] for name in names[0]], stats, x, training=train)
        return (logits, new) if train else logits

    # Parameters are a dict, as the training step requires; Keras takes lists.
    params, stats = {name: values[name] for name in names[0]}, [values[name] for name in names[1]]
    return JaxSide(apply, params, stats, workload.dtype)


def _keras_name(path: str) -> str:
    layer, leaf = path.split('/')[-2:]
    leaf = KERAS_LEAVES.get(leaf, leaf)
    if layer == 'predictions':
        return f'fc.{leaf}'
    if stem := re.fullmatch(r'conv(\d)_(conv|bn)', layer):
        number, is_norm = int(stem[1]) - 1, stem[2] == 'bn'
        return f'bn1.{leaf}' if is_norm and number == 2 else f'conv1.{3 * number + is_norm}.{leaf}'
    stage, block, number, kind = re.fullmatch(r'stack(\d)_block(\d+)_(\d)_(conv|bn)', layer).groups()  # type: ignore
    where = f'layer{int(stage) + 1}.{block}'
    return f'{where}.{kind}{number}.{leaf}' if number != '0' else f'{where}.downsample.{1 + (kind == "bn")}.{leaf}'


PEERS: dict[str, Callable[[Workload], Side]] = {'jaxnn': jaxnn, 'jax_resnet': jax_resnet, 'keras_hub': keras_hub}
