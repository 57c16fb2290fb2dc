"""``evaluate.py --report``: the numbers in its CSV files, its images, and how it fails."""

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.images import pixels
from tresnet_jax.cli import evaluate, report, report_figures
from tresnet_jax.training.evaluate import EvalResult
from tresnet_jax.training.multilabel import multilabel_result
from tresnet_jax.variants import PretrainedConfig

DATA_CLASSES = ('dog', 'cat', 'owl')
OUTPUTS = ('cat', 'cow', 'dog', 'elk', 'owl')  # of the model
PLACES = np.array([2, 0, 4])


class Source:
    name, class_names, present = 'folder:photos validation', DATA_CLASSES, (0, 1, 2)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {'image': pixels(6, 8, seed=index)}

    def describe(self, index: int) -> str:
        return f'photos/{index}.png'


def inputs(label_names: tuple[str, ...] | None = OUTPUTS) -> Any:
    row = PretrainedConfig(
        'test_resnet', '', (0.5,) * 3, (0.5,) * 3, 'bilinear', num_classes=5, label_names=label_names
    )
    model = SimpleNamespace(num_classes=5, pretrained_cfg=row)
    return SimpleNamespace(name='test_resnet', model=model, source=Source(), max_value=None)


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding='utf-8', newline='') as file:
        return list(csv.reader(file))


# label and likeliest output of eight images, both among the outputs of the model
LABELS = np.array([2, 2, 2, 0, 0, 4, 4, 4])
PREDICTED = np.array([2, 2, 0, 0, 1, 4, 3, 3])


def images(labels: np.ndarray, predicted: np.ndarray) -> list[dict[str, np.ndarray]]:
    """Return two batches, as `evaluate` collects them."""
    values = {
        'index': np.arange(8)[::-1],
        'label': labels,
        'predicted': predicted,
        'loss': np.linspace(0.1, 0.8, 8, dtype=np.float32),
        'top5': np.array([1, 1, 1, 1, 0, 1, 1, 1], bool),
        'probability': np.full(8, 0.75, np.float32),
    }
    return [{name: value[part] for name, value in values.items()} for part in (slice(0, 5), slice(5, 8))]


def test_one_class_per_image(tmp_path):
    folder = tmp_path / 'new' / 'report'
    result = EvalResult(loss=0.45, top1=0.5, top5=0.9, count=8)
    report.write_report(folder, inputs(), PLACES, None, result, images(LABELS, PREDICTED))
    assert rows(folder / 'classes.csv') == [
        ['label', 'class', 'images', 'top1', 'top5', 'predicted', 'precision', 'f1'],
        ['0', 'dog', '3', '0.666667', '1.000000', '2', '1.000000', '0.800000'],
        ['1', 'cat', '2', '0.500000', '0.500000', '2', '0.500000', '0.500000'],
        ['2', 'owl', '3', '0.333333', '1.000000', '1', '1.000000', '0.500000'],
    ]
    assert rows(folder / 'confusion.csv') == [
        ['class', 'dog', 'cat', 'owl', 'another class'],
        ['dog', '2', '1', '0', '0'],
        ['cat', '0', '1', '0', '1'],
        ['owl', '0', '0', '1', '2'],
    ]
    assert rows(folder / 'confused.csv')[1] == ['owl', 'elk', '2', '0.666667']
    assert sorted(row[:2] for row in rows(folder / 'confused.csv')[2:]) == [['cat', 'cow'], ['dog', 'cat']]
    worst = rows(folder / 'worst.csv')
    assert len(worst) == 9 and worst[1] == ['photos/0.png', 'owl', 'elk 0.7500', '0.800000']
    for name in ('confusion.png', 'worst.png'):
        with Image.open(folder / name) as image:
            assert image.format == 'PNG' and min(image.size) > 200


def test_some_outputs_and_classes_without_names(tmp_path):
    """With --valid-labels no prediction is another class; the classes then have the names of the data."""
    kept, labels, predicted = np.array([0, 2, 4]), LABELS // 2, np.minimum(PREDICTED // 2, 2)
    result = EvalResult(loss=0.45, top1=0.5, top5=0.9, count=8)
    places = np.array([1, 0, 2])
    report.write_report(tmp_path, inputs(None), places, kept, result, images(labels, predicted))
    assert rows(tmp_path / 'confusion.csv')[0] == ['class', *DATA_CLASSES]
    assert rows(tmp_path / 'confused.csv')[0] == ['class', 'predicted', 'images', 'share']
    assert {row[1] for row in rows(tmp_path / 'confused.csv')[1:]} <= {*DATA_CLASSES}


