"""Make the files of ``tresnet_jax/embedded``: train two tiny networks with timm on Fashion-MNIST.

    python scripts/make_embedded.py --fashion-mnist fashion_mnist.npz

Needs torch and timm (``pip install tresnet_jax[test]``), a copy of Fashion-MNIST as one ``.npz`` file with
``x_train, y_train, x_test, y_test`` (uint8; Xiao et al., arXiv:1708.07747, MIT licence) and about ten
minutes on two cores. It writes, for each network, timm's own checkpoint in float16 and timm's outputs on
ten test pictures; and the ten pictures, and a small subset of the data for quick runs.
"""

import dataclasses
import io
import json
import time
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
import tqdm
import tyro
from PIL import Image
from timm.models.tresnet import TResNet

from tresnet_jax.labels import FASHION_MNIST

HERE = Path(__file__).resolve().parent.parent / 'tresnet_jax' / 'embedded'
SIZE = 32


@dataclasses.dataclass(frozen=True)
class Network:
    """How one network is built and what its inputs are normalised with."""

    name: str
    mean: float
    std: float

    def build(self) -> torch.nn.Module:
        if self.name == 'test_tresnet':  # ours: timm has no tiny TResNet, so its class is called directly
            return TResNet(layers=[1, 1, 1, 1], width_factor=0.25, num_classes=10)
        return timm.create_model(self.name, num_classes=10)


NETWORKS = (Network('test_resnet', mean=0.5, std=0.5), Network('test_tresnet', mean=0.0, std=1.0))


def resize(pictures: np.ndarray) -> torch.Tensor:
    """(N, 28, 28) uint8 -> (N, 32, 32) uint8 by Pillow's bilinear filter, as the evaluation transform does."""
    resized = [np.asarray(Image.fromarray(p).resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for p in pictures]
    return torch.from_numpy(np.stack(resized))


def normalise(pictures: torch.Tensor, network: Network) -> torch.Tensor:
    """(N, 32, 32) uint8 -> (N, 3, 32, 32) float32."""
    return ((pictures.float() / 255 - network.mean) / network.std)[:, None].expand(-1, 3, -1, -1)


def augment(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random horizontal flip and a shift of up to two pixels, one of each a batch."""
    if torch.rand((), generator=generator) < 0.5:
        pictures = pictures.flip(-1)
    dy, dx = torch.randint(-2, 3, (2,), generator=generator).tolist()
    return torch.roll(pictures, (dy, dx), (-2, -1))


def train(network: Network, images: torch.Tensor, labels: torch.Tensor, epochs: int, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = network.build().to(memory_format=torch.channels_last)
    batch = 128
    steps = len(images) // batch
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=epochs * steps)
    model.train()
    with tqdm.tqdm(total=epochs * steps, desc=network.name, unit='step', mininterval=5) as bar:
        for _ in range(epochs):
            for chosen in torch.randperm(len(images), generator=generator)[: steps * batch].split(batch):
                x = normalise(augment(images[chosen], generator), network)
                loss = torch.nn.functional.cross_entropy(model(x), labels[chosen])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
            bar.set_postfix(loss=f'{loss.item():.3f}')
    return model.to(memory_format=torch.contiguous_format)


def halve(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict in float16 (counters stay int64), loaded back so that outputs are those of the file."""
    halved = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(halved)
    return {k: v.contiguous().clone() for k, v in sorted(halved.items())}


@torch.no_grad()
def accuracy(
    model: torch.nn.Module, network: Network, images: torch.Tensor, labels: torch.Tensor
) -> tuple[float, float]:
    """Top-1 and top-5 in percent."""
    model.eval()
    best = torch.cat([model(normalise(x, network)).topk(5).indices for x in images.split(500)])
    hits = best == labels[:, None]
    return 100 * hits[:, 0].float().mean().item(), 100 * hits.any(1).float().mean().item()


@torch.no_grad()
def outputs(model: torch.nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The stem's and each stage's features (NCHW) and the logits, as timm gives them."""
    features, stages = model.forward_intermediates(x)
    return {**{f'features.{i}': s for i, s in enumerate(stages)}, 'logits': model.forward_head(features)}


def save_golden(model: torch.nn.Module, network: Network, pictures: torch.Tensor, names: list[str], path: Path) -> None:
    model.eval()
    x = normalise(pictures, network).contiguous()
    single = outputs(model, x)
    reference = network.build()
    reference.load_state_dict(model.state_dict())
    double = outputs(reference.double().eval(), x.double())
    noise = {k: float((single[k] - double[k]).abs().max() / double[k].abs().max()) for k in single}
    metadata = {
        'pictures': json.dumps(names),
        'float32_noise': json.dumps(noise),
        'versions': json.dumps({'timm': timm.__version__, 'torch': torch.__version__}),
    }
    safetensors.torch.save_file({'images': x, **{k: v.contiguous() for k, v in single.items()}}, path, metadata)


def balanced(labels: np.ndarray, each: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of `each` pictures of every class, shuffled."""
    return rng.permutation(np.concatenate([rng.choice(np.flatnonzero(labels == c), each, False) for c in range(10)]))


def main(fashion_mnist: Path, out: Path = HERE, epochs: int = 8, seed: int = 0) -> None:
    """Train both networks and write everything below OUT."""
    with np.load(fashion_mnist, allow_pickle=False) as data:
        x_train, y_train, x_test, y_test = (data[k] for k in ('x_train', 'y_train', 'x_test', 'y_test'))
    rng = np.random.default_rng(seed)
    out.mkdir(parents=True, exist_ok=True)

    few, some = balanced(y_train, 200, rng), balanced(y_test, 50, rng)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        x_train=x_train[few], y_train=y_train[few].astype(np.uint8),
        x_test=x_test[some], y_test=y_test[some].astype(np.uint8),
    )  # fmt: skip
    (out / 'fashion_mnist_subset.npz').write_bytes(buffer.getvalue())

    ten = [int(rng.choice(np.flatnonzero(y_test == c))) for c in range(10)]
    names = [f'{c}_{FASHION_MNIST[c].lower().replace("/", "_").replace(" ", "_")}.png' for c in range(10)]
    (out / 'pictures').mkdir(exist_ok=True)
    for index, name in zip(ten, names, strict=True):
        Image.fromarray(x_test[index]).save(out / 'pictures' / name, optimize=True)

    train_images, test_images = resize(x_train), resize(x_test)
    train_labels, test_labels = torch.from_numpy(y_train.astype(np.int64)), torch.from_numpy(y_test.astype(np.int64))
    for network in NETWORKS:
        start = time.monotonic()
        model = train(network, train_images, train_labels, epochs, seed)
        stem = f'{network.name}.fashion_mnist'
        safetensors.torch.save_file(halve(model), out / f'{stem}.safetensors')
        save_golden(model, network, test_images[ten], names, out / f'{stem}.golden.safetensors')
        top1, top5 = accuracy(model, network, test_images, test_labels)
        took = time.monotonic() - start
        print(f'{stem}: top-1 {top1:.2f} %, top-5 {top5:.2f} % of {len(test_labels):,} test pictures, {took:.0f} s')


if __name__ == '__main__':
    tyro.cli(main)
