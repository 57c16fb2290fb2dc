"""Command lines of all programs: any flag with any text. No path exists, so that nothing runs for long."""

import dataclasses
import json
import random
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

import convert.__main__ as converter
from fuzzing import values
from fuzzing.children import Kind
from tresnet_jax.cli import embed, evaluate, explain, predict, train
from tresnet_jax.errors import ConversionError
from tresnet_jax.options import flag_name

PROGRAMS: dict[str, tuple[Callable[[list[str]], int], tuple[type, ...]]] = {
    'convert': (
        converter.main,
        (converter.ConvertArguments, converter.InspectArguments, converter.AverageArguments, converter.GoldenArguments),
    ),
    'embed': (embed.main, (embed.EmbedArguments,)),
    'evaluate': (evaluate.main, (evaluate.EvaluateArguments,)),
    'explain': (explain.main, (explain.ExplainArguments,)),
    'predict': (predict.main, (predict.PredictArguments,)),
    'train': (train.main, (train.TrainArguments,)),
}
SUBCOMMANDS = ('convert', 'inspect', 'average', 'golden')
USUAL: dict[str, list[str]] = {
    'convert': [],
    'embed': ['--out', 'out', '--model', 'test_resnet', '--checkpoint', 'absent', '--data', 'folder:absent'],
    'evaluate': ['--model', 'test_resnet', '--checkpoint', 'absent', '--data', 'folder:absent'],
    'explain': ['--model', 'test_resnet', '--checkpoint', 'absent', '--out', 'out', 'absent.jpg'],
    'predict': ['--model', 'test_resnet', '--checkpoint', 'absent', 'absent.jpg'],
    'train': ['--workdir', 'run', '--model', 'test_resnet', '--data', 'folder:absent'],
}
WORDS = (
    'absent', 'absent.pth', 'folder:absent', 'tfds:absent', 'tfds:', 'csv:absent.csv', 'coco:absent',
    'wds:a-{000..9}.tar', 'wds:{', 'wds:{9..0}.tar',
    'hfds:absent', 'tar:absent.tar', 'npz:absent.npz', 'folder:', ':', 'a:b:c', 'folder:.', '.', '/', '/dev/null',
    '/proc/self/mem', 'a' * 5000,
    'a/' * 3000, 'test_resnet', 'test_tresnet', 'test_resnet.fashion_mnist', 'resnet50d.nothing', 'local-dir:absent',
    'hf-hub:', 'hf-hub:a', 'hf-hub:../..',
    'best', 'latest', 'flax', 'torch', 'cpu', 'sgd', 'adamw', 'cosine', 'step', 'bce', 'rand-m9-mstd0.5-inc1',
    'rand-m', 'rand-m-', 'augmix-m5-w4-d2',
    'augmix-w0', 'original', 'v0', 'auto-x', '1:2', '1,2', '1e', '0x10', '1_000', '+5', '5.', '.5', '-.5', '1e309',
    '-1e-309', '00', '²', '1 2', '1/2',
    'out.png', 'out.csv', 'out.safetensors', 'absent/out.png', '--', '-', '-h', '--help', '---', '-x', '--=',
    '--model', '--model=', '@absent', '*',
)  # fmt: skip


def _flags(kind: type) -> Iterator[str]:
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from _flags(typing.cast(type, hint))
        elif name in {field.name for field in dataclasses.fields(kind)}:
            yield flag_name(name)
            if hint is bool:
                yield flag_name(f'no_{name}')


FLAGS = {name: sorted({flag for kind in kinds for flag in _flags(kind)}) for name, (_, kinds) in PROGRAMS.items()}
EVERY_FLAG = sorted({flag for flags in FLAGS.values() for flag in flags} - {'--help'})


def make(rng: random.Random, folder: Path) -> tuple[str, list[str]]:
    """Return a program and its arguments, which are also written to a file."""
    program = rng.choice(list(PROGRAMS))
    words = list(USUAL[program]) if rng.random() < 0.8 else []
    if program == 'convert' and rng.random() < 0.8:
        words = [rng.choice(SUBCOMMANDS), *(_word(rng) for _ in range(rng.randrange(3)))]
    for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 6))):
        flag = rng.choice(FLAGS[program] if rng.random() < 0.95 else EVERY_FLAG)
        given = [_word(rng) for _ in range(rng.choice((0, 1, 1, 1, 1, 1, 2, 3)))]
        place = rng.randrange(len(words) + 1)
        words[place:place] = [f'{flag}={given[0]}', *given[1:]] if given and rng.random() < 0.2 else [flag, *given]
    if words and rng.random() < 0.1:
        words[rng.randrange(len(words))] = _word(rng)
    words = [word.replace('\0', '0') for word in words]  # the system cannot pass a NUL
    (folder / 'command.json').write_text(json.dumps([program, words]))
    return program, words


def _word(rng: random.Random) -> str:
    return (
        rng.choice(WORDS)
        if rng.random() < 0.6
        else str(values.number(rng))
        if rng.random() < 0.5
        else _encodable(values.text(rng))
    )


def _encodable(text: str) -> str:
    """Return text that a command line can have: bytes that are not UTF-8 are surrogates of one kind."""
    return ''.join('\udcff' if '\ud800' <= character <= '\udfff' else character for character in text)


class Refusal(Exception):
    """Exit code 2."""


def run(given: tuple[str, list[str]]) -> object:
    """Run a program in this process; exit codes other than 0 and 2 are faults."""
    program, words = given
    jax.distributed.initialize = _unreachable  # several hosts wait for each other for minutes
    converter.write_golden = _refused  # needs no file, and runs timm
    try:
        code = PROGRAMS[program][0](words)
    except SystemExit as error:
        code = error.code or 0
    if code == 2:
        raise Refusal
    assert code == 0, f'exit code {code}'
    return code


def _unreachable(*_: Any, **__: Any) -> None:
    raise RuntimeError('no hosts')


def _refused(*_: Any, **__: Any) -> None:
    raise ConversionError('not here')


KIND = Kind('command', 'command lines of the six programs', make, (run,), (Refusal,), writes=True)
