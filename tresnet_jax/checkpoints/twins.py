"""Networks with the keys and shapes of ours that compute another function: exclude, refuse or report them.

Tensors do not show the activation, the pooling before a strided convolution, strides and dilations. A `config.json`
beside the file does, and so do the classes in a pickled module and the arguments of timm's training script.
"""

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

from tresnet_jax.checkpoints import config_file
from tresnet_jax.checkpoints.config_file import CONFIG, SavedConfig
from tresnet_jax.checkpoints.find import Network, clean
from tresnet_jax.checkpoints.records import Record, described, printable
from tresnet_jax.checkpoints.stated import is_number, network_names, network_options
from tresnet_jax.errors import ConversionError
from tresnet_jax.models.pooling import POOL_TYPES
from tresnet_jax.variants import RESNETD, TRESNET, family_of, split_name

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
DEFAULT_POOLINGS = (None, '', 'avg', 'fast', 'fastavg')
NO_ACTIVATIONS = {'Identity', 'MultiheadAttention'}
EPSILON = 1e-5  # of every batch norm
SAVE_ALONE = "; if it is not, save its tensors alone: torch.save(checkpoint['state_dict'], 'weights.pth')"


class Function(NamedTuple):
    """What is known of the function of a network beyond its tensors.

    Attributes:
        settled_by: what excludes the twins; None: nothing does.
        abn_slope: slope of the leaky ReLUs in the blocks; None: timm's, or unknown.
        global_pool, output_stride: options with which the network was trained; None: timm's, or unknown.
        saved: the configuration beside the file; None: there is none.
        notes: these options, and twins that remain, one line each.
    """

    settled_by: str | None
    abn_slope: float | None
    global_pool: str | None
    output_stride: int | None
    saved: SavedConfig | None
    notes: tuple[str, ...]


def check_function(path: Path, network: Network, tree: Any = None) -> Function:
    """Compare what says more than tensors with the architecture.

    That is the configuration beside a file, the arguments of a training script, and the classes of a pickled module.

    Args:
        path: the file; `config.json` is looked for in its folder.
        network: a network of a known architecture.
        tree: the checkpoint, which can have the arguments of a training script.

    Raises:
        ConversionError: they state another network.
    """
    architecture = str(network.architecture)
    saved = _saved_config(path, architecture)
    settled, slope = (CONFIG if saved else None), None
    pool, stride = (saved.global_pool, saved.output_stride) if saved else (None, None)
    options, is_named = _check_script(path, tree, architecture)
    settled = "the arguments of timm's script" if is_named else settled
    pool, stride = options.get('global_pool') or pool, options.get('output_stride') or stride
    if network.state.modules:
        settled = 'the classes of the pickled module'
        slope, module_pool, module_stride = _check_modules(path, network)
        pool, stride = module_pool or pool, module_stride or stride
    pool, stride = (None if pool in DEFAULT_POOLINGS else pool), (None if stride == 32 else stride)
    notes = list(saved.notes) if saved else []
    notes += [f'trained with output_stride={stride}'] if stride else []
    notes += [f'trained with global_pool={pool!r}'] if pool else []
    if settled is None and family_of(architecture) is RESNETD:
        notes.append(_remaining(architecture, network.layout.unseen))
    return Function(settled, slope, pool, stride, saved, tuple(notes))


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


def _saved_config(path: Path, architecture: str) -> SavedConfig | None:
    """Return the configuration in the folder of a file; None if it is missing, or of a program that names no network.

    Raises:
        ConversionError: it is of another network.
    """
    place = path.parent / CONFIG
    try:
        config = config_file.load(place)
    except ConversionError:
        return None
    name = config.get('architecture')
    if not isinstance(name, str) or not name:
        return None
    if not _is_architecture(name, architecture):
        raise ConversionError(
            f'{path}: has the tensors of {architecture}, but {place} says {printable(name, 60)!r}; if that is another '
            f"checkpoint's, move it away"
        )
    return config_file.parse(config, place)


