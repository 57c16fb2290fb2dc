"""The parts of scripts/gpu_check.py: parsers on stored texts, verdicts on made-up figures, and each part on a CPU."""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from benchmarking.processes import JobError
from gpu_checking import determinism, kernels, memory, parity, plan, rates, speed
from gpu_checking.programs import Compiled, Work, kernel_counts, work_of
from gpu_checking.sizes import TINY, sizes_of
from gpu_checking.stored_gradients import stored_gradients

from tests.helpers.paths import FILES

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
    assert rates.data_sheet('NVIDIA GeForce RTX 4090') is None


# Verdicts on made-up figures.


def test_peaks():
    needed = {'temporaries': 900, 'arguments': 100, 'results': 0}
    found = {'needed': needed, 'expected': 1000, 'peak': 1050, 'after compiling': 300}
    assert memory.peak_finding('a', found).passed
    assert memory.peak_finding('a', found | {'peak': 1200}).passed is False
    assert memory.peak_finding('a', found | {'after compiling': 1050}).note.startswith('no verdict')
    assert memory.peak_finding('a', {'needed': needed}).note.startswith('unavailable')


def test_largest_batches(monkeypatch, tmp_path):
    """The search starts near what the report expects; without --full and on a CPU there is none."""
    tried = []

    def in_new_process(job, arguments, threads, environment, module=None):
        if job == 'about':
            return {'memory_bytes': 80 * 10**9}
        tried.append(arguments['batch'])
        if arguments['batch'] > 2500:
            raise JobError('RESOURCE_EXHAUSTED', out_of_memory=True)

    for module in (memory, memory.Bench.__module__):
        monkeypatch.setattr(
            sys.modules[module] if isinstance(module, str) else module, 'in_new_process', in_new_process
        )
    monkeypatch.setattr(memory, 'MODE_CONTENDERS', {('plain', False): 'ours'})
    monkeypatch.setattr(
        memory, 'seeded_workload', lambda *arguments: speed.Workload('tresnet_m', '', 224, 'bfloat16', 1)
    )
    sizes = dataclasses.replace(TINY, largest_of=('tresnet_m',))
    (found,) = memory.largest_batches(tmp_path, sizes)
    assert found.name == 'tresnet_m, plain' and 2500 - 2500 / 32 <= found.values['images'] <= 2500
    assert found.values['expected from docs/gpu_report'] == 2672 and tried[0] == 2404 and len(tried) < 9
    assert 'use --full' in next(memory.largest_batches(tmp_path, TINY)).note


def test_bounds_of_parity():
    row = parity.Comparison('logits', 0.0, noise=1e-6)
    highest, half, *_ = parity.PRECISIONS
    assert parity.bound_of(row, highest, {}) == pytest.approx(1e-5)
    assert parity.bound_of(row, half, {}) == 32 * 2**-8
    assert parity.bound_of(row, half, {'logits': 0.1}) == pytest.approx(0.2)
    assert parity.bound_of(row, half, {'logits': 0.0}) == 8 * 2**-8


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
    assert [case.what for case in cases[:4]] == ['inference', 'inference', 'train', 'train']
    assert cases[0].batch == 256 and cases[-1].batch == 32 and cases[0].contenders == 'main'
    assert speed.device_counts(1) == [1] and speed.device_counts(6) == [1, 2, 4, 6] and speed.device_counts(8)[-1] == 8


def test_distances_of_weights(tmp_path):
    np.savez(tmp_path / 'a.npz', np.ones(3), np.zeros(2))
    np.savez(tmp_path / 'b.npz', np.array([1, 1, 1.5]), np.zeros(2))
    assert determinism.distance(tmp_path / 'b.npz', tmp_path / 'a.npz') == 0.5


# The parts on this machine.


def test_parity_of_a_network(monkeypatch):
    """A wrong network is found."""
    found = parity.compare('test_resnet', parity.PRECISIONS[1], False, has_torch=False)
    assert found.passed and 1e-4 < found.values['its error'] < found.values['bound']
    right = parity.seeded_model

    def wrong_model(name, **options):
        model = right(name, **options)
        model.fc.kernel[...] *= 0.5
        return model

    monkeypatch.setattr(parity, 'seeded_model', wrong_model)
    found = parity.compare('test_resnet', parity.PRECISIONS[1], False, has_torch=False)
    assert found.passed is False and found.values['worst output'] == 'logits'
    exact, noise = stored_gradients('test_tresnet')
    assert 0 < noise < 1e-4 and 'body.layer1.0.conv1.conv.weight' in exact


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
        assert len(found) == 4 * 2 + 4 * 2
    if part == 'speed':
        assert any(one.group.startswith(speed.KERNELS) and one.values.get('layer') for one in found)
        assert {'efficiency'} <= {name for one in found if one.group == speed.SCALING for name in one.values}
