"""The GPU report: parsing programs, the largest batch, saving and comparing figures.

Nothing is compiled for a GPU here, because that requires JAX's CUDA plugin.
"""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from gpu_reporting import changes, command, fingerprint, results, subprocesses, tables
from gpu_reporting.convolutions import Convolution, convolutions, in_ranges, unfused
from gpu_reporting.devices import DESCRIPTION, DEVICES, environment
from gpu_reporting.hlo import Hlo, dimensions, shape_bytes
from gpu_reporting.measure import prediction, train_step
from gpu_reporting.program import Program
from gpu_reporting.results import Results, figures_of, read_report
from gpu_reporting.rows import ReportRow, memory_modes, report_rows
from gpu_reporting.subprocesses import ReportError
from largest_batch import largest_by_bytes

from tests.helpers.paths import FILES, ROOT, SCRIPTS
from tresnet_jax.models.memory import MODES, memory_mode
from tresnet_jax.variants import ARCHITECTURES

# XLA's text for an H100, reduced to two small layers so that it can be counted by hand.
TEXT = (FILES / 'gpu_program.hlo').read_text(encoding='utf-8')
PLAN = [
    ReportRow(Program('train', 'tresnet_m', 128), largest=True),
    ReportRow(Program('train', 'tresnet_m', 128, abn_memory='inplace'), largest=True),
    ReportRow(Program('infer', 'resnet50d', 256)),
]


def made_up(program: Program) -> dict:
    """Figures that grow with the batch, and more slowly in a mode that saves memory."""
    each = 20_000_000 if program.abn_memory == 'plain' else 10_000_000
    group = {'holds': 'bias', 'left': 'leaky ReLU', 'why': 'no such', 'count': 1, 'layers': ['layer1.0-2.conv1']}
    return {
        'temp_bytes': 100_000_000 + each * program.batch,
        'argument_bytes': 50_000_000,
        'output_bytes': 0,
        'traffic_bytes': 3_352_320_000 * program.batch,
        'kernels': 1000,
        'convolutions': 60,
        'fused_convolutions': 50,
        'operations': 10**9 * program.batch,
        'seconds_by_bytes': 1e-3 * program.batch,
        'seconds_by_operations': 1e-6 * program.batch,
    } | ({'unfused': [group]} if program.mode == 'infer' else {})


@pytest.fixture
def compiled(monkeypatch) -> list[Program]:
    """A report of three rows with fake compilations; returns the list of compiled programs."""
    done: list[Program] = []
    monkeypatch.setattr(
        results, 'measure_in_subprocess', lambda program, earlier: done.append(program) or made_up(program)
    )
    monkeypatch.setattr(command, 'require_plugin', lambda: None)
    monkeypatch.setattr(command, 'report_rows', lambda device: PLAN)
    return done


# Parsing the text of a program.


def test_kernels_and_bytes():
    hlo = Hlo(TEXT)
    found = [(kernel.name, kernel.opcode) for kernel in hlo.kernels()]
    assert found == [
        ('loop_convert_fusion', 'fusion'),
        ('input_transpose_fusion', 'fusion'),
        ('wrapped_convert', 'fusion'),
        ('cudnn-conv-bias-activation.1', 'custom-call'),
        ('loop_select_fusion', 'fusion'),
        ('input_transpose_fusion.1', 'fusion'),
        ('wrapped_convert.1', 'fusion'),
        ('cudnn-conv-bias-activation.2', 'custom-call'),
        ('cudnn-conv-bw-input.1', 'custom-call'),
        ('cudnn-conv-bw-filter.1', 'custom-call'),
        ('copy.1', 'copy'),
    ]
    image, narrow_image, map_, kernel = 4 * 384, 2 * 384, 2 * 512, 2 * 108
    casts = image + narrow_image + 3 * kernel + 2 * (16 + 8) + 64 + 32
    first = narrow_image + kernel + 8 + map_ + 2 * map_  # and its leaky ReLU
    second = map_ + 32 + 8 + map_ + map_  # the sum reads one more map
    gradients = 2 * (narrow_image + map_ + kernel)
    assert hlo.traffic() == casts + first + second + gradients + 2 * kernel


