"""The parts of scripts/gpu_check.py: parsers on stored texts, verdicts on made-up figures, and each part on a CPU."""

import dataclasses
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarking.processes import JobError
from gpu_checking import determinism, kernels, largest, memory, parity, plan, rates, speed, training
from gpu_checking.attempts import attempt
from gpu_checking.models import largest_distance
from gpu_checking.programs import Compiled, Work, kernel_counts, work_of
from gpu_checking.records import last_error
from gpu_checking.sizes import TINY, sizes_of
from gpu_checking.stored_gradients import stored_gradients

from tests.helpers.paths import FILES, ROOT

HLO = (FILES / 'gpu_program.hlo').read_text(encoding='utf-8')
PROFILE = (FILES / 'gpu_profile.textproto').read_text(encoding='utf-8')


# Parsers.


def test_kernels_of_a_profile():
    """Streams count, other lines do not; a kernel of a CUDA graph is found by its own name."""
    seconds = kernels.kernel_seconds(jax.profiler.ProfileData.from_text_proto(PROFILE))
    assert seconds == pytest.approx(
        {'cudnn-conv-bias-activation.1': 610e-6, 'loop_select_fusion': 210e-6, 'wrapped_convert_1': 40e-6}
    )
    names = kernels.origins(HLO.replace('jit(predict)/convert_element_type', 'jit(predict)/conv1/convert_element_type'))
    first, second, third = kernels.ranked(seconds, names, {'conv1'})
    assert first.seconds == pytest.approx(610e-6 / kernels.STEPS) and first.share == pytest.approx(610 / 860)
    assert (second.name, second.layer, second.operation) == ('loop_select_fusion', '', 'select_n')
    assert (third.name, third.layer) == ('wrapped_convert_1', 'conv1')
    *_, (name, total) = kernels.rows([first, second])
    assert name == 'all kernels' and total['ms'] == pytest.approx(0.86 / kernels.STEPS)
    with pytest.raises(ValueError, match='no kernels'):
        kernels.ranked(kernels.Counter(), {}, ())


def test_layers_in_names():
    layers = {'layer1.0.conv1', 'body.conv1'}
    assert kernels.layer_of('jit(step)/jvp(layer1.0.conv1)/add', layers) == 'layer1.0.conv1'
    assert kernels.layer_of('pmap(step)/transpose(jvp(body.conv1))/mul', layers) == 'body.conv1, gradient'
    assert kernels.layer_of('jit(step)/sub', layers) == kernels.layer_of('', layers) == ''


def test_a_profile_of_this_machine(optimized):
    def loss(w, x):
        with jax.named_scope('layer1'):
            y = jnp.tanh(x @ w)
        return (y**2).sum()

    args = jnp.ones((64, 64)), jnp.ones((64, 64))
    executable = jax.jit(jax.grad(loss)).lower(*args).compile()
    found = kernels.longest_kernels(Compiled(executable, lambda: jax.block_until_ready(executable(*args))), {'layer1'})
    assert {'layer1', 'layer1, gradient'} & {kernel.layer for kernel in found}
    assert sum(kernel.share for kernel in found) <= 1.001


def test_counts_of_a_program():
    text = HLO + '\n %f = fusion(), backend_config={"kind":"__cudnn$fusion"}\n "kind":"__triton_gemm" "kind":"__triton"'
    assert kernel_counts(HLO) == {'convolutions': 4, 'with bias': 2, 'cuDNN fusions': 0, 'Triton fusions': 0}
    assert kernel_counts(text) == {'convolutions': 4, 'with bias': 2, 'cuDNN fusions': 1, 'Triton fusions': 2}


@dataclasses.dataclass
class Executable:
    text: str

    def as_text(self):
        return self.text

    def cost_analysis(self):
        if 'silent' in self.text:
            raise NotImplementedError
        return {'flops': 7.0, 'bytes accessed': 5.0}


def test_work_of_a_program():
    counted = work_of(Compiled(Executable(HLO), lambda: None))
    assert counted is not None and counted.source == 'kernels'
    assert counted.operations == 3 * 2 * 512 * 27 + 2 * 512 * 4
    for text in ('', HLO.replace('copy(%bitcast.1)', 'while(%bitcast.1)'), HLO + '"kind":"__cudnn$fusion"'):
        assert work_of(Compiled(Executable(text), lambda: None)) == Work(5.0, 7.0, "XLA's cost analysis")
    assert work_of(Compiled(Executable('silent'), lambda: None)) is None


