"""The `config.json` beside weights: the network, its options, its classes and its images.

timm writes it (``timm/models/_hub.py``), transformers for its TimmWrapper and TimmBackbone, and
segmentation_models_pytorch. `as_timm` returns each in timm's current form, and `parse` checks it.
"""

import dataclasses
import re
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tresnet_jax.checkpoints.records import described, printable
from tresnet_jax.checkpoints.stated import (
    SMALLEST_CROP_PCT,
    is_channels,
    is_number,
    is_numbers,
    is_size,
    listed_names,
    transform_of,
)
from tresnet_jax.data.transforms import resolve_data_config
from tresnet_jax.errors import ConversionError
from tresnet_jax.files import read_json
from tresnet_jax.models.build import HEADS
from tresnet_jax.models.pooling import POOL_TYPES
from tresnet_jax.variants import (
    ARCHITECTURES,
    CLASSIFICATION,
    IMAGENET,
    MULTILABEL,
    RESNETD,
    TASKS,
    TRESNET,
    PretrainedConfig,
    family_of,
    split_name,
)

CONFIG = 'config.json'
NAMES = ('label_names', 'labels', 'id2label')  # 'labels' is timm's key of 2021 and 2022
IMAGE_FIELDS = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct')

# The arguments of timm's models: those that become fields of `SavedConfig`; those that are ignored, because they
# concern training or the source of the weights; and those that are ignored if they have the value of our architectures.
# Others are refused.
APPLIED = (
    *('in_chans', 'num_classes', 'global_pool', 'output_stride', 'drop_rate', 'drop_path_rate'),
    *('head', 'num_of_groups', 'decoder_embedding', 'features_only', 'out_indices'),
)
WITHOUT_EFFECT = re.compile(r'.*_rate|bn_momentum|zero_init_last|pretrained.*|scriptable|exportable|no_jit')
OWN_VALUES: dict[str, dict[str, tuple[Any, ...]]] = {
    RESNETD.name: {
        'act_layer': ('relu',),
        'bn_eps': (1e-5,),
        'norm_layer': ('batchnorm', 'batchnorm2d'),
        'aa_layer': ('',),
        'stem_type': ('deep',),
        'avg_down': (True,),
        'replace_stem_pool': (False,),
        'cardinality': (1,),
        'base_width': (64,),
        'block_reduce_first': (1,),
        'down_kernel_size': (1,),
    },
    TRESNET.name: {'act_layer': ('leaky_relu',), 'bn_eps': (1e-5,)},
}

TRANSFORMERS_MULTILABEL = 'multi_label_classification'  # transformers' problem_type
LARGEST_COUNT = 2**24  # of classes, channels and queries
LONGEST_NAME = 200  # characters of an architecture's name
RT_DETR = 'rt_detr_resnet'
RT_DETR_NAMES = ('resnet50d', 'resnet101d', 'resnet152d')  # its networks of basic blocks are not timm's


