"""Networks with the keys and shapes of ours and another function: exclude them, refuse them, or say that they remain.

Tensors do not tell the activation, the pooling before a strided convolution, strides and dilations. A `config.json`
beside the file does, and so do the classes in a pickled module.
"""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

from tresnet_jax.checkpoints.find import Network, clean
from tresnet_jax.checkpoints.records import Record, printable
from tresnet_jax.errors import ConversionError
from tresnet_jax.variants import RESNETD, TRESNET, family_of, split_name

CONFIG = 'config.json'
UNSETTLED = 'the tensors alone do not exclude'  # how the note about remaining twins begins
# timm's networks with the tensors of ours.
TWINS = {
    'resnet34d': ('resnetaa34d',),
    'resnet50d': ('resnetaa50d', 'resnetblur50d'),
    'resnet101d': ('resnetaa101d', 'resnetblur101d'),
}
POOLINGS = {'AvgPool2d': 'resnetaa', 'BlurPool2d': 'resnetblur'}  # in a block's `aa`
ACTIVATIONS = {RESNETD.name: {'ReLU'}, TRESNET.name: {'ReLU', 'LeakyReLU', 'Sigmoid'}}
ACTIVATION = re.compile(r'.*\.(activation|activations)(\..*)?\.\w+')  # modules of torch and timm
NO_ACTIVATIONS = {'Identity', 'MultiheadAttention'}
# Arguments of timm's models that leave the function in evaluation as it is.
HARMLESS = re.compile(
    r'(in_chans|num_classes|global_pool|output_stride|.*_rate|pretrained.*|features_only|out_indices)'
)


class Function(NamedTuple):
    """What is known of the function of a network beyond its tensors.

    Attributes:
        settled_by: what excludes the twins; None: nothing does.
        abn_slope: slope of the leaky ReLUs in the blocks; None: timm's, or unknown.
        notes: options that the model needs, and twins that remain, one line each.
    """

    settled_by: str | None
    abn_slope: float | None
    notes: tuple[str, ...]


def check_function(path: Path, network: Network) -> Function:
    """Compare the configuration beside a file, and the classes of a pickled module, with the architecture.

    Args:
        path: the file; `config.json` is looked for in its folder.
        network: a network of a known architecture.

    Raises:
        ConversionError: they say that it is another network.
    """
    architecture = str(network.architecture)
    by_module, slope, notes = None, None, []
    if network.state.modules:
        by_module, (slope, notes) = 'the classes of the pickled module', _check_modules(path, network)
    config = read_config(path)
    by_config = None if config is None else _check_config(path, config, architecture)
    settled = by_module or (CONFIG if by_config is not None else None)
    notes += by_config or []
    if settled is None and family_of(architecture) is RESNETD:
        notes.append(_remaining(architecture, network.layout.unseen))
    return Function(settled, slope, tuple(notes))


def _remaining(architecture: str, unseen: tuple[str, ...]) -> str:
    """Return the note about the twins that the tensors of a ResNet-D cannot exclude.

    Args:
        architecture: the architecture.
        unseen: the twins in the library whose names the tensors have; empty for timm's names.
    """
    if unseen:
        return f'{UNSETTLED} {", ".join(unseen)}'
    others = ', '.join((*TWINS.get(architecture, ()), 'other activations', 'dilations'))
    return f'{UNSETTLED} {others}; a {CONFIG} of timm beside the file would'


def read_config(path: Path) -> dict[str, Any] | None:
    """Return the `config.json` in the folder of a file, if it names a network as timm or smp does; else None."""
    try:
        config = json.loads((path.parent / CONFIG).read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) and stated_architecture(config) is not None else None


def stated_architecture(config: dict[str, Any]) -> str | None:
    """Return the name in timm's 'architecture' or in smp's 'encoder_name'; None without either."""
    encoder = config.get('encoder_name')
    if isinstance(encoder, str) and encoder.startswith('tu-'):  # smp's mark of timm's models
        return encoder.removeprefix('tu-')
    name = config.get('architecture')
    return name if isinstance(name, str) and name else None


