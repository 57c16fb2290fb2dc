"""Store timm's outputs in a small file, to check a port without torch: ``python -m convert golden``."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tresnet_jax.checkpoints.match import match, to_torch
from tresnet_jax.checkpoints.write import save_safetensors
from tresnet_jax.errors import ConversionError
from tresnet_jax.files import sha256
from tresnet_jax.variants import family_of, split_name

from .comparison import relative_error
from .reading import read


def seeded_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Draw weights that NumPy alone can reproduce, under timm's names and in torch's layouts, float32.

    Each tensor has its own generator, ``default_rng([seed, crc32(name)])``. Convolutions and linear layers are normal
    with a variance of 2 / fan-in. Gammas are uniform from 0.4 to 1.2 (from 0.1 to 0.3 before a residual sum) with
    random signs, betas and running means from -0.3 to 0.3, running variances from 0.7 to 1.4. Counters are 1.

    Args:
        shapes: timm key -> shape.
        seed: not negative.
    """
    weights = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        if name.endswith('num_batches_tracked'):
            weights[name] = np.array(1, np.int64)
        elif name.endswith('running_var'):
            weights[name] = rng.uniform(0.7, 1.4, shape).astype(np.float32)
        elif name.endswith('bias') or name.endswith('running_mean'):
            weights[name] = rng.uniform(-0.3, 0.3, shape).astype(np.float32)
        elif len(shape) == 1:
            low, high = (0.1, 0.3) if _is_last_gamma(name, shapes) else (0.4, 1.2)
            weights[name] = (rng.uniform(low, high, shape) * rng.choice([-1.0, 1.0], shape)).astype(np.float32)
        else:
            scale = np.sqrt(2 / np.prod(shape[1:]))
            weights[name] = (rng.standard_normal(shape) * scale).astype(np.float32)
    return weights


def _is_last_gamma(name: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether a gamma is the last one of its block: conv3.bn or bn3, else conv2.bn or bn2 without a third."""
    if name.endswith(('conv3.bn.weight', '.bn3.weight')):
        return True
    if name.endswith(('conv2.bn.weight', '.bn2.weight')):
        return name.replace('conv2', 'conv3').replace('bn2', 'bn3') not in shapes
    return False


def timm_model(architecture: str, **options: Any) -> Any:
    """Return timm's model in evaluation mode; for our own test_tresnet, timm's class with our configuration.

    Raises:
        ConversionError: torch or timm is not installed.
    """
    try:
        import timm
        from timm.models.tresnet import TResNet
    except ImportError:
        raise ConversionError('timm is not installed; run: pip install timm torch torchvision') from None
    if architecture == 'test_tresnet':
        features_only = options.pop('features_only', False)
        model = TResNet(layers=[1, 1, 1, 1], width_factor=0.25, **options)
        if features_only:
            model = timm.models.FeatureListNet(model, (1, 2, 3, 4), flatten_sequential=True)
        return model.eval()
    return timm.create_model(architecture, **options).eval()


def add_timm_ml_decoder(model: Any, num_of_groups: int, decoder_embedding: int) -> None:
    """Replace the head of a timm model with timm's ML-Decoder.

    ``add_ml_decoder_head`` of timm has no arguments for the sizes, and its head fails on torch 2, whose
    ``TransformerDecoder`` expects a layer with self-attention: the only layer is called instead.
    """
    import torch
    from timm.layers.ml_decoder import MLDecoder

    head: Any = MLDecoder(model.num_classes, num_of_groups, decoder_embedding, model.num_features)
    head.decoder.forward = lambda queries, memory: head.decoder.layers[0](queries, memory)
    if hasattr(model, 'fc'):
        model.global_pool, model.fc = torch.nn.Identity(), head
    else:
        model.head = head
    model.drop_rate = 0
    head.train(model.training)


def set_timm_slope(model: Any, slope: float | None) -> None:
    """Give the leaky ReLUs of a timm model another slope, for which timm has no option; None: leave timm's."""
    import torch

    for module in model.modules():
        if slope is not None and isinstance(module, torch.nn.LeakyReLU):
            module.negative_slope = slope


def timm_outputs(model: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return `features.0` (the stem) to `features.4` and `logits` of a timm model, in torch's layout."""
    import torch

    with torch.no_grad():
        dtype = next(model.parameters()).dtype
        last, maps = model.forward_intermediates(torch.from_numpy(images).to(dtype))
        outputs = {f'features.{i}': m for i, m in enumerate(maps)} | {'logits': model.forward_head(last)}
    return {name: value.contiguous().numpy() for name, value in outputs.items()}


def write_golden(
    path: str | Path,
    name: str,
    *,
    checkpoint: str | Path | None = None,
    key: str | None = None,
    image_size: int = 64,
    seed: int = 0,
) -> None:
    """Write a seeded image, timm's outputs for it, and torch's float32 noise as a safetensors file.

    The file holds `images` (1, C, H, W), `features.0` to `features.4` and `logits`, all float32 and in torch's layout,
    with `float32_noise` and the origin of the weights as metadata.

    Args:
        path: the .safetensors file.
        name: architecture, with or without a tag.
        checkpoint: the weights, in any layout that `read` takes. None: `seeded_weights` with the seed.
        key: the network of a checkpoint with several; see `read`.
        image_size: height and width of the image.
        seed: seed of the image, which is standard normal, and of the seeded weights.

    Raises:
        ConversionError: torch or timm is not installed, an argument is invalid, or a file cannot be read or written.
    """
    try:
        architecture, _ = split_name(name)
    except ValueError as error:
        raise ConversionError(str(error)) from error
    multiple, smallest = family_of(architecture).input_multiple, family_of(architecture).min_input
    if image_size < smallest or image_size % multiple:
        raise ConversionError(
            f'{architecture}: the image size must be a multiple of {multiple} and at least {smallest}, got {image_size}'
        )
    if seed < 0:
        raise ConversionError(f'the seed must not be negative, got {seed}')
    in_chans = 3
    if checkpoint is None and key is not None:
        raise ConversionError('--key (key) selects a network of --checkpoint; give it too')
    if checkpoint is None:
        model = timm_model(architecture)
        state = seeded_weights({key: tuple(value.shape) for key, value in model.state_dict().items()}, seed)
        weights = f'seeded_weights(shapes, {seed})'
    else:
        _, params, batch_stats, report = match(read(checkpoint, key=key), name, consume=True)
        in_chans = report.in_chans
        options = {'global_pool': report.global_pool, 'output_stride': report.output_stride}
        options = {key: value for key, value in options.items() if value is not None}
        model = timm_model(architecture, num_classes=report.num_classes, in_chans=in_chans, **options)
        if report.head_options:
            add_timm_ml_decoder(model, report.head_options['num_of_groups'], report.head_options['decoder_embedding'])
        if report.abn_slope != family_of(architecture).default_slope:  # of the stem, too
            set_timm_slope(model, report.abn_slope)
        state = to_torch(params, batch_stats, num_batches_tracked=report.counters)
        weights = sha256(checkpoint)
    import timm
    import torch

    model.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()}, strict=True)
    images = np.random.default_rng(seed).standard_normal((1, in_chans, image_size, image_size)).astype(np.float32)
    single, double = timm_outputs(model.float(), images), timm_outputs(model.double(), images)
    metadata = {
        'name': name,
        'weights': weights,
        'seed': str(seed),
        'float32_noise': json.dumps({key: relative_error(single[key], double[key]) for key in single}),
        'versions': json.dumps({'timm': timm.__version__, 'torch': torch.__version__}),
    }
    save_safetensors(Path(path), {'images': images, **single}, metadata)