def test_convolutions():
    """Layer names, contents of the calls, next operations, and the operation counts of gradients too."""
    assert convolutions(Hlo(TEXT)) == [
        Convolution('body.conv1.conv', True, ('bias',), ('leaky ReLU',), 2 * 512 * 27),
        Convolution('body.layer1.0.conv3.conv', True, ('bias', 'sum', 'ReLU'), (), 2 * 512 * 4),
        Convolution('body.conv1.conv', False, (), (), 2 * 512 * 27),
        Convolution('', False, (), (), 2 * 512 * 27),
    ]


def test_operands_computed_from_several_kernels_have_no_layer():
    text = TEXT.replace('fusion(%kernel1)', 'fusion(%kernel1, %kernel2)')
    assert convolutions(Hlo(text))[0].layer == ''
    assert convolutions(Hlo(TEXT.replace('fusion(%kernel1)', 'fusion(%bias2)')))[0].layer == ''


def test_unfused():
    """A leaky ReLU after the call is listed, one in the call is not, and a call without a bias always is."""
    first, second, third, _ = convolutions(Hlo(TEXT))
    (group,) = unfused([first, second, dataclasses.replace(first, layer='body.layer1.2.conv1.conv')])
    assert 'float16' in group.pop('why')
    layers = ['body.conv1.conv', 'body.layer1.2.conv1.conv']
    assert group == {'holds': 'bias', 'left': 'leaky ReLU', 'count': 2, 'layers': layers}
    assert third.left == 'all' and len(unfused([third])) == 1
    leaky = TEXT.replace('"activation_mode":"kNone"', '"activation_mode":"kLeakyRelu"', 1)
    first = convolutions(Hlo(leaky))[0]
    assert first.holds == ('bias', 'leaky ReLU') and not first.left


def test_ranges_of_blocks():
    names = [f'layer3.{i}.conv1' for i in (0, 2, 3, 4, 7)]
    assert in_ranges(['conv1.0', *names, 'layer3.0.downsample.1']) == [
        'conv1.0', 'layer3.0,2-4,7.conv1', 'layer3.0.downsample.1'
    ]  # fmt: skip


def test_shapes():
    assert shape_bytes('(bf16[8,4]{1,0}, u8[3]{0}, pred[])') == 64 + 3 + 1
    assert dimensions('(f32[2,3]{1,0}, u8[0]{0})') == [(2, 3), (0,)]
    with pytest.raises(KeyError):
        shape_bytes('c64[2]')


def test_programs_that_cannot_be_counted():
    with pytest.raises(ValueError, match='no ENTRY'):
        Hlo('module @jit_predict {}')
    with pytest.raises(ValueError, match='has while'):
        Hlo(TEXT.replace('copy(%bitcast.1)', 'while(%bitcast.1), body=%region'))


# The largest batch.


def test_largest_batches_on_a_line():
    """The first guess is the answer; a limit too small for a batch of 8 has none."""
    asked = []
    limits = [110_000_000, 1_000_000_000, 16_000_000_000, 80_000_000_000]
    found = largest_by_bytes(lambda batch: asked.append(batch) or 100_000_000 + 20_250_000 * batch, limits, 128)
    assert found == [0, 40, 784, 3944]
    assert asked == [64, 128, 40, 784, 3944]


def test_largest_batches_off_the_line():
    """A guess that is too large is corrected; a batch that does not fit is never returned."""
    asked: dict[int, int] = {}

    def stepped(batch: int) -> int:
        return asked.setdefault(batch, 20_000_000 * batch + (500_000_000 if batch > 700 else 0))

    assert largest_by_bytes(stepped, [16_000_000_000, 80_000_000_000], 128) == [768, 3968]
    assert list(asked) == [64, 128, 800, 768, 3856, 3968]
    asked = {}
    (found,) = largest_by_bytes(lambda batch: asked.setdefault(batch, int(batch**1.5 * 100)), [2_000_000], 128)
    assert len(asked) == 4 and found in asked and asked[found] <= 2_000_000


def test_largest_batches_go_down_until_one_fits():
    asked = []

    def flat_beyond(batch: int) -> int:
        asked.append(batch)
        return 20_000_000 * batch if batch <= 128 else 15_990_000_000 + (batch - 780) * 1_000_000

    assert largest_by_bytes(flat_beyond, [16_000_000_000], 128) == [784]
    assert asked == [64, 128, 800, 792, 784]


def test_largest_batches_need_a_rising_line():
    with pytest.raises(ValueError, match='128 images take 5 bytes'):
        largest_by_bytes(lambda batch: 5, [16], 128)


# The plan.