def _check_config(path: Path, config: dict[str, Any], architecture: str) -> list[str]:
    """Return options that the model needs. Raises ConversionError if the configuration is of another network."""
    name = stated_architecture(config) or ''
    place = path.parent / CONFIG
    try:
        same = split_name(name)[0] == architecture
    except ValueError:
        same = False
    if not same:
        raise ConversionError(
            f'{path}: has the tensors of {architecture}, but {place} says {printable(name, 60)!r}; if that is another '
            f"checkpoint's, move it away"
        )
    arguments = config.get('model_args')
    arguments = arguments if isinstance(arguments, dict) else {}
    other = [key for key, value in arguments.items() if not _is_harmless(key, value)]
    if other:
        shown = ', '.join(f'{key}={arguments[key]!r}' for key in sorted(other))
        raise ConversionError(
            f'{path}: {place} says {printable(shown, 120)}, which is another network than {architecture}'
        )
    pool, default = arguments.get('global_pool') or config.get('global_pool'), {'avg', 'fast', 'fastavg', ''}
    return _options(arguments.get('output_stride'), None if pool in default else pool)


def _is_harmless(key: str, value: Any) -> bool:
    return value is None or HARMLESS.fullmatch(key) is not None or (key, value) == ('act_layer', 'relu')


def _options(output_stride: Any, global_pool: Any) -> list[str]:
    notes = []
    if output_stride in (8, 16):
        notes.append(f'trained with output_stride={output_stride}: give it to create_model')
    if isinstance(global_pool, str) and global_pool:
        notes.append(f'trained with global_pool={printable(global_pool, 20)!r}: give it to create_model')
    return notes


def _check_modules(path: Path, network: Network) -> tuple[float | None, list[str]]:
    """Return the slope of leaky ReLUs and the options that the model needs.

    Raises:
        ConversionError: an activation, a pooling or a stride is of another network.
    """
    architecture = str(network.architecture)
    family, prefix = family_of(architecture), network.prefix
    modules = {clean(name): record for name, record in network.state.modules.items()}
    slopes = set()
    for name, record in modules.items():
        if not f'{name}.'.startswith(prefix):
            continue
        inner, kind = name[len(prefix) :], record.class_name.rpartition('.')[2]
        first, last = inner.partition('.')[0], inner.rpartition('.')[2]
        if not network.layout.member(inner) and not re.fullmatch(r'act\d*', first):
            continue
        pooling = POOLINGS.get(kind) if last == 'aa' else None
        if family is RESNETD and pooling:
            twin = architecture.replace('resnet', pooling)
            raise ConversionError(f'{path}: its module has {kind} in {inner}: it is {twin}, not {architecture}')
        is_activation = ACTIVATION.fullmatch(record.class_name) or re.fullmatch(r'act\d*', last)
        if is_activation and kind not in ACTIVATIONS[family.name] | NO_ACTIVATIONS:
            raise ConversionError(
                f'{path}: its module has the activation {printable(kind, 40)} in {inner}, which {architecture} does '
                'not have'
            )
        slope = record.attributes.get('negative_slope')
        if kind == 'LeakyReLU' and 'layer' in inner and isinstance(slope, float):
            slopes.add(slope)
    pool = modules.get(f'{prefix}global_pool')
    pool_type = pool.attributes.get('pool_type') if pool else None
    stride = _output_stride(path, network, modules) if family is RESNETD else None
    other = slopes - {family.default_slope}
    return other.pop() if len(slopes) == 1 and other else None, _options(
        stride, None if pool_type == 'avg' else pool_type
    )


def _output_stride(path: Path, network: Network, modules: dict[str, Record]) -> int | None:
    """Return the output stride that the convolutions of a ResNet-D have; None if the module does not state them.

    Raises:
        ConversionError: a stage strides in its first 1x1 convolution.
    """
    reached = 4
    for stage in '234':
        strides = []
        for number in '123':
            key = network.keys.get(f'layer{stage}.0.conv{number}.weight')
            owner = modules.get(clean(key).removesuffix('.weight')) if key else None
            stride = owner.attributes.get('stride') if owner else None
            strides.append(stride[0] if isinstance(stride, tuple) and stride else None)
        if strides[0] is None:
            return None
        if strides[0] == 2 and f'layer{stage}.0.conv3.weight' in network.tensors:
            raise ConversionError(
                f"{path}: its module strides in layer{stage}.0.conv1 (style='caffe' of OpenMMLab), another network"
            )
        reached *= 2 if 2 in strides else 1
    return reached
