"""The report as Markdown."""

from collections.abc import Sequence

from markdown_table import table

from gpu_reporting.devices import DEVICES
from gpu_reporting.program import Program
from gpu_reporting.rows import LIMITS, Row
from gpu_reporting.running import Figures

Found = Sequence[tuple[Row, Figures]]

ABOUT = """# What training and inference cost on a GPU

Figures of programs that XLA compiled for an {description}, without one. `make gpu-report` writes this page,
`gpu_report.json` and the chart; {versions}.

```console
$ python scripts/gpu_report.py --mode train --model tresnet_m --batch 128 --abn-memory inplace --json
$ python scripts/gpu_report.py --only 'train tresnet_m *'
$ python scripts/gpu_report.py --diff earlier/gpu_report.json
```

* **train**: a step on uint8 images, which are normalised, forward, backward, SGD with momentum; the state is donated.
  **infer**: what `predict.py` runs, batch norm folded, normalised float32 images in, probabilities out. Images have
  {size} x {size} pixels. Parameters are float32 arguments and cast to {dtype}, which is computed in, at each call.
* **temporaries**: the peak of activations, gradients and workspaces. **arguments**: parameters, momentum, the batch.
* **moved**: of each kernel its operands and its result, whole; less where a cache helps.
* **fused**: of the convolutions those that cuDNN is called for with the bias at least.
* **TFLOP**: of the convolutions, those that are computed twice too; a multiply-accumulate is two. The classifier would
  add less than 0.1 %, but for the `test_` models.
* **ms by bytes**, **by TFLOP**: at the device's {bandwidth:.2f} TB/s and {peak:.0f} TFLOP/s. A program takes the longer
  of the two at least; how much more, only a GPU tells.
* The figures are exact for these versions and the same on every machine: nothing is timed. Without a GPU nothing is
  autotuned either, and cuDNN may ask for workspaces on top.

![temporaries, bytes moved and largest batch of each mode](images/gpu_report.png)
"""
LARGEST = """## Largest batch

Images in a training step whose temporaries, arguments and results take at most 16e9 or 80e9 bytes, a multiple of 8.
That is 93 % of what a card of that name has: `XLA_PYTHON_CLIENT_MEM_FRACTION=0.93`. The bytes rise along a line: two
batches give a guess, which is compiled and corrected once, so each batch here was compiled and fits. It was compiled
for a device with more memory, since XLA computes parts of a program again that would fill more than three quarters.
"""
UNFUSED = """## What stays outside cuDNN's calls in inference

{fused} of the {all} convolutions of the folded models are called with their bias, and with the sum and the ReLU behind
it if there are such: of models that are not listed nothing is left. Behind these, other kernels go on:
"""


def markdown(found: Found, versions: dict[str, str]) -> str:
    """The page; `found` has every row of the report."""
    program = found[0][0].program
    device = DEVICES[program.device]
    about = ABOUT.format(
        description=device.description,
        versions=', '.join(f'{name} {version}' for name, version in versions.items()),
        dtype=program.dtype,
        size=program.image_size,
        bandwidth=device.bandwidth / 1e12,
        peak=device.peak(program.dtype) / 1e12,
    )
    train = [(row, figures) for row, figures in found if row.program.mode == 'train']
    infer = [(row, figures) for row, figures in found if row.program.mode == 'infer']
    folded = [figures for row, figures in infer if row.program.fold]
    counts = {
        'all': sum(figures['convolutions'] for figures in folded),
        'fused': sum(figures['fused_convolutions'] for figures in folded),
    }
    parts = [about, '## Training\n', programs(train), LARGEST, largest(train), '## Inference\n', programs(infer)]
    return '\n'.join([*parts, UNFUSED.format(**counts), unfused(infer)])


def programs(found: Found) -> str:
    """Every figure of each program."""
    heads = ['batch', 'temporaries, MB', 'arguments, MB', 'moved, GB', 'kernels', 'convolutions', 'fused', 'TFLOP']
    return table(
        ['', *heads, 'ms by bytes', 'by TFLOP'],
        (
            [
                label(row.program),
                str(row.program.batch),
                f'{figures["temp_bytes"] / 1e6:.0f}',
                f'{figures["argument_bytes"] / 1e6:.0f}',
                f'{figures["traffic_bytes"] / 1e9:.1f}',
                str(figures['kernels']),
                str(figures['convolutions']),
                str(figures['fused_convolutions']),
                f'{figures["operations"] / 1e12:.2f}',
                f'{1e3 * figures["seconds_by_bytes"]:.1f}',
                f'{1e3 * figures["seconds_by_operations"]:.1f}',
            ]
            for row, figures in found
        ),
    )


def largest(found: Found) -> str:
    """The largest batches of those that have them."""
    return table(
        ['', *LIMITS],
        (
            [label(row.program), *(str(figures['largest'][limit]) for limit in LIMITS)]
            for row, figures in found
            if row.largest
        ),
    )


def unfused(found: Found) -> str:
    """What is left outside the calls of the folded models, and why."""
    return table(
        ['', 'convolutions', 'the call has', 'next', 'why not in it', 'layers'],
        (
            [f'`{row.program.model}`', str(group['count']), group['holds'], group['left'], group['why'],
             ', '.join(f'`{layer}`' for layer in group['layers'])]
            for row, figures in found if row.program.fold
            for group in figures['unfused']
        ),
    )  # fmt: skip


def label(program: Program) -> str:
    """A program in a table for its mode: '`tresnet_m` inplace, remat'."""
    more = f' {program.abn_memory}' if program.mode == 'train' else '' if program.fold else ' not folded'
    return f'`{program.model}`{more}' + ', remat' * program.remat
