"""Read and write timm's ``config.json``, which describes the model in a folder or a repository of the hub.

The format is that of ``timm/models/_hub.py``.
"""

import dataclasses
import json
import math
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tresnet_jax.checkpoints.match import to_torch
from tresnet_jax.checkpoints.write import save_torch
from tresnet_jax.data.transforms import resolve_data_config
from tresnet_jax.errors import ConversionError, HubError, reason
from tresnet_jax.files import written_beside
from tresnet_jax.hub.client import CONFIG, WEIGHTS, find
from tresnet_jax.labels import are_names
from tresnet_jax.models.base import ImageModel
from tresnet_jax.variants import IMAGENET, PretrainedConfig, split_name


@dataclasses.dataclass(frozen=True)
class SavedConfig(PretrainedConfig):
    """The content of a ``config.json``: a row of the table, and options of the model.

    Attributes:
        source: 'hf-hub:org/name' or 'local-dir:FOLDER'.
        global_pool: pooling before the classifier; None: timm's default.
        output_stride: 32, 16 or 8.
    """

    source: str = ''
    global_pool: str | None = None
    output_stride: int = 32

    @property
    def name(self) -> str:
        """The source."""
        return self.source

    @property
    def hf_hub_id(self) -> str | None:
        """The repository on the hub, with its revision; None for a folder."""
        return self.source.removeprefix('hf-hub:') if self.source.startswith('hf-hub:') else None


def read_config(source: str, cache_dir: str | Path | None = None) -> SavedConfig:
    """Read the ``config.json`` of 'hf-hub:org/name' or 'local-dir:FOLDER'.

    Files, URLs and repositories that it names are ignored.

    Args:
        source: the repository or the folder.
        cache_dir: folder of downloaded files. None: the Hugging Face cache.

    Raises:
        HubError: there is no config.json, it is not timm's, or it describes a model that we do not support.
    """
    path = find(source, [CONFIG], cache_dir)
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise HubError(f'{path}: cannot be read as JSON: {reason(error)}') from None
    if not isinstance(config, dict):
        raise HubError(f'{path}: not a configuration of timm; expected a JSON object')
    return _to_row(config, source, path)


def _to_row(config: dict[str, Any], source: str, path: Path) -> SavedConfig:
    """Check every field of a ``config.json``; missing fields get timm's defaults."""
    # Before 2023 timm wrote one flat object, without pretrained_cfg.
    pretrained = config.get('pretrained_cfg', config)
    arguments = config.get('model_args') or {}
    if not isinstance(pretrained, Mapping) or not isinstance(arguments, Mapping):
        raise HubError(f'{path}: pretrained_cfg and model_args must be JSON objects')

    def take(fields: Mapping[str, Any], key: str, check: Callable[[Any], bool], default: Any) -> Any:
        value = fields.get(key)
        if value is None:
            return default
        if not check(value):
            raise HubError(f'{path}: {key} cannot be {reprlib.repr(value)}')
        return tuple(value) if isinstance(value, list) else value

    name = take(config, 'architecture', _is_text, '')
    try:
        architecture, _ = split_name(name)
    except ValueError as error:
        raise HubError(f'{path}: {error}') from None
    foreign = {key for key in arguments if key not in _ARGUMENTS and not key.endswith('_rate')}
    if foreign:
        raise HubError(f'{path}: uses {", ".join(sorted(foreign))}, which this package does not support')

    size = take(pretrained, 'input_size', _is_size, (3, 224, 224))
    test_size = take(pretrained, 'test_input_size', _is_size, None)
    channels = take(arguments, 'in_chans', _is_positive, size[0])
    classes = take(pretrained, 'num_classes', _is_count, 1000)
    return SavedConfig(
        architecture=architecture,
        tag=take(pretrained, 'tag', _is_text, ''),
        mean=take(pretrained, 'mean', _are_numbers, IMAGENET['mean']),
        std=take(pretrained, 'std', _are_numbers, IMAGENET['std']),
        interpolation=take(pretrained, 'interpolation', _is_text, 'bicubic'),
        input_size=(channels, *size[1:]),
        test_input_size=(channels, *test_size[1:]) if test_size else None,
        crop_pct=take(pretrained, 'crop_pct', _is_fraction, 0.875),
        test_crop_pct=take(pretrained, 'test_crop_pct', _is_fraction, None),
        crop_mode=take(pretrained, 'crop_mode', _is_text, 'center'),
        num_classes=take(arguments, 'num_classes', _is_count, take(config, 'num_classes', _is_count, classes)),
        license=take(pretrained, 'license', _is_text, ''),
        source=source,
        global_pool=take(arguments, 'global_pool', _is_text, None),
        output_stride=take(arguments, 'output_stride', _is_positive, 32),
        label_names=_names(config.get('label_names', pretrained.get('label_names'))),
    )