def test_plan():
    plan = report_rows('h100')
    names = [row.program.name for row in plan]
    assert len(set(names)) == len(plan)
    for row in plan:
        row.program.check()
    for mode in ('train {} plain', 'infer {}'):
        assert {mode.format(model) for model in ARCHITECTURES} <= set(names)
    assert {'train tresnet_xl lean', 'train tresnet_m inplace remat', 'train resnet50d plain remat'} <= set(names)


def test_memory_modes_are_complete_and_distinct():
    def kept(model: str) -> set:
        return {memory_mode(*mode) for mode in memory_modes(model)}

    every = {memory_mode(name, remat) for name in MODES for remat in (False, True)}
    assert kept('tresnet_m') == every and len(memory_modes('tresnet_m')) == len(every)
    assert kept('resnet50d') == {memory for memory in every if not memory.invert}


# The programs themselves.


@pytest.mark.parametrize('changed', [{}, {'remat': True, 'abn_memory': 'inplace'}])
def test_train_step(changed):
    """The state keeps its shapes and is donated; images are uint8."""
    program = dataclasses.replace(Program('train', 'test_tresnet', 2, image_size=32), **changed)
    step, (state, batch) = train_step(program, jax.devices()[:1])
    assert (batch['image'].shape, batch['image'].dtype) == ((1, 2, 32, 32, 3), 'uint8')
    new, metrics = jax.eval_shape(step, state, batch)
    shapes = [jax.tree.map(lambda a: (a.shape, a.dtype), tree) for tree in (new, state)]
    assert shapes[0] == shapes[1] and metrics['loss'].shape == ()
    text = step.lower(state, batch).as_text()
    assert text.count('tf.aliasing_output') == len(jax.tree.leaves(state))


@pytest.mark.parametrize('fold', [True, False])
def test_prediction(fold):
    """Weights are float32 arguments, the convolutions compute in bfloat16, and the probabilities are float32."""
    program = Program('infer', 'test_resnet', 2, image_size=32, fold=fold)
    predict, (variables, images) = prediction(program, jax.devices()[:1])
    assert bool(variables[1]) != fold  # running statistics
    assert {leaf.dtype.name for leaf in jax.tree.leaves((variables, images))} == {'float32'}
    lowered = predict.trace(variables, images).lower(lowering_platforms=('cuda',))
    lines = [line for line in lowered.as_text().splitlines() if 'stablehlo.convolution' in line]
    assert lines and all('bf16' in line for line in lines)
    assert (lowered.out_info.shape, lowered.out_info.dtype) == ((2, 1000), 'float32')


def test_devices():
    for device in DEVICES.values():
        text = DESCRIPTION.format(**dataclasses.asdict(device))
        assert str(device.memory) in text and text.count('{') == text.count('}')
        assert device.peak('bfloat16') == device.peak('float16') == 2 * device.peak('float32')


def test_environment(monkeypatch):
    """The user's flags stay, and autotuning, which needs a device, is switched off."""
    monkeypatch.setenv('XLA_FLAGS', '--xla_gpu_use_runtime_fusion=true')
    assert environment()['XLA_FLAGS'] == '--xla_gpu_use_runtime_fusion=true --xla_gpu_autotune_level=0'
    assert environment()['JAX_PLATFORMS'] == 'cpu'


# One program on the command line.


def test_one_program_as_json(monkeypatch, capsys):
    """Exactly one object on standard output, from a process with the right environment and this code."""
    asked = {}

    def process(line, env, **options):
        asked.update(env, program=Program(**json.loads(line[-2])), known=line[-1])
        return subprocess.CompletedProcess(line, 0, json.dumps(made_up(asked['program'])), 'noise of XLA')

    monkeypatch.setattr(subprocesses, 'require_plugin', lambda: None)
    monkeypatch.setattr(subprocesses.subprocess, 'run', process)
    flags = '--mode train --model tresnet_m --batch 64 --image-size 192 --dtype float16 --abn-memory inplace --remat'
    assert command.main([*flags.split(), '--device', 'a100', '--json']) == 0
    expected = Program('train', 'tresnet_m', 64, 192, 'float16', 'inplace', remat=True, device='a100')
    assert asked['program'] == expected and asked['known'] == ''
    assert '--xla_gpu_autotune_level=0' in asked['XLA_FLAGS']
    assert asked['PYTHONPATH'].startswith(str(SCRIPTS))
    found = json.loads(capsys.readouterr().out)
    assert found == dataclasses.asdict(expected) | made_up(expected)


