"""Outputs of timm in a small file, by which a port can be checked without torch: ``python -m convert golden``."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tresnet_jax.checkpoints.layouts import head_key, stem_key
from tresnet_jax.checkpoints.write import save_safetensors
from tresnet_jax.errors import ConversionError
from tresnet_jax.variants import family_of, split_name


def seeded_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Weights that anyone with NumPy can draw again, under timm's names and in torch's layouts, float32.

    Each tensor has a generator of its own, ``default_rng([seed, crc32(name)])``. Convolutions and linear layers are
    normal with a variance of 2 / fan-in; gammas lie in 0.4 to 1.2 (those before a residual sum in 0.1 to 0.3) with
    random signs; betas and running means in -0.3 to 0.3, running variances in 0.7 to 1.4. Counters are 1.
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
    """Whether a gamma is the last one of its block: conv3.bn or bn3, or conv2.bn or bn2 where there is no third."""
    if name.endswith(('conv3.bn.weight', '.bn3.weight')):
        return True
    if name.endswith(('conv2.bn.weight', '.bn2.weight')):
        return name.replace('conv2', 'conv3').replace('bn2', 'bn3') not in shapes
    return False


def timm_model(architecture: str, **options: Any) -> Any:
    """timm's model, in evaluation mode; of our test_tresnet timm's class with the row of our table.

    Raises:
        ConversionError: torch or timm is missing.
    """
    try:
        import timm
        from timm.models.tresnet import TResNet
    except ImportError:
        raise ConversionError('this compares with timm itself: pip install timm torch torchvision') from None
    if architecture == 'test_tresnet':
        features_only = options.pop('features_only', False)
        model = TResNet(layers=[1, 1, 1, 1], width_factor=0.25, **options)
        if features_only:
            model = timm.models.FeatureListNet(model, (1, 2, 3, 4), flatten_sequential=True)
        return model.eval()
    return timm.create_model(architecture, **options).eval()


def timm_outputs(model: Any, images: np.ndarray) -> dict[str, np.ndarray]:
    """`features.0` (the stem) to `features.4` and `logits` of a timm model, in torch's layout."""
    import torch

    with torch.no_grad():
        dtype = next(model.parameters()).dtype
        last, maps = model.forward_intermediates(torch.from_numpy(images).to(dtype))
        outputs = {f'features.{i}': m for i, m in enumerate(maps)} | {'logits': model.forward_head(last)}
    return {name: value.contiguous().numpy() for name, value in outputs.items()}


def write_golden(
    path: str | Path,
    name: str,
    state: dict[str, np.ndarray],
    *,
    image_size: int,
    seed: int,
    weights: str,
) -> None:
    """Store seeded images, timm's outputs on them, and torch's own float32 noise.

    Args:
        path: the .safetensors file to write: `images` (1, C, H, W), `features.0` ... and `logits`, float32.
        name: the architecture, or a tagged name.
        state: timm's tensors.
        image_size: of the square images.
        seed: of the images, which are standard normal.
        weights: where the weights come from, for the metadata.

    Raises:
        ConversionError: timm is missing, or the file cannot be written.
    """
    architecture, _ = split_name(name)
    stem, head = state[stem_key(architecture)], state.get(f'{head_key(architecture)}.weight')
    in_chans = family_of(architecture).in_chans(stem.shape[1])
    model = timm_model(architecture, num_classes=0 if head is None else head.shape[0], in_chans=in_chans)
    import timm
    import torch

    model.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in state.items()}, strict=True)
    images = np.random.default_rng(seed).standard_normal((1, in_chans, image_size, image_size)).astype(np.float32)
    single, double = timm_outputs(model.float(), images), timm_outputs(model.double(), images)
    noise = {key: float(np.abs(single[key] - double[key]).max() / np.abs(double[key]).max()) for key in single}
    metadata = {
        'name': name,
        'weights': weights,
        'seed': str(seed),
        'float32_noise': json.dumps(noise),
        'versions': json.dumps({'timm': timm.__version__, 'torch': torch.__version__}),
    }
    save_safetensors(Path(path), {'images': images, **single}, metadata)