def _check_script(path: Path, tree: Any, architecture: str) -> tuple[dict[str, Any], bool]:
    """Return the arguments with which timm's script built the network, and whether it says that it is this one.

    Raises:
        ConversionError: they make another network.
    """
    # 'hf-hub:timm/resnetaa50d.a1h_in1k' -> 'resnetaa50d'
    names = [re.split('[/:]', name)[-1].partition('.')[0] for name in network_names(tree)]
    twin = next((name for name in names if name in TWINS.get(architecture, ())), None)
    if twin is not None:
        raise ConversionError(
            f'{path}: has the tensors of {architecture}, but its training script says {twin!r}, another network'
        )
    options = network_options(tree)
    if options is None:
        return {}, False
    where = 'arguments of its training script'
    config_file.check_arguments(options, architecture, path, where, SAVE_ALONE)
    known = {'global_pool': POOL_TYPES, 'output_stride': family_of(architecture).output_strides}
    for key, values in known.items():
        value = options.get(key)
        is_plain = isinstance(value, str) or is_number(value)
        if key in options and not (is_plain and value in values):
            found = printable(value, 40) if is_plain else described(value)
            raise ConversionError(f'{path}: has {key} {found} ({where}), which {architecture} does not have')
    return options, any(_is_architecture(name, architecture) for name in names)


def _is_architecture(name: str, architecture: str) -> bool:
    try:
        return split_name(name)[0] == architecture
    except ValueError:
        return False


def _check_modules(path: Path, network: Network) -> tuple[float | None, str | None, int | None]:
    """Return the slope of leaky ReLUs, the pooling and the output stride; None for each that is timm's or unknown.

    Raises:
        ConversionError: an activation, its slope, a batch norm, a pooling or a stride is of another network.
    """
    architecture = str(network.architecture)
    family, prefix = family_of(architecture), network.prefix
    modules = {clean(name): record for name, record in network.state.modules.items()}
    slopes, stored = set(), {clean(key) for key in network.keys.values()}
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
            raise ConversionError(
                f'{path}: its module has {kind} in {printable(inner, 80)}: it is {twin}, not {architecture}'
            )
        is_activation = ACTIVATION.fullmatch(record.class_name) or re.fullmatch(r'act\d*', last)
        if is_activation and kind not in ACTIVATIONS[family.name] | NO_ACTIVATIONS:
            raise ConversionError(
                f'{path}: its module has the activation {printable(kind, 40)} in {printable(inner, 80)}, which '
                f'{architecture} does not have'
            )
        epsilon = record.attributes.get('eps')
        if epsilon is not None and f'{name}.running_var' in stored:
            # Paddle's and some converters' epsilon is 1e-5 in float32.
            if not is_number(epsilon) or not math.isclose(epsilon, EPSILON, rel_tol=1e-4):
                found = f'{epsilon:g}' if is_number(epsilon) else described(epsilon)
                raise ConversionError(
                    f'{path}: its module has a batch norm of epsilon {found} in {printable(inner, 80)}; {architecture} '
                    f'has {EPSILON:g}'
                )
        slope = record.attributes.get('negative_slope')
        if kind == 'LeakyReLU' and 'layer' in inner and slope is not None:
            slopes.add(float(slope) if is_number(slope) else math.nan)
    if len(slopes) > 1 or any(map(math.isnan, slopes)):
        found = ', '.join(f'{slope:g}' for slope in sorted(slopes)[:5])
        raise ConversionError(
            f'{path}: its module has leaky ReLUs of the slopes {found}; {architecture} has one number'
        )
    pool = modules.get(f'{prefix}global_pool')
    pool_type = pool.attributes.get('pool_type') if pool else None
    if pool_type is not None and pool_type not in POOL_TYPES:
        # Only text: a list that shares its parts can print as 2 ** depth of them.
        found = repr(printable(pool_type, 40)) if isinstance(pool_type, str) else described(pool_type)
        raise ConversionError(f'{path}: its module pools by {found}, which {architecture} does not')
    stride = _output_stride(path, network, modules) if family is RESNETD else None
    other = slopes - {family.default_slope}
    return other.pop() if other else None, pool_type, stride


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
    if reached not in RESNETD.output_strides:
        raise ConversionError(
            f'{path}: its module has the output stride {reached}, which {network.architecture} does not have'
        )
    return reached