def test_a_program_that_is_the_same_keeps_its_figures(monkeypatch):
    asked = []
    monkeypatch.setattr(subprocesses, 'require_plugin', lambda: None)

    def run(line, **options):
        asked.append(line[-1])
        return subprocess.CompletedProcess(line, 0, 'null', '')

    monkeypatch.setattr(subprocesses.subprocess, 'run', run)
    earlier = made_up(PLAN[0].program) | {'digest': 'aaaa'}
    assert subprocesses.measure_in_subprocess(PLAN[0].program, earlier) == earlier
    assert asked == ['aaaa']


def test_default_batches():
    assert command.GpuReportArguments(model='tresnet_m').program == Program('train', 'tresnet_m', 128)
    assert command.GpuReportArguments(model='tresnet_m', mode='infer').program == Program('infer', 'tresnet_m', 256)


def test_without_the_plugin(monkeypatch, capsys, tmp_path):
    """One line of error, and no folder is created."""
    for name in ('xla_cuda12', 'xla_cuda13'):  # hide it if it is installed
        monkeypatch.setitem(sys.modules, f'jax_plugins.{name}', None)
    for flags in (['--model', 'test_tresnet'], ['--out', str(tmp_path / 'docs')]):
        assert command.main(flags) == 2
        out, err = capsys.readouterr()
        assert out == '' and err.count('\n') == 1
        assert "pip install 'tresnet_jax[cuda12,train]'" in err and 'make gpu-report' in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('flags', 'message'),
    [
        ('--model tresnet_n', 'did you mean'),
        ('--model tresnet_m --batch 0', '--batch and --image-size must be positive'),
        ('--model tresnet_m --mode infer --remat', '--remat are for --mode train'),
        ('--model tresnet_m --no-fold', '--no-fold is for --mode infer'),
        ('--model tresnet_m --only x --out y', '--only, --out: not with --model'),
        ('--batch 3 --json', '--batch, --json: only with --model'),
        ('--only x', "--only 'x' matches none of"),
        ('--diff nowhere.json', 'nowhere.json: not a report that gpu_report.py wrote'),
    ],
)
def test_user_errors(flags, message, capsys):
    assert command.main(flags.split()) == 2
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('error: ') and message in err and err.count('\n') == 1


def test_a_program_that_fails(monkeypatch):
    """The error of the other process is passed on in one line."""

    def process(code: int, stderr: str) -> str:
        done = subprocess.CompletedProcess([], code, '', stderr)
        monkeypatch.setattr(subprocesses.subprocess, 'run', lambda *args, **options: done)
        with pytest.raises(ReportError) as raised:
            subprocesses.measure_in_subprocess(Program('train', 'resnet50d', 2))
        return str(raised.value)

    monkeypatch.setattr(subprocesses, 'require_plugin', lambda: None)
    assert process(2, 'W0000 noise\nerror: a ReLU has no inverse\n') == 'a ReLU has no inverse'
    assert process(1, 'Traceback ...\nXlaRuntimeError: no\n') == 'train resnet50d plain: XlaRuntimeError: no'
    assert process(-9, '') == 'train resnet50d plain: exit code -9'


# The whole report.


def test_report(compiled, tmp_path, capsys):
    """Three files are written when the report is complete, and nothing is compiled twice."""
    out = ['--out', str(tmp_path)]
    assert command.main([*out, '--only', 'train tresnet_m plain']) == 0
    assert [path.name for path in tmp_path.iterdir()] == ['gpu_report.partial.json']
    assert '1 of 3' in capsys.readouterr().err
    first = len(compiled)
    assert [program.batch for program in compiled] == [128, 64, 792, 3992]
    assert [program.roomy for program in compiled] == [False, False, True, True]

    assert command.main(out) == 0
    assert {path.name for path in tmp_path.iterdir()} == {'gpu_report.json', 'gpu_report.md', 'images'}
    assert len(compiled) == 2 * first + 1 and len(set(compiled)) == len(compiled)
    assert (tmp_path / 'images' / 'gpu_report.png').read_bytes().startswith(b'\x89PNG')
    text = (tmp_path / 'gpu_report.md').read_text(encoding='utf-8')
    assert '| `tresnet_m` plain | 128 | 2660 | 50 | 429.1 | 1000 | 60 | 50 | 0.13 | 128.0 | 0.1 |' in text
    assert '| `tresnet_m` inplace | 1584 | 7984 |' in text
    assert '50 of the 60 convolutions' in text
    assert '| `resnet50d` | 1 | bias | leaky ReLU | no such | `layer1.0-2.conv1` |' in text
    document = read_report(tmp_path / 'gpu_report.json')
    assert document['largest']['train tresnet_m plain'] == {'16 GB': 792, '80 GB': 3992}

    assert command.main(out) == 0
    assert len(compiled) == 2 * first + 1


