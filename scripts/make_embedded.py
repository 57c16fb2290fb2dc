"""Make the files of ``tresnet_jax/embedded`` from two runs on Fashion-MNIST.

    python scripts/train.py --recipe fashion_mnist --data npz:fashion_mnist.npz --workdir RESNET
    python scripts/train.py --recipe fashion_mnist --model test_tresnet --data npz:fashion_mnist.npz --workdir TRESNET
    python scripts/make_embedded.py --resnet RESNET --tresnet TRESNET --fashion-mnist fashion_mnist.npz

Needs torch and timm (``pip install tresnet_jax[test]``), and a copy of Fashion-MNIST as one ``.npz`` file with
``x_train, y_train, x_test, y_test`` (uint8; Xiao et al., arXiv:1708.07747, MIT licence). It writes, for each network,
timm's own checkpoint in float16 and the outputs that timm gives with it on ten test images; and the ten images,
and a small subset of the data for quick runs.
"""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import safetensors.torch
import timm
import torch
import tyro
from PIL import Image
from timm.models.tresnet import TResNet

import convert
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


def resize(images: np.ndarray) -> torch.Tensor:
    """(N, 28, 28) uint8 -> (N, 32, 32) uint8 by Pillow's bilinear filter, as the evaluation transform does."""
    resized = [np.asarray(Image.fromarray(p).resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for p in images]
    return torch.from_numpy(np.stack(resized))


def normalise(images: torch.Tensor, network: Network) -> torch.Tensor:
    """(N, 32, 32) uint8 -> (N, 3, 32, 32) float32."""
    return ((images.float() / 255 - network.mean) / network.std)[:, None].expand(-1, 3, -1, -1)


def load(network: Network, run: Path) -> torch.nn.Module:
    """timm's model with the weights of a run."""
    params, batch_stats, report = convert.to_flax(convert.read(run), network.name)
    state = convert.to_torch(params, batch_stats, num_batches_tracked=max(report.counters.values(), default=0))
    model = network.build()
    model.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in state.items()})
    return model


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


def save_golden(model: torch.nn.Module, network: Network, images: torch.Tensor, names: list[str], path: Path) -> None:
    model.eval()
    x = normalise(images, network).contiguous()
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
    """Indices of `each` images of every class, shuffled."""
    return rng.permutation(np.concatenate([rng.choice(np.flatnonzero(labels == c), each, False) for c in range(10)]))


def main(fashion_mnist: Path, resnet: Path, tresnet: Path, out: Path = HERE, seed: int = 0) -> None:
    """Write everything below OUT."""
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

    test_images, test_labels = resize(x_test), torch.from_numpy(y_test.astype(np.int64))
    for network, run in zip(NETWORKS, (resnet, tresnet), strict=True):
        model = load(network, run)
        stem = f'{network.name}.fashion_mnist'
        safetensors.torch.save_file(halve(model), out / f'{stem}.safetensors')
        save_golden(model, network, test_images[ten], names, out / f'{stem}.golden.safetensors')
        top1, top5 = accuracy(model, network, test_images, test_labels)
        print(f'{stem}: top-1 {top1:.2f} %, top-5 {top5:.2f} % of {len(test_labels):,} test images')


if __name__ == '__main__':
    tyro.cli(main)
