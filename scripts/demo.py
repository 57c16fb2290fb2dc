"""Demonstrate the package: convert timm checkpoints to Flax, compare with timm's outputs, classify images, fine-tune.

    python scripts/demo.py --out demo_output

Uses only files in the package; needs neither torch nor a network connection.
"""

import importlib.resources
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import tyro

import tresnet_jax
from convert.verify import compare_with_stored
from tresnet_jax.cli.common import program_name
from tresnet_jax.training.metrics import read_records

NAMES = ('test_resnet.fashion_mnist', 'test_tresnet.fashion_mnist')


def run_python(*command: str) -> None:
    """Print a Python command and run it."""
    print(f'\n$ python {shlex.join(command)}', flush=True)
    subprocess.run([sys.executable, *command], check=True)


def main(out: Path = Path('demo_output')) -> None:
    """Write the converted checkpoints, the contact sheets and the fine-tuned model below OUT.

    Args:
        out: folder for all files.
    """
    out.mkdir(parents=True, exist_ok=True)
    embedded = Path(str(importlib.resources.files('tresnet_jax') / 'embedded'))
    worst = 0.0
    for name in NAMES:
        flax_file = str(out / f'{name}.safetensors')
        run_python('-m', 'convert', str(embedded / f'{name}.safetensors'), flax_file, '--model', name)

        model = tresnet_jax.create_model(name, checkpoint=flax_file)
        print(f'\n{name}: largest difference from the stored outputs of timm, relative to the largest value')
        for row in compare_with_stored(model, embedded / f'{name}.golden.safetensors'):
            print(f'  {row.name:<11} {row.error:.1e}   (float32 noise of PyTorch: {row.noise:.1e})')
            worst = max(worst, row.error)

        sheet = str(out / f'{name}.png')
        images = str(embedded / 'pictures')
        predict = str(Path(__file__).with_name('predict.py'))
        run_python(predict, images, '--model', name, '--checkpoint', flax_file, '--topk', '3', '--plot', sheet)
    tuned = out / 'finetuned'
    shutil.rmtree(tuned, ignore_errors=True)
    weights = str(embedded / 'test_tresnet.fashion_mnist.safetensors')
    # Pretrained body, new classifier: train on 2,000 images and evaluate on 500 others.
    run_python(
        str(Path(__file__).with_name('train.py')), '--recipe', 'finetune', '--model', 'test_tresnet',
        '--checkpoint', weights, '--new-head', '--data', 'embedded:fashion_mnist', '--image-size', '32',
        '--crop', 'pad', '--padding', '2', '--epochs', '4', '--crop-pct', '1.0', '--color-jitter', '0',
        '--val-batch-size', '100', '--log-every', '25', '--checkpoint-every', '50', '--workdir', str(tuned),
    )  # fmt: skip
    run_python('-m', 'convert', str(tuned), str(out / 'finetuned.safetensors'), '--to', 'torch')
    evaluations = [record for record in read_records(tuned) if record['kind'] == 'eval']
    before, after = (100 * evaluations[i]['top1'] for i in (0, -1))
    print(f'\nFine-tuning: top-1 on 500 test images {before:.1f} % before, {after:.1f} % after; {tuned / "curves.png"}')
    print(f'Largest difference overall: {worst:.1e}. Contact sheets and Flax checkpoints are in {out}.')


if __name__ == '__main__':
    tyro.cli(main, prog=program_name())