def test_bounds():
    found = rates.bound(Work(10.0, 40.0, 'kernels'), 2.0, moving=10.0, computing=80.0)
    assert (found['ms by bytes'], found['ms by operations'], found['share of the bound']) == (1000, 500, 0.5)
    assert set(rates.bound(None, 1.0, 1.0, 1.0).values()) == {None}
    sheet = rates.data_sheet('NVIDIA H100 80GB HBM3')
    assert sheet is not None and sheet.peak('bfloat16') == 990e12
    assert rates.data_sheet('NVIDIA H200') is not None and rates.data_sheet('NVIDIA GeForce RTX 4090') is None


# Verdicts on made-up figures.


def test_peaks():
    needed = {'temporaries': 900, 'arguments': 100, 'results': 0}
    found = {'needed': needed, 'in use': 100, 'peak': 1050, 'after compiling': 300}
    assert memory.peak_finding('a', found).values['peak / expected'] == 1.05
    assert memory.peak_finding('a', found).passed
    program = memory.Program('train', 'tresnet_m', 128, abn_memory='lean')
    reported = memory.reported_bytes(program)
    assert reported is not None and memory.reported_bytes(dataclasses.replace(program, batch=4)) is None
    assert memory.peak_finding('a', found, reported).values['temporaries in docs/gpu_report, MB'] == reported / 1e6
    assert memory.peak_finding('a', found | {'peak': 1200}).passed is False
    assert memory.peak_finding('a', found | {'after compiling': 1050}).note.startswith('no verdict')
    for unknown in ({'needed': needed}, found | {'needed': None}):
        assert memory.peak_finding('a', unknown).note.startswith('unavailable')


def test_peaks_that_autotuning_hides(monkeypatch, tmp_path):
    """They are measured in a second process, which reads the program from the first one's cache."""
    environments = []

    def in_new_process(job, arguments, threads, environment, module):
        environments.append(environment)
        needed = {'temporaries': 900, 'arguments': 100, 'results': 0}
        first = {'needed': needed, 'in use': 100, 'peak': 5000, 'after compiling': 5000}
        return first if len(environments) == 1 else first | {'needed': None, 'peak': 1000, 'after compiling': 150}

    monkeypatch.setattr(memory, 'in_new_process', in_new_process)
    monkeypatch.setattr(memory, 'memory_modes', lambda name: [('plain', False)])
    workload = speed.Workload('test_tresnet', '', 32, 'float32', 1)
    monkeypatch.setattr(memory, 'seeded_workload', lambda *arguments: workload)
    (found,) = memory.peaks(tmp_path, 'test_tresnet', TINY)
    assert found.passed and found.values['peak / expected'] == 1 and found.values['temporaries, MB'] == 900e-6
    assert len(environments) == 2 and environments[0] == environments[1]


def test_verdicts_of_the_modes(monkeypatch):
    """The bound grows with what rounding alone does on the device."""
    errors = {'errors': [1e-6, 0.08, 0.11], 'noise': 0.02}
    monkeypatch.setattr(memory, 'in_new_process', lambda *arguments: errors)
    monkeypatch.setattr(memory, 'memory_modes', lambda name: [('plain', False), *[('lean', False)] * 3])
    assert [found.passed for found in memory.agreement('tresnet_m')] == [True, True, False]
    errors['noise'] = 1e-7
    assert [found.passed for found in memory.agreement('tresnet_m')] == [True, False, False]


