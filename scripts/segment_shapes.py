"""Train a segmentation network on synthetic shapes: a backbone of `features_only`, and a feature pyramid.

    python scripts/segment_shapes.py --steps 400 --sheet shapes.png
    python scripts/segment_shapes.py --model test_resnet --output-stride 8 --out-indices 1 4

Each image has a noisy background and up to three shapes of random colours, which may cover each other. The network
names the shape of every pixel. The program prints the intersection over union (IoU) of each class on images that
training did not see. docs/dense_prediction.md explains the code.
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from PIL import Image

import tresnet_jax
from tresnet_jax.cli.common import fail, parse
from tresnet_jax.cli.outputs import check_plot
from tresnet_jax.models.base import ImageModel
from tresnet_jax.options import POSITIVE, check_options, flag
from tresnet_jax.plotting import contact_sheet
from tresnet_jax.variants import split_name

CLASSES = ('background', 'circle', 'square', 'triangle')
COLOURS = np.array([(235, 235, 235), (228, 87, 46), (23, 105, 170), (242, 169, 0)], np.uint8)
MOST_SHAPES = 3
BACKGROUND = 0.4  # weight of its pixels in the loss; most pixels are background
SHOWN = 4  # images of the sheet


@dataclasses.dataclass(frozen=True)
class SegmentArguments:
    """Train a segmentation network on synthetic shapes and print the IoU of each class."""

    model: Annotated[str, flag('NAME')] = 'test_resnet.fashion_mnist'
    """Architecture of the backbone; with a tag, training starts from its pretrained weights."""
    out_indices: Annotated[tuple[int, ...], flag('INDEX')] = (0, 1, 2, 3)
    """Feature maps that the pyramid joins."""
    output_stride: int = 32
    """8, 16 or 32: pixels of the image per pixel of the backbone's last map. Only for ResNet-D."""
    steps: Annotated[int, POSITIVE] = 400
    """Training steps."""
    batch_size: Annotated[int, POSITIVE] = 16
    """Images per step."""
    image_size: Annotated[int, POSITIVE] = 64
    """Edge of the images in pixels."""
    lr: Annotated[float, POSITIVE] = 1e-2
    """Highest learning rate."""
    seed: int = 0
    """Determines images and weights."""
    sheet: Annotated[Path | None, flag('FILE.png', 'none')] = None
    """Also write a PNG file of images, true shapes and predictions."""


class FeaturePyramid(nnx.Module):
    """A feature pyramid (Lin et al., arXiv:1612.03144) with one output, as in panoptic FPN (arXiv:1901.02446).

    Args:
        backbone: of `create_model(..., features_only=True)`.
        num_classes: classes of a pixel.
        width: channels of the pyramid.
        rngs: random numbers for the weights.
    """

    def __init__(self, backbone: ImageModel, num_classes: int, width: int = 32, *, rngs: nnx.Rngs):
        self.backbone = backbone
        conv = functools.partial(nnx.Conv, rngs=rngs)
        self.lateral = nnx.List([conv(c, width, (1, 1)) for c in backbone.feature_info.channels()])
        self.smooth = conv(width, width, (3, 3))
        self.classifier = conv(width, num_classes, (1, 1))

    def __call__(self, images: jax.Array) -> jax.Array:
        """Return the logits of each pixel: (B, H, W, 3) -> (B, H, W, num_classes)."""
        maps = [lateral(x) for lateral, x in zip(self.lateral, self.backbone(images), strict=True)]
        x = maps[-1]
        for finer in maps[-2::-1]:
            x = finer + jax.image.resize(x, finer.shape, 'bilinear')
        logits = self.classifier(nnx.relu(self.smooth(x)))
        return jax.image.resize(logits, (*images.shape[:3], logits.shape[-1]), 'bilinear')


