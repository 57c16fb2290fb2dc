"""Recipes: named configurations, those of the published weights and our own.

Flags on the command line override the recipe.
"""

import difflib

from tresnet_jax.errors import TrainingError
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.published_recipes import PUBLISHED, Recipe
from tresnet_jax.variants import ALIASES

_OWN = (
    Recipe(
        'finetune',
        'Fine-tune pretrained weights on your own images, at their size',
        'depends on the data',
        chosen={
            # `--freeze backbone` suits very few images, and `--layer-decay 0.75` changes early layers less.
            'a starting point for some thousand images': {
                'epochs': 20, 'batch_size': 64, 'lr_base': 0.04, 'weight_decay': 1e-4, 'warmup_epochs': 1,
                'warmup_lr': 1e-4, 'scale': (0.35, 1.0), 'smoothing': 0.1, 'color_jitter': 0.2, 'eval_at_start': True,
            },
        },
    ),
    Recipe(
        'finetune_448',
        "Fine-tune pretrained weights at 448 pixels, the size of TResNet's `_448` tags; `--remat` saves memory",
        'depends on the data',
        chosen={
            'as finetune, with four times the pixels and half the batch': {
                'image_size': 448, 'crop_pct': 1.0, 'epochs': 20, 'batch_size': 32, 'lr_base': 0.04,
                'weight_decay': 1e-4, 'warmup_epochs': 1, 'warmup_lr': 1e-4, 'scale': (0.35, 1.0), 'smoothing': 0.1,
                'color_jitter': 0.2, 'interpolation': 'bilinear', 'eval_at_start': True,
            },
        },
    ),
    Recipe(
        'imagenette',
        'ResNet-18-D from scratch on Imagenette (ten classes of ImageNet) at 64 pixels, in minutes on a CPU',
        'docs/training.md, compared with timm in PyTorch',
        chosen={
            'for minutes on a CPU': {
                'model': 'resnet18d', 'data': 'folder:imagenette2-160', 'image_size': 64, 'epochs': 8,
                'batch_size': 64, 'lr': 0.1, 'weight_decay': 1e-4, 'sched': 'one_cycle', 'pct_start': 0.25,
                'scale': (0.35, 1.0), 'train_interpolation': 'bilinear', 'interpolation': 'bilinear',
                'crop_pct': 1.0, 'color_jitter': 0.0, 'smoothing': 0.1, 'draft': False, 'val_batch_size': 64,
            },
        },
    ),
    Recipe(
        'fashion_mnist',
        'Tiny networks on Fashion-MNIST (arXiv:1708.07747) at 32 pixels: the recipe of the weights in this package',
        'docs/training.md',
        chosen={
            # The data is the 2,000 images in the package; all 60,000 are tfds:fashion_mnist or an .npz file.
            'for minutes on a CPU': {
                'model': 'test_resnet', 'data': 'embedded:fashion_mnist', 'image_size': 32, 'epochs': 8,
                'batch_size': 128, 'lr': 0.2, 'weight_decay': 5e-4, 'sched': 'one_cycle', 'pct_start': 0.3,
                'div_factor': 25, 'crop': 'pad', 'padding': 2, 'color_jitter': 0.0,
                'train_interpolation': 'bilinear', 'interpolation': 'bilinear', 'crop_pct': 1.0, 'smoothing': 0.0,
                'val_batch_size': 512,
            },
        },
    ),
    Recipe(
        'fashion_mosaics',
        'A tiny network on mosaics of Fashion-MNIST (scripts/make_mosaics.py), any number of labels, a minute on a CPU',
        'docs/training.md, compared with timm in PyTorch',
        chosen={
            # The reduction and the gradient of the loss are timm's; `--loss bce` works just as well.
            'for a comparison with timm': {
                'model': 'test_resnet', 'data': 'npz:mosaics.npz', 'task': 'multilabel', 'target_format': 'multihot',
                'image_size': 32, 'epochs': 6, 'batch_size': 64, 'loss': 'asl', 'asl_gamma_pos': 0.0, 'opt': 'adamw',
                'lr': 3e-3, 'weight_decay': 0.01, 'sched': 'one_cycle', 'pct_start': 0.2, 'div_factor': 25,
                'final_div_factor': 1e4, 'crop': 'pad', 'padding': 0, 'hflip': 0.0, 'color_jitter': 0.0,
                'train_interpolation': 'bilinear', 'interpolation': 'bilinear', 'crop_pct': 1.0,
                'mean': (0.5, 0.5, 0.5), 'std': (0.5, 0.5, 0.5), 'val_batch_size': 500,
            },
        },
    ),
)  # fmt: skip

RECIPES: dict[str, Recipe] = {**PUBLISHED, **{row.name: row for row in _OWN}}

# timm's model cards: each name and the weights that its card describes.
CARDS = {
    'tresnet_m': 'tresnet_m.miil_in1k',
    'tresnet_l': 'tresnet_l.miil_in1k',
    'tresnet_xl': 'tresnet_xl.miil_in1k',
    'resnet18d': 'resnet18d.ra2_in1k',
    'resnet26d': 'resnet26d.bt_in1k',
    'resnet34d': 'resnet34d.ra2_in1k',
    'resnet50d': 'resnet50d.ra2_in1k',
    'resnet101d': 'resnet101d.ra2_in1k',
    'resnet152d': 'resnet152d.ra2_in1k',
    'resnet200d': 'resnet200d.ra2_in1k',
}
OTHER_NAMES = {
    'tresnet_m_imagenet': 'tresnet_m.miil_in1k',
    'resnet50d_imagenet': 'resnet50d.gluon_in1k',
    **CARDS,
    **ALIASES,
}


def find_recipe(name: str) -> Recipe:
    """Return a recipe by its name, by the name of a model card, or by an older name of a tag.

    Raises:
        TrainingError: the recipe is unknown; the message names similar ones.
    """
    row = RECIPES.get(OTHER_NAMES.get(name, name))
    if row is None:
        known = [*RECIPES, *OTHER_NAMES]
        close = [other for other in known if name and other.startswith(name)][:8]
        close = close or difflib.get_close_matches(name, known, n=4) or ['finetune', *PUBLISHED][:4]
        raise TrainingError(f'unknown recipe {name!r}; did you mean {", ".join(close)}? --help lists all')
    return row


def recipe(name: str) -> TrainConfig:
    """Return the configuration of a recipe. Raises TrainingError as `find_recipe`."""
    return find_recipe(name).config()