def test_largest_batches(monkeypatch, tmp_path):
    """The search starts near what the report expects; on a CPU there is none."""
    tried = []
    memory_bytes: int | None = 80 * 10**9

    def in_new_process(job, arguments, threads, environment, module=None):
        if job == 'about':
            return {'memory_bytes': memory_bytes}
        tried.append(arguments['batch'])
        if arguments['batch'] > 2500:
            raise JobError('RESOURCE_EXHAUSTED', out_of_memory=True)

    for module in (largest, sys.modules[largest.Bench.__module__]):
        monkeypatch.setattr(module, 'in_new_process', in_new_process)
    monkeypatch.setattr(largest, 'MODE_CONTENDERS', {('plain', False): 'ours'})
    monkeypatch.setattr(
        largest, 'seeded_workload', lambda *arguments: speed.Workload('tresnet_m', '', 224, 'bfloat16', 1)
    )
    sizes = dataclasses.replace(TINY, largest_of=('tresnet_m',))
    (found,) = largest.run(sizes, tmp_path)
    assert found.name == 'tresnet_m, plain' and 2500 - 2500 / 32 <= found.values['images'] <= 2500
    page = (ROOT / 'docs' / 'gpu_report.md').read_text(encoding='utf-8')
    (expected,) = map(int, re.findall(r'^\| `tresnet_m` plain \| \d+ \| (\d+) \|$', page, re.MULTILINE))
    assert found.values['expected from docs/gpu_report'] == expected
    assert tried[0] == int(0.9 * expected) and len(tried) < 9
    memory_bytes = None
    assert next(largest.run(sizes, tmp_path)).note.startswith('unavailable')


def test_bounds_of_parity():
    row = parity.Comparison('logits', 0.0, noise=1e-6)
    highest, half, *_ = parity.PRECISIONS
    assert parity.bound_of(row, highest, {'logits': 0.1}) == parity.HIGHEST_BOUND
    assert parity.bound_of(dataclasses.replace(row, noise=1e-5), highest, {}) == pytest.approx(1e-4)
    assert parity.bound_of(row, half, {}) == parity.bound_of(row, half, {'logits': 0.0}) == 2**-4
    assert parity.bound_of(row, half, {'logits': 0.1}) == pytest.approx(0.2)
    rows = [dataclasses.replace(row, error=error) for error in (0.5, np.nan, 0.25)]
    assert np.isnan(parity.worst_of(rows, half, {}).error), 'as after an overflow in float16'
    rounding = parity.gradient_bounds({'a': 0.1, 'b': 0.0, 'c': 0.5}, half)
    assert rounding == pytest.approx({'a': 0.4, 'b': 0.4, 'c': 0.9})
    assert parity.gradient_bounds({'a': 0.1}, highest) == {'a': parity.SIGN_CHANGE}


def test_gradients_that_are_not_finite():
    one = np.ones(2)
    assert np.isnan(largest_distance({'a': one, 'b': np.nan * one}, {'a': one, 'b': one}))


def test_an_attempt_that_fails():
    """The next row is measured nevertheless; too small a GPU is not a fault."""

    def rows(message):
        yield parity.Finding('a', 'first')
        raise RuntimeError(message)

    first, failed = attempt('a', 'b', rows('no such kernel'))
    assert first.name == 'first' and (failed.name, failed.passed) == ('b', False)
    assert failed.note == 'RuntimeError: no such kernel'
    assert list(attempt('a', 'b', rows('RESOURCE_EXHAUSTED: Out of memory')))[1].passed is None


def test_verdicts_of_a_training():
    """Each seed has one, because the time may not suffice for all; a mean of fewer may differ more."""
    cpu = [80.0, 82.0, 81.0]
    assert training.verdict([82.5], cpu, is_whole=True).passed
    assert training.verdict([82.5, 84.5], cpu, is_whole=True).passed is False
    found = training.verdict([82.5, 82.0, 81.0], cpu, is_whole=True)
    assert found.passed and found.name == 'seed 2' and found.values['bound'] == training.MARGIN
    assert found.values['mean difference so far'] == pytest.approx(2.5 / 3)
    assert training.verdict([0.0], cpu, is_whole=False).passed is None


def test_errors_of_programs():
    text = 'Traceback\n  raise\njax.errors.JaxRuntimeError: INTERNAL: x\n----\nFor simplicity, JAX has removed frames'
    assert last_error(text) == 'jax.errors.JaxRuntimeError: INTERNAL: x'
    assert last_error('W0000 a warning\nerror: no such folder\n') == 'error: no such folder'
    assert last_error('killed\n\n') == 'killed' and last_error('') == 'it failed'