def draw_shapes(rng: np.random.Generator, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return normalised images (count, size, size, 3) float32 and classes of pixels (count, size, size) int32."""
    rows, columns = np.mgrid[:size, :size]
    images = rng.normal(0, 0.25, (count, size, size, 3)) + rng.uniform(-0.7, 0.7, (count, 1, 1, 3))
    classes = np.zeros((count, size, size), np.int32)
    for image, label in zip(images, classes, strict=True):
        for _ in range(rng.integers(1, MOST_SHAPES + 1)):
            kind, radius = rng.integers(1, len(CLASSES)), rng.uniform(0.15, 0.28) * size
            y, x = rng.uniform(radius, size - radius, 2)
            dy, dx = rows - y, columns - x
            inside = (
                dy**2 + dx**2 < radius**2,
                np.maximum(abs(dy), abs(dx)) < 0.85 * radius,
                (dy < 0.7 * radius) & (2 * abs(dx) < dy + 1.1 * radius),
            )[kind - 1]
            image[inside] = rng.uniform(-1, 1, 3) + rng.normal(0, 0.15, (inside.sum(), 3))
            label[inside] = kind
    return images.astype(np.float32), classes


def intersection_over_union(predicted: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the IoU of each class over all pixels, (classes,); 0 for a class that is nowhere."""
    both = [(predicted == index) & (classes == index) for index in range(len(CLASSES))]
    either = [(predicted == index) | (classes == index) for index in range(len(CLASSES))]
    return np.array([b.sum() / max(e.sum(), 1) for b, e in zip(both, either, strict=True)])


def train(arguments: SegmentArguments) -> FeaturePyramid:
    """Return a trained network in evaluation mode."""
    options: dict[str, Any] = {'features_only': True, 'out_indices': arguments.out_indices}
    if arguments.output_stride != 32:
        options['output_stride'] = arguments.output_stride
    rngs = nnx.Rngs(arguments.seed)
    pretrained = split_name(arguments.model)[1] is not None
    backbone = tresnet_jax.create_model(arguments.model, pretrained=pretrained, rngs=rngs, **options)
    network = FeaturePyramid(backbone, len(CLASSES), rngs=rngs)
    schedule = optax.cosine_onecycle_schedule(arguments.steps, arguments.lr, pct_start=0.2)
    optimizer = nnx.Optimizer(network, optax.adamw(schedule, weight_decay=1e-4), wrt=nnx.Param)

    @nnx.jit
    def step(network: FeaturePyramid, optimizer: nnx.Optimizer, images: Any, classes: Any) -> jax.Array:
        def loss(network: FeaturePyramid) -> jax.Array:
            losses = optax.softmax_cross_entropy(network(images), jax.nn.one_hot(classes, len(CLASSES)))
            return (losses * jnp.where(classes == 0, BACKGROUND, 1.0)).mean()

        value, gradients = nnx.value_and_grad(loss)(network)
        optimizer.update(network, gradients)
        return value

    rng = np.random.default_rng(arguments.seed)
    network.train()
    for number in range(1, arguments.steps + 1):
        value = step(network, optimizer, *draw_shapes(rng, arguments.batch_size, arguments.image_size))
        if number % 50 == 0:
            print(f'step {number}: loss {float(value):.3f}', flush=True)
    network.eval()
    return network


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    arguments = parse(SegmentArguments, argv)
    try:
        check_options(arguments, ValueError)
        if arguments.sheet:
            check_plot('--sheet', arguments.sheet)
        report(arguments, train(arguments))
    except (ValueError, KeyboardInterrupt) as error:
        return fail(error)
    return 0


def report(arguments: SegmentArguments, network: FeaturePyramid) -> None:
    """Print the IoU of each class on new images, and write the sheet.

    Raises:
        ConversionError: the sheet cannot be written.
    """
    images, classes = draw_shapes(np.random.default_rng(arguments.seed + 1), 64, arguments.image_size)
    predict = jax.jit(lambda network, images: network(images).argmax(-1))
    predicted = np.asarray(predict(network, jnp.asarray(images)))
    found = intersection_over_union(predicted, classes)
    for name, value in zip(CLASSES, found, strict=True):
        print(f'IoU of {name}: {value:.3f}')
    print(f'mean IoU: {found.mean():.3f}')
    if arguments.sheet:
        shown = np.clip(images[:SHOWN] * 64 + 128, 0, 255).astype(np.uint8)
        rows = zip(shown, COLOURS[classes[:SHOWN]], COLOURS[predicted[:SHOWN]], strict=True)
        panels = [Image.fromarray(panel) for row in rows for panel in row]
        contact_sheet(panels, ['image', 'shapes', 'predicted'] * SHOWN, arguments.sheet, columns=6, inches=1.2)


if __name__ == '__main__':
    sys.exit(main())