_ARGUMENTS = ('in_chans', 'num_classes', 'global_pool', 'output_stride')


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _names(value: Any) -> tuple[str, ...] | None:
    """Return a list of names as a tuple; None for timm's other forms. The names are only printed."""
    return tuple(value) if are_names(value) else None


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_positive(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_positive, value))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_fraction(value: Any) -> bool:
    return _is_number(value) and value > 0


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(map(_is_number, value))


def save_pretrained(model: ImageModel, folder: str | Path) -> None:
    """Write a model as ``model.safetensors`` and ``config.json``, which timm and this package load.

    ``timm.create_model('local-dir:FOLDER', pretrained=True)`` loads the folder, and so does `create_model` here.
    Uploaded unchanged, the folder is a repository for ``hf-hub:``. Each file is complete or absent.

    Args:
        model: a model with or without a classifier; its current weights, classes, channels and pooling are written.
        folder: created if missing; existing files of these names are replaced.

    Raises:
        ValueError: timm cannot build the model: it is a backbone (`features_only`), or has another slope than timm's.
        convert.ConversionError: (a ValueError) a file cannot be written.

    Example:
        >>> import tempfile
        >>> import tresnet_jax
        >>> model = tresnet_jax.create_model('test_resnet.fashion_mnist', pretrained=True)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tresnet_jax.save_pretrained(model, folder)
        ...     again = tresnet_jax.create_model(f'local-dir:{folder}', pretrained=True)
        >>> again.architecture, again.num_classes
        ('test_resnet', 10)
    """
    config, folder = to_config(model), Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConversionError(f'{folder}: cannot be created: {reason(error)}') from None
    with written_beside(folder / CONFIG) as beside:
        beside.write_text(json.dumps(config, indent=2) + '\n', encoding='utf-8')
        save_torch(folder / WEIGHTS[0], to_torch(model))


def to_config(model: ImageModel) -> dict[str, Any]:
    """Return the ``config.json`` of a model, as ``timm.models._hub.save_for_hf`` of timm 1.0.31 writes it.

    Raises:
        ValueError: timm cannot build the model.
    """
    if model.out_indices is not None or len(model._stages()) < 4 or not model.architecture:
        raise ValueError('only a whole model can be saved: a result of create_model without features_only or pruning')
    family = model.config.family
    if model.abn_slope != family.default_slope:
        raise ValueError(
            f'this model has the slope {model.abn_slope:g}, and timm supports only {family.default_slope}; use '
            'convert.save_flax'
        )
    data, row, channels = resolve_data_config(model), model.pretrained_cfg, model.in_chans
    arguments = {'in_chans': channels, 'num_classes': model.num_classes, 'global_pool': model.global_pool}
    if model.output_stride != 32:
        arguments['output_stride'] = model.output_stride

    def per_channel(values: tuple[float, ...]) -> list[float]:
        # As in timm: images with another number of channels get the mean of the values.
        return list(values) if len(values) == channels else [sum(values) / len(values)] * channels

    pretrained: dict[str, Any] = {
        'tag': row and row.tag,
        'custom_load': False,
        'input_size': [channels, *data['input_size'][1:]],
        'test_input_size': row and row.test_input_size and [channels, *row.test_input_size[1:]],
        'fixed_input_size': False,
        'interpolation': data['interpolation'],
        'crop_pct': data['crop_pct'],
        'test_crop_pct': row and row.test_crop_pct,
        'crop_mode': data['crop_mode'],
        'mean': per_channel(data['mean']),
        'std': per_channel(data['std']),
        'num_classes': model.num_classes,
        'pool_size': [size // 32 for size in data['input_size'][1:]],
        'first_conv': family.first_conv,
        'classifier': family.classifier,
        'license': row and row.license,
    }
    names = row.label_names if row else None
    return {
        'architecture': model.architecture,
        'num_classes': model.num_classes,
        'num_features': model.num_features,
        **({'global_pool': model.global_pool} if model.global_pool else {}),
        'model_args': arguments,
        **({'label_names': list(names)} if names and len(names) == model.num_classes else {}),
        'pretrained_cfg': {key: value for key, value in pretrained.items() if value not in (None, '')},
    }