@dataclasses.dataclass(frozen=True)
class SavedConfig(PretrainedConfig):
    """The content of a ``config.json``: a row of the table, and options of the model.

    Attributes:
        source: 'hf-hub:org/name' or 'local-dir:FOLDER'; '' for a file beside weights.
        global_pool: pooling before the classifier; None: timm's default.
        output_stride: 32, 16 or 8; None: 32.
        drop_rate, drop_path_rate: rates in training; None: 0.
        head, num_of_groups, decoder_embedding: the head, which timm's configurations do not have; None: a linear layer.
        features_only, out_indices: whether it is a backbone, and its feature maps; None: timm's default.
        states_classes: whether the number of classes is stated; otherwise it is that of the weights.
        states_images: whether it states how images are prepared; otherwise these are timm's defaults.
        notes: what was left out, one line each.
    """

    source: str = ''
    global_pool: str | None = None
    output_stride: int | None = None
    drop_rate: float | None = None
    drop_path_rate: float | None = None
    head: str | None = None
    num_of_groups: int | None = None
    decoder_embedding: int | None = None
    features_only: bool = False
    out_indices: tuple[int, ...] | int | None = None
    states_classes: bool = True
    states_images: bool = True
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The source."""
        return self.source

    @property
    def hf_hub_id(self) -> str | None:
        """The repository on the hub, with its revision; None for a folder."""
        return self.source.removeprefix('hf-hub:') if self.source.startswith('hf-hub:') else None


def load(path: Path) -> dict[str, Any]:
    """Return the content of a ``config.json`` in timm's form.

    Raises:
        ConversionError: it cannot be read, or is not a JSON object.
    """
    config = read_json(path)
    if not isinstance(config, dict):
        raise ConversionError(f'{path}: not a configuration of timm; expected a JSON object')
    return as_timm(config)


def as_timm(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration in timm's form, whichever library wrote it; values are not checked."""
    if isinstance(config.get('encoder_name'), str):  # segmentation_models_pytorch
        arguments = {'in_chans': config.get('in_channels'), 'output_stride': config.get('encoder_output_stride')}
        # 'tu-' and, before 2023, 'timm-' mark timm's models.
        name = re.sub('^(tu|timm)-', '', config['encoder_name'])
        return {'architecture': name, 'num_classes': 0, 'model_args': arguments}
    inner = config.get('backbone_config')  # of transformers' detectors
    if isinstance(inner, dict) and inner.get('model_type') in ('timm_backbone', RT_DETR):
        return {**as_timm({**inner, 'backbone_config': None}), 'num_classes': 0}
    kind = config.get('model_type')
    if kind == RT_DETR:
        layers = [config.get('layer_type', 'bottleneck'), config.get('depths', [3, 4, 6, 3])]
        names = [name for name in RT_DETR_NAMES if ['bottleneck', list(ARCHITECTURES[name].layers)] == layers]
        name = names[0] if names else 'another RTDetrResNet'
        arguments = {'act_layer': config.get('hidden_act'), 'in_chans': config.get('num_channels')}
        if config.get('downsample_in_bottleneck'):
            arguments['downsample_in_bottleneck'] = True
        return {'architecture': name, 'num_classes': 0, 'model_args': arguments}
    if isinstance(config.get('backbone'), str) and (kind == 'timm_backbone' or config.get('use_timm_backbone')):
        arguments = {'in_chans': config.get('num_channels'), 'output_stride': config.get('output_stride')}
        if kind == 'timm_backbone':
            arguments |= {'features_only': True, 'out_indices': config.get('out_indices')}
        return {'architecture': config['backbone'], 'num_classes': 0, 'model_args': arguments}
    if kind == 'timm_wrapper':
        # TimmWrapperModel builds timm's model without a classifier, whatever the number of labels is.
        headless = config.get('architectures') == ['TimmWrapperModel']
        stated = [config[key] for key in ('num_classes', 'num_labels') if config.get(key) is not None]
        return {**config, 'num_classes': 0 if headless else next(iter(stated), None)}
    return config


def parse(config: dict[str, Any], path: Path, source: str = '') -> SavedConfig:
    """Check every field of a configuration in timm's form; missing fields get timm's defaults.

    Files, URLs and repositories that it names are ignored.

    Args:
        config: the result of `load`.
        path: the file, for messages.
        source: see `SavedConfig`.

    Raises:
        ConversionError: a value is of another type, or the model is not supported.
    """
    # Before 2023 timm wrote one flat object, without pretrained_cfg.
    pretrained = config.get('pretrained_cfg') or config
    arguments = config.get('model_args') or {}
    if not isinstance(pretrained, Mapping) or not isinstance(arguments, Mapping):
        raise ConversionError(f'{path}: pretrained_cfg and model_args must be JSON objects')

    def take(fields: Mapping[str, Any], key: str, check: Callable[[Any], bool], default: Any = None) -> Any:
        value = fields.get(key)
        if value is None:
            return default
        if not check(value):
            raise ConversionError(f'{path}: {key} cannot be {reprlib.repr(value)}')
        return tuple(value) if isinstance(value, list) else value

    name = take(config, 'architecture', _is_name, '')
    try:
        architecture, _ = split_name(name)
    except ValueError as error:
        raise ConversionError(f'{path}: {error}') from None
    check_arguments(arguments, architecture, path)

    classes = take(pretrained, 'num_classes', _is_count)
    classes = take(arguments, 'num_classes', _is_count, take(config, 'num_classes', _is_count, classes))
    names, notes = _label_names(config, pretrained, classes)
    task = MULTILABEL if config.get('problem_type') == TRANSFORMERS_MULTILABEL else CLASSIFICATION
    size = take(pretrained, 'input_size', is_size, (3, 224, 224))
    test_size = take(pretrained, 'test_input_size', is_size)
    channels = take(arguments, 'in_chans', is_channels, size[0])
    # Before it had model_args, timm wrote the pooling here, and did not read it.
    pool = take(config, 'global_pool', _is_pooling)
    return SavedConfig(
        architecture=architecture,
        tag=take(pretrained, 'tag', _is_text, ''),
        mean=take(pretrained, 'mean', is_numbers, IMAGENET['mean']),
        std=take(pretrained, 'std', is_numbers, IMAGENET['std']),
        interpolation=take(pretrained, 'interpolation', _is_text, 'bicubic'),
        input_size=(channels, *size[1:]),
        test_input_size=(channels, *test_size[1:]) if test_size else None,
        crop_pct=take(pretrained, 'crop_pct', _is_fraction, 0.875),
        test_crop_pct=take(pretrained, 'test_crop_pct', _is_fraction),
        crop_mode=take(pretrained, 'crop_mode', _is_text, 'center'),
        num_classes=classes if classes is not None else len(names or ()) or 1000,
        license=take(pretrained, 'license', _is_text, ''),
        source=source,
        global_pool=take(arguments, 'global_pool', _is_pooling, pool or None),
        output_stride=take(
            arguments, 'output_stride', lambda n: type(n) is int and n in family_of(architecture).output_strides
        ),
        drop_rate=take(arguments, 'drop_rate', _is_rate),
        drop_path_rate=take(arguments, 'drop_path_rate', _is_rate),
        head=take(arguments, 'head', _is_head),
        num_of_groups=take(arguments, 'num_of_groups', _is_positive),
        decoder_embedding=take(arguments, 'decoder_embedding', _is_positive),
        features_only=take(arguments, 'features_only', lambda value: isinstance(value, bool), False),
        out_indices=take(arguments, 'out_indices', _are_indices),
        label_names=names,
        task=take(config, 'task', lambda value: value in TASKS, task),
        states_classes=classes is not None,
        states_images=any(pretrained.get(field) is not None for field in IMAGE_FIELDS),
        notes=notes,
    )


