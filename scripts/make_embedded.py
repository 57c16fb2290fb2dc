"""Create the files of ``tresnet_jax/embedded`` from two training runs on Fashion-MNIST.

    python scripts/train.py --recipe fashion_mnist --data npz:fashion_mnist.npz --workdir RESNET
    python scripts/train.py --recipe fashion_mnist --model test_tresnet --data npz:fashion_mnist.npz --workdir TRESNET
    python scripts/make_embedded.py --resnet RESNET --tresnet TRESNET --fashion-mnist fashion_mnist.npz

Requires torch and timm (``pip install 'tresnet_jax[test]'``), and Fashion-MNIST as one ``.npz`` file with
``x_train, y_train, x_test, y_test`` (uint8; Xiao et al., arXiv:1708.07747, MIT licence). For each network it writes a
timm checkpoint in float16 and timm's outputs with it on ten test images. It also writes the ten images and a small
subset of the data for quick runs.
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

import convert
from convert.golden import timm_model, timm_outputs
from convert.verify import relative_error
from tresnet_jax.cli.common import program_name
from tresnet_jax.files import sha256
from tresnet_jax.labels import FASHION_MNIST

HERE = Path(__file__).resolve().parent.parent / 'tresnet_jax' / 'embedded'
SIZE = 32


@dataclasses.dataclass(frozen=True)
class Network:
    """The architecture of a network, and the normalisation of its inputs."""

    name: str
    mean: float
    std: float

    def build(self) -> torch.nn.Module:
        """Return timm's model."""
        return timm_model(self.name, num_classes=10)


NETWORKS = (Network('test_resnet', mean=0.5, std=0.5), Network('test_tresnet', mean=0.0, std=1.0))


def resize(images: np.ndarray) -> torch.Tensor:
    """(N, 28, 28) uint8 -> (N, 32, 32) uint8 with Pillow's bilinear filter, as in the evaluation transform."""
    resized = [np.asarray(Image.fromarray(p).resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for p in images]
    return torch.from_numpy(np.stack(resized))


def normalise(images: torch.Tensor, network: Network) -> torch.Tensor:
    """(N, 32, 32) uint8 -> (N, 3, 32, 32) float32."""
    return ((images.float() / 255 - network.mean) / network.std)[:, None].expand(-1, 3, -1, -1)


def load(network: Network, run: Path) -> torch.nn.Module:
    """Return timm's model with the weights of a run."""
    params, batch_stats, report = convert.to_flax(convert.read(run), network.name)
    state = convert.to_torch(params, batch_stats, num_batches_tracked=max(report.counters.values(), default=0))
    model = network.build()
    model.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in state.items()})
    return model


def halve(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Round the weights of a model to float16 and return them; counters stay int64."""
    halved = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(halved)
    return {k: v.contiguous().clone() for k, v in sorted(halved.items())}


@torch.no_grad()
def accuracy(
    model: torch.nn.Module, network: Network, images: torch.Tensor, labels: torch.Tensor
) -> tuple[float, float]:
    """Return top-1 and top-5 accuracy in percent."""
    model.eval()
    best = torch.cat([model(normalise(x, network)).topk(5).indices for x in images.split(500)])
    hits = best == labels[:, None]
    return 100 * hits[:, 0].float().mean().item(), 100 * hits.any(1).float().mean().item()


def save_golden(model: torch.nn.Module, network: Network, images: torch.Tensor, names: list[str], path: Path) -> None:
    """Write timm's outputs on `images`, in float32, and their float32 noise."""
    x = normalise(images, network).contiguous()
    single = timm_outputs(model.eval(), x.numpy())
    reference = network.build()
    reference.load_state_dict(model.state_dict())
    double = timm_outputs(reference.double().eval(), x.numpy())
    metadata = {
        'pictures': json.dumps(names),
        'float32_noise': json.dumps({name: relative_error(single[name], double[name]) for name in single}),
        'versions': json.dumps({'timm': timm.__version__, 'torch': torch.__version__}),
    }
    tensors = {'images': x, **{name: torch.from_numpy(value) for name, value in single.items()}}
    safetensors.torch.save_file(tensors, path, metadata)


def balanced(labels: np.ndarray, each: int, rng: np.random.Generator) -> np.ndarray:
    """Return the indices of `each` images of every class, shuffled."""
    return rng.permutation(np.concatenate([rng.choice(np.flatnonzero(labels == c), each, False) for c in range(10)]))


def main(fashion_mnist: Path, resnet: Path, tresnet: Path, out: Path = HERE, seed: int = 0) -> None:
    """Write all files below OUT.

    Args:
        fashion_mnist: the .npz file of the data set.
        resnet: folder of the run of test_resnet.
        tresnet: folder of the run of test_tresnet.
        out: folder of the files.
        seed: seed for the choice of images.
    """
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
        print(f'{stem}: SHA-256 for variants.py: {sha256(out / f"{stem}.safetensors")}')


if __name__ == '__main__':
    tyro.cli(main, prog=program_name())