@pytest.mark.parametrize('names', [('crane', 'cow', 'dog', 'crane', 'owl'), None])
def test_names_that_look_alike(tmp_path, names):
    """Two classes of one name, or a class '3' beside an output 3 without a name: with the index of the output."""
    found = inputs(names)
    found.source.class_names = ('dog', '3', 'owl')
    result = EvalResult(loss=0.45, top1=0.5, top5=0.9, count=8)
    report.write_report(tmp_path, found, PLACES, None, result, images(LABELS, PREDICTED))
    name = 'crane' if names else '3'
    assert rows(tmp_path / 'confusion.csv')[0] == ['class', 'dog', f'{name} (output 0)', 'owl', 'another class']
    assert rows(tmp_path / 'confused.csv')[1][:2] == ['owl', f'{name} (output 3)']


@pytest.mark.parametrize('names', [OUTPUTS, None])
def test_a_class_without_images(tmp_path, names):
    """With --valid-labels the model's output for it is not compared, so the report leaves it out."""
    found = inputs(names)
    found.source.present = (0, 1)
    kept = np.array([0, 2])
    labels, predicted = np.array([1, 1, 1, 0, 0, 0, 0, 0]), np.array([1, 1, 0, 0, 1, 0, 0, 0])
    result = EvalResult(loss=0.45, top1=0.75, top5=0.9, count=8)
    report.write_report(tmp_path, found, np.searchsorted(kept, PLACES), kept, result, images(labels, predicted))
    assert rows(tmp_path / 'confusion.csv') == [['class', 'dog', 'cat'], ['dog', '2', '1'], ['cat', '1', '4']]
    assert [row[:3] for row in rows(tmp_path / 'classes.csv')[1:]] == [['0', 'dog', '3'], ['1', 'cat', '5']]


def test_any_number_of_classes(tmp_path):
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(20, 3)), (rng.random((20, 3)) < 0.4).astype(np.float32)
    values = {'logits': logits, 'targets': targets, 'loss': rng.random(20), 'index': np.arange(20)}
    result = multilabel_result(0.5, logits, targets, 0.6)
    report.write_multilabel_report(tmp_path, inputs(), result, [values], 0.6)
    found = rows(tmp_path / 'classes.csv')
    assert found[0] == ['label', 'class', 'images', 'average_precision', 'predicted', 'precision', 'recall', 'f1']
    predicted = 1 / (1 + np.exp(-logits)) >= 0.6
    for index, row in enumerate(found[1:]):
        right = (predicted[:, index] & (targets[:, index] > 0)).sum()
        assert row[:3] == [str(index), DATA_CLASSES[index], f'{targets[:, index].sum():.0f}']
        assert row[3] == f'{result.average_precisions[index]:.6f}' and int(row[4]) == predicted[:, index].sum()
        assert float(row[5]) == pytest.approx(right / predicted[:, index].sum(), abs=1e-6)
        assert float(row[6]) == pytest.approx(right / targets[:, index].sum(), abs=1e-6)
    assert float(np.mean([float(row[7]) for row in found[1:]])) == pytest.approx(result.macro_f1, abs=1e-6)
    first = rows(tmp_path / 'worst.csv')[1]
    worst = int(values['loss'].argmax())
    assert first[0] == f'photos/{worst}.png'
    assert first[1] == '; '.join(name for name, target in zip(DATA_CLASSES, targets[worst], strict=True) if target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['classes.csv', 'classes.png', 'worst.csv', 'worst.png']


@pytest.mark.parametrize('count, has_names', [(50, True), (51, False), (400, False)])
def test_many_classes_have_no_names(tmp_path, monkeypatch, count, has_names):
    labels = []
    monkeypatch.setattr(
        report_figures,
        'save_figure',
        lambda figure, path: labels.extend(t.get_text() for t in figure.axes[0].get_yticklabels()),
    )
    names = [f'class $x_{number}' for number in range(count)]
    report_figures.draw_confusion(tmp_path / 'a.png', np.eye(count, dtype=int), names, names, 'title')
    assert (names[3] in labels) == has_names
    labels.clear()
    report_figures.draw_scores(tmp_path / 'b.png', np.ones(count), np.ones(count), names, 'title', 0.5)
    assert (names[3] in labels) == has_names


@pytest.mark.parametrize(
    'flags, message',
    [
        (('--report', 'file/report'), '--report file/report: is not a folder and cannot be made'),
        (('--report', 'new', '--real-labels', 'real.json'), '--report needs one right class for each image; leave out'),
    ],
)
def test_wrong_flags_come_before_the_work(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    Path('file').write_text('')
    monkeypatch.setattr(evaluate, 'load_inputs', lambda *arguments: pytest.fail('loaded in vain'))
    model = ('--model', 'test_resnet.fashion_mnist', '--pretrained', '--data', 'embedded:fashion_mnist')
    assert evaluate.main([*model, *flags]) == 2
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('error: ') and message in err and err.count('\n') == 1
    assert [path.name for path in tmp_path.iterdir()] == ['file']
