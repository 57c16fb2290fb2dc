"""Read and write the ``config.json`` of a folder or a repository of the hub; `config_file` describes its forms."""

import json
from pathlib import Path
from typing import Any

from tresnet_jax.checkpoints import config_file
from tresnet_jax.checkpoints.config_file import CONFIG, SavedConfig
from tresnet_jax.checkpoints.match import to_torch
from tresnet_jax.checkpoints.shards import FOLDER_FILES
from tresnet_jax.checkpoints.write import save_torch
from tresnet_jax.data.transforms import resolve_data_config
from tresnet_jax.errors import ConversionError, HubError, reason
from tresnet_jax.files import written_beside
from tresnet_jax.hub.client import find
from tresnet_jax.models.base import ImageModel
from tresnet_jax.variants import CLASSIFICATION


def read_config(source: str, cache_dir: str | Path | None = None) -> SavedConfig:
    """Read the ``config.json`` of 'hf-hub:org/name' or 'local-dir:FOLDER'.

    Args:
        source: the repository or the folder.
        cache_dir: folder of downloaded files. None: the Hugging Face cache.

    Raises:
        HubError: there is no config.json, it was written by a program other than timm, transformers and
            segmentation_models_pytorch, or it describes an unsupported model.
    """
    path = find(source, [CONFIG], cache_dir)
    try:
        return config_file.parse(config_file.load(path), path, source)
    except ConversionError as error:
        raise HubError(str(error)) from None


def save_pretrained(model: ImageModel, folder: str | Path) -> None:
    """Write a model as ``model.safetensors`` and ``config.json``, which timm and this package load.

    ``timm.create_model('local-dir:FOLDER', pretrained=True)`` loads the folder, and so does `create_model` here.
    Uploaded unchanged, the folder is a repository for ``hf-hub:``. Each file is complete or absent. timm's create_model
    has no option for an ML-Decoder head: it refuses such a folder, and this package loads it.

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
        save_torch(folder / FOLDER_FILES[0], to_torch(model))


def to_config(model: ImageModel) -> dict[str, Any]:
    """Return the ``config.json`` of a model, as ``timm.models._hub.save_for_hf`` of timm 1.0.31 writes it.

    'task' is our own field, for a model with any number of classes per image; timm ignores it.

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
    arguments = {'in_chans': channels, 'num_classes': model.num_classes}
    arguments |= model.head_options or {'global_pool': model.global_pool}
    if model.output_stride != 32:
        arguments['output_stride'] = model.output_stride

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
        'mean': list(data['mean']),
        'std': list(data['std']),
        'num_classes': model.num_classes,
        'pool_size': [size // 32 for size in data['input_size'][1:]],
        'first_conv': family.first_conv,
        'classifier': model.get_classifier(name_only=True),
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
        **({'task': row.task} if row and row.task != CLASSIFICATION else {}),
        'pretrained_cfg': {key: value for key, value in pretrained.items() if value not in (None, '')},
    }