def test_ratios_to_timm():
    case = speed.Case('main', 'train', 'resnet50d', 'bfloat16', 10)
    found = {
        one.name.rpartition(' ')[2]: one.values
        for one in speed.speeds(case, {'ours': 0.5, 'timm-a': 1.0, 'timm-b': 2.0})
    }
    assert found['ours'] == {'images/s': 20.0, 'ms': 500.0, 'times as fast as timm': 2.0}
    assert found['timm-b']['times as fast as timm'] == 0.5
    (alone,) = speed.speeds(case, {'ours': 0.5})
    assert alone.values['times as fast as timm'] is None


def test_the_order_of_cases():
    """What the time may not suffice for comes last."""
    cases = list(speed.ordered_cases(sizes_of('default', False)))
    assert len(set(cases)) == len(cases)
    assert [(case.what, case.model) for case in cases[:3]] == [
        ('train', 'tresnet_m'), ('inference', 'tresnet_m'), ('train', 'resnet50d')
    ]  # fmt: skip
    assert cases[0].batch == 128 and cases[-1].batch == 32 and cases[0].contenders == 'main'
    assert speed.device_counts(1) == [1] and speed.device_counts(6) == [1, 2, 4, 6] and speed.device_counts(8)[-1] == 8


def test_distances_of_weights(tmp_path):
    np.savez(tmp_path / 'a.npz', np.ones(3), np.zeros(2))
    np.savez(tmp_path / 'b.npz', np.array([1, 1, 1.5]), np.zeros(2))
    assert determinism.distance(tmp_path / 'b.npz', tmp_path / 'a.npz') == 0.5


# The parts on this machine.


def test_parity_of_a_network(monkeypatch):
    """A wrong network is found."""
    (found,) = parity.compare('test_resnet', parity.BFLOAT16, False, {})
    assert found.passed and 1e-4 < found.values['its error'] < found.values['bound']
    right = parity.seeded_model

    def wrong_model(name, **options):
        model = right(name, **options)
        model.fc.kernel[...] *= 0.5
        return model

    monkeypatch.setattr(parity, 'seeded_model', wrong_model)
    (found,) = parity.compare('test_resnet', parity.BFLOAT16, False, {})
    assert found.passed is False and found.values['worst output'] == 'logits'


@pytest.mark.parametrize('factor', [-1, 0, 0.9])
def test_wrong_gradients(monkeypatch, factor):
    """One that has the wrong sign, is missing, or is a tenth too small is found in float32."""
    exact, noise = stored_gradients('test_tresnet')
    wrong = exact | {'body.layer1.0.conv1.conv.weight': factor * exact['body.layer1.0.conv1.conv.weight']}
    assert exact.keys() == noise.keys()
    for found, passes in ((exact, True), (wrong, False)):
        monkeypatch.setattr(parity, 'our_gradients', lambda name, dtype, found=found: found)
        (row,) = parity.compare_gradients('test_tresnet', parity.HIGHEST)
        assert row.passed is passes
    assert row.values['worst tensor'] == 'body.layer1.0.conv1.conv.weight'
    if factor <= 0:
        assert not next(parity.compare_gradients('test_tresnet', parity.BFLOAT16)).passed


def test_gradients_of_a_network():
    (row,) = parity.compare_gradients('test_tresnet', parity.BFLOAT16)
    assert row.passed and 0.01 < row.values['median error'] < 0.3


@pytest.mark.slow
@pytest.mark.parametrize('part', [*plan.PARTS])
def test_parts(part, tmp_path, monkeypatch):
    """Each part with tiny sizes, in this process; those that start others do so."""
    monkeypatch.setenv('JAX_NUM_CPU_DEVICES', '2')  # of the processes that it starts
    monkeypatch.setattr(speed, 'device_counts', lambda count: [1, 2])
    sizes = dataclasses.replace(TINY, architectures=('test_resnet',))
    found = list(plan.PARTS[part].run(sizes, tmp_path))
    assert found and not [one for one in found if one.passed is False]
    assert len({(one.group, one.name) for one in found}) == len(found)
    if part == 'parity':
        assert len(found) == 4 * 2 + 4, 'per precision both forms and the gradients'
    if part == 'speed':
        assert any(one.group.startswith(speed.KERNELS) and one.values.get('layer') for one in found)
        assert {'efficiency'} <= {name for one in found if one.group == speed.SCALING for name in one.values}