def test_other_code_is_compiled_again(compiled, tmp_path, monkeypatch):
    Results(tmp_path / 'kept.json', tmp_path / 'none.json').get(PLAN[2].program)
    assert Results(tmp_path / 'kept.json', tmp_path / 'none.json').get(PLAN[2].program) == made_up(PLAN[2].program)
    assert len(compiled) == 1
    monkeypatch.setattr(results, 'fingerprint', lambda: 'another')
    Results(tmp_path / 'kept.json', tmp_path / 'none.json').get(PLAN[2].program)
    assert len(compiled) == 2


def test_other_code_with_the_same_program_is_not_compiled_again(tmp_path, monkeypatch):
    """The figures of other code stay in the file until each of their programs has been traced."""
    kept, compiled = tmp_path / 'kept.json', []
    digests = {row.program: 'aaaa' for row in PLAN}

    def measure(program: Program, earlier: dict | None) -> dict:
        if earlier and earlier['digest'] == digests[program]:
            return earlier
        compiled.append(program)
        return made_up(program) | {'digest': digests[program]}

    monkeypatch.setattr(results, 'measure_in_subprocess', measure)
    found = Results(kept, tmp_path / 'none.json')
    before = [found.get(row.program) for row in PLAN]
    monkeypatch.setattr(results, 'fingerprint', lambda: 'another')
    digests[PLAN[1].program] = 'bbbb'
    assert Results(kept, tmp_path / 'none.json').get(PLAN[0].program) == before[0]
    found = Results(kept, tmp_path / 'none.json')
    assert list(found.figures) == [PLAN[0].program]
    after = [found.get(row.program) for row in PLAN]
    assert compiled == [row.program for row in PLAN] + [PLAN[1].program]
    assert [figures['digest'] for figures in after] == ['aaaa', 'bbbb', 'aaaa']
    assert {row['code'] for row in read_report(kept)['programs']} == {'another'}