def images(saved: SavedConfig) -> dict[str, Any] | None:
    """Return how images are prepared, as arguments of `create_transform`; None if the file does not say it."""
    config = resolve_data_config(saved)
    try:
        transform_of(config)
    except ValueError:
        return None
    return config if saved.states_images else None


def check_arguments(
    arguments: Mapping[str, Any], architecture: str, path: Path, where: str = 'model_args', remedy: str = ''
) -> None:
    """Raise ConversionError if arguments of timm's model make another network than the architecture.

    Args:
        arguments: arguments of timm's create_model.
        architecture: the architecture.
        path, where: the file and the place in it, for the message.
        remedy: what to do, for the message.
    """
    own = OWN_VALUES[family_of(architecture).name]

    def is_known(key: str, value: Any) -> bool:
        value = value.lower() if isinstance(value, str) else value
        return value is None or key in APPLIED or bool(WITHOUT_EFFECT.fullmatch(key)) or value in own.get(key, ())

    other = sorted(key for key, value in arguments.items() if not is_known(key, value))
    if other:
        shown = printable(', '.join(f'{key}={_shown(arguments[key])}' for key in other), 120)
        raise ConversionError(
            f'{path}: uses {shown} ({where}), which this package does not support; it may be another network than '
            f'{architecture}{remedy}'
        )


def _shown(value: Any) -> str:
    try:
        return reprlib.repr(value)
    except ValueError:  # a number of more digits than Python prints
        return described(value)


def _label_names(
    config: Mapping[str, Any], pretrained: Mapping[str, Any], classes: int | None
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Return the names of the classes, and a note about names that belong to other classes."""
    stale = 0
    for value in (holder.get(key) for holder in (config, pretrained) for key in NAMES):
        names = listed_names(value, classes)
        if names and len(names) == (len(names) if classes is None else classes):
            return names, ()
        stale = stale or len(names or ())
    # transformers keeps the names of the model that was fine-tuned.
    note = f'left out the names of {stale} classes in {CONFIG}, which says that there are {classes}'
    return None, (note,) if stale and classes else ()


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_NAME


def _is_pooling(value: Any) -> bool:
    return isinstance(value, str) and value in POOL_TYPES


def _is_head(value: Any) -> bool:
    return isinstance(value, str) and value in HEADS


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST_COUNT


def _is_positive(value: Any) -> bool:
    return type(value) is int and 0 < value <= LARGEST_COUNT


def _is_rate(value: Any) -> bool:
    return is_number(value) and 0 <= value < 1


def _is_fraction(value: Any) -> bool:
    return is_number(value) and value >= SMALLEST_CROP_PCT


def _are_indices(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return len(values) > 0 and all(type(number) is int for number in values)
