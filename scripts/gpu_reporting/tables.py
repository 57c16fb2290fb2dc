"""The report as Markdown."""

from markdown_table import table

from gpu_reporting.devices import DEVICES
from gpu_reporting.program import Program
from gpu_reporting.rows import LIMITS, KnownRows

ABOUT = """# GPU cost of training and inference

XLA compiled these programs for an {description}, without a GPU. `make gpu-report` writes this page, `gpu_report.json`
and the chart. Versions: {versions}.

```console
$ python scripts/gpu_report.py --mode train --model tresnet_m --batch 128 --abn-memory inplace --json
$ python scripts/gpu_report.py --only 'train tresnet_m *'
$ python scripts/gpu_report.py --diff earlier/gpu_report.json
```

* **train**: the step of the training loop (`tresnet_jax/training/step.py`) with the default options of `train.py`: it
  normalises uint8 images, runs the forward and the backward pass and updates the weights by SGD with Nesterov momentum
  and weight decay. The state is donated. **infer**: the program of `predict.py`, from normalised float32 images to
  probabilities, with batch norm folded. Images have {size} x {size} pixels. Parameters are float32 arguments; each call
  casts them to {dtype}, the compute dtype.
* **temporaries**: peak memory of activations, gradients and workspaces. **arguments**: parameters, momentum, the batch.
* **moved**: the operands and the result of every kernel, each in full; caches can save some of it.
* **fused**: the convolutions whose cuDNN call also adds the bias.
* **TFLOP**: operations of the convolutions, including recomputed ones; a multiply-accumulate counts as two. The
  classifier would add less than 0.1 %, except for the `test_` models.
* **ms by bytes**, **by TFLOP**: time at the device's {bandwidth:.2f} TB/s and {peak:.0f} TFLOP/s. The larger of the two
  is a lower bound of the program's time; only a GPU can tell the time itself.
* The figures are exact for these versions and the same on every machine, because nothing is timed. Without a GPU there
  is no autotuning, and cuDNN may need additional workspaces.

![temporaries, bytes moved and largest batch of each mode](images/gpu_report.png)
"""
LARGEST = """## Largest batch

The largest training batch, a multiple of 8, whose temporaries, arguments and results take at most 16e9 or 80e9 bytes.
That is 93 % of the memory of a card of that name: `XLA_PYTHON_CLIENT_MEM_FRACTION=0.93`. Memory grows almost linearly
with the batch: two batches give a guess, which is compiled and corrected once. Each batch shown here was compiled and
fits. The device was described with more memory than it has, because XLA recomputes parts of programs that would fill
more than three quarters of it.
"""
UNFUSED = """## Operations that cuDNN's calls do not include in inference

In the folded models {fused} of the {all} convolutions add their bias in the same call, and the residual sum and the
ReLU if these follow directly. Models without a row have nothing left to fuse. After these convolutions other kernels
run:
"""


def markdown(rows: KnownRows, versions: dict[str, str]) -> str:
    """Return the page; `rows` are all rows of the report."""
    program = rows[0][0].program
    device = DEVICES[program.device]
    about = ABOUT.format(
        description=device.description,
        versions=', '.join(f'{name} {version}' for name, version in versions.items()),
        dtype=program.dtype,
        size=program.image_size,
        bandwidth=device.bandwidth / 1e12,
        peak=device.peak(program.dtype) / 1e12,
    )
    train = [(row, figures) for row, figures in rows if row.program.mode == 'train']
    infer = [(row, figures) for row, figures in rows if row.program.mode == 'infer']
    folded = [figures for row, figures in infer if row.program.fold]
    counts = {
        'all': sum(figures['convolutions'] for figures in folded),
        'fused': sum(figures['fused_convolutions'] for figures in folded),
    }
    parts = [
        about,
        '## Training\n',
        programs_table(train),
        LARGEST,
        largest_table(train),
        '## Inference\n',
        programs_table(infer),
        UNFUSED.format(**counts),
        unfused_table(infer),
    ]
    return '\n'.join(parts)


def programs_table(rows: KnownRows) -> str:
    """Return a table of every figure of each program."""
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
            for row, figures in rows
        ),
    )


def largest_table(rows: KnownRows) -> str:
    """Return a table of the largest batches, of the rows that have them."""
    return table(
        ['', *LIMITS],
        (
            [label(row.program), *(str(figures['largest'][limit]) for limit in LIMITS)]
            for row, figures in rows
            if row.largest
        ),
    )


def unfused_table(rows: KnownRows) -> str:
    """Return a table of the operations outside cuDNN's calls in the folded models, with the reasons."""
    return table(
        ['', 'convolutions', 'in the call', 'next operation', 'why it is not in the call', 'layers'],
        (
            [f'`{row.program.model}`', str(group['count']), group['holds'], group['left'], group['why'],
             ', '.join(f'`{layer}`' for layer in group['layers'])]
            for row, figures in rows if row.program.fold
            for group in figures['unfused']
        ),
    )  # fmt: skip


def label(program: Program) -> str:
    """Return the label of a program within the table of its mode: '`tresnet_m` inplace, remat'."""
    more = f' {program.abn_memory}' if program.mode == 'train' else '' if program.fold else ' not folded'
    return f'`{program.model}`{more}' + ', remat' * program.remat