def test_a_row_that_fails_does_not_stop_the_others(compiled, tmp_path, monkeypatch, capsys):
    def run(program: Program, earlier: dict | None) -> dict:
        if program.abn_memory == 'inplace':
            raise ReportError('train tresnet_m inplace: out of memory')
        return made_up(program)

    monkeypatch.setattr(results, 'measure_in_subprocess', run)
    assert command.main(['--out', str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert 'error: train tresnet_m inplace: out of memory' in err and '2 of 3' in err
    assert '`resnet50d`' in out and 'inplace' not in out


def test_interrupted(compiled, tmp_path, monkeypatch, capsys):
    """Figures of compiled programs are kept for the next run."""
    begun = []

    def run(program: Program, earlier: dict | None) -> dict:
        begun.append(program)
        if len(begun) == 4:
            raise KeyboardInterrupt
        return made_up(program)

    monkeypatch.setattr(results, 'measure_in_subprocess', run)
    flags = ['--out', str(tmp_path), '--only', 'train*']
    assert command.main(flags) == 1
    assert 'to resume' in capsys.readouterr().err
    assert command.main(flags) == 0
    assert begun[4] == begun[3] and len(set(begun)) == len(begun) - 1


def test_diff(compiled, tmp_path, monkeypatch, capsys):
    for folder, change in (('earlier', 0), ('later', 1_000_000_000)):
        monkeypatch.setattr(
            results,
            'measure_in_subprocess',
            lambda program, earlier, change=change: made_up(program) | {'argument_bytes': 5_000_000 + change},
        )
        assert command.main(['--out', str(tmp_path / folder), '--only', 'train tresnet_m plain']) == 0
    monkeypatch.setattr(results, 'measure_in_subprocess', lambda program, earlier: made_up(program))
    assert command.main(['--out', str(tmp_path / 'later'), '--only', 'infer*']) == 0
    capsys.readouterr()
    earlier = str(tmp_path / 'earlier' / 'gpu_report.partial.json')
    assert command.main(['--out', str(tmp_path / 'later'), '--diff', earlier, '--only', '*[!e]']) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        '| train tresnet_m plain | argument_bytes | 5,000,000 | 1,005,000,000 | 201.000 |',
        '| train tresnet_m plain | largest batch, 16 GB | 792 | 744 | 0.939 |',
        '| train tresnet_m plain | largest batch, 80 GB | 3,992 | 3,944 | 0.988 |',
        '',
        'Not in the earlier report: infer resnet50d.',
    ]


def test_diff_of_the_same():
    figures = {PLAN[2].program: made_up(PLAN[2].program)}
    assert changes.changes(PLAN[2:], figures, figures) == '1 programs have the same figures as before.\n'


def test_the_page_in_docs_shows_the_figures_of_its_json_file():
    docs = ROOT / 'docs'
    figures = figures_of(read_report(docs / 'gpu_report.json'))
    found = [(row, known) for row in report_rows('h100') if (known := row.known(figures))]
    assert len(found) == len(report_rows('h100'))
    train, infer = ([pair for pair in found if pair[0].program.mode == mode] for mode in ('train', 'infer'))
    text = (docs / 'gpu_report.md').read_text(encoding='utf-8')
    for part in (
        tables.programs_table(train),
        tables.largest_table(train),
        tables.programs_table(infer),
        tables.unfused_table(infer),
    ):
        assert part in text


# The fingerprint.


@pytest.fixture
def copied(tmp_path) -> list[Path]:
    """Folders with copies of all modules of the scripts and of the library."""
    for source in (SCRIPTS, ROOT / 'tresnet_jax', ROOT / 'convert'):
        shutil.copytree(source, tmp_path / source.name, ignore=lambda folder, names: [
            name for name in names if not (Path(folder, name).is_dir() or name.endswith('.py'))
        ])  # fmt: skip
    return [tmp_path / 'scripts', tmp_path]


def test_the_fingerprint_covers_exactly_the_traced_modules(copied):
    """Code in any traced module changes it; comments, docstrings and other modules do not."""
    before = fingerprint.fingerprint(copied)
    assert before == fingerprint.fingerprint()
    traced = set(fingerprint.traced_modules(copied).values())
    others = set(copied[1].rglob('*.py')) - traced
    for path in others:
        path.write_text(path.read_text(encoding='utf-8') + 'changed = True\n', encoding='utf-8')
    assert len(others) > 50 and fingerprint.fingerprint(copied) == before
    for path in traced:
        source = path.read_text(encoding='utf-8')
        path.write_text(source + 'changed = True\n', encoding='utf-8')
        assert fingerprint.fingerprint(copied) != before, path
        path.write_text(source, encoding='utf-8')
    path = copied[0] / 'loop_step.py'
    source = path.read_text(encoding='utf-8')
    path.write_text(source.replace('"""The ', '"""A ', 1) + '# A comment.\n', encoding='utf-8')
    assert path in traced and fingerprint.fingerprint(copied) == before


def test_traced_modules():
    """The models, the step and the measuring modules are traced; command lines and pages are not."""
    names = set(fingerprint.traced_modules())
    models = {f'tresnet_jax.models.{path.stem}' for path in (ROOT / 'tresnet_jax' / 'models').glob('[!_]*.py')}
    assert models <= names
    training = {f'tresnet_jax.training.{name}' for name in ('batch_augment', 'config', 'devices', 'optim', 'step')}
    assert training | {'tresnet_jax.variants', 'tresnet_jax.folding', 'loop_step'} <= names
    assert {'tresnet_jax.data.transforms', 'gpu_reporting.hlo', 'gpu_reporting.convolutions'} <= names
    assert not names & {
        'tresnet_jax.cli.predict',
        'tresnet_jax.training.loop',
        'tresnet_jax.hub.client',
        'gpu_reporting.tables',
    }


def test_versions_and_flags_count(monkeypatch):
    """cuDNN's version counts for both CUDA versions, and so do XLA's flags."""
    found = {fingerprint.fingerprint()}
    for package in fingerprint.CUDNN:
        assert package in fingerprint.PACKAGES
        monkeypatch.setattr(fingerprint, 'versions', lambda package=package: {package: '9.99'})
        found.add(fingerprint.fingerprint())
    monkeypatch.setenv('XLA_FLAGS', '--xla_gpu_use_runtime_fusion=true')
    found.add(fingerprint.fingerprint())
    assert len(found) == 4
