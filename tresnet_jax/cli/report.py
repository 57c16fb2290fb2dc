"""`evaluate.py --report`: CSV and PNG files about single classes and images."""

import collections
import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tresnet_jax.cli.inputs import Inputs
from tresnet_jax.cli.outputs import make_folder
from tresnet_jax.cli.report_figures import draw_confusion, draw_scores
from tresnet_jax.cli.thumbnails import CAPTION, short_name, thumbnail_of
from tresnet_jax.errors import shown
from tresnet_jax.files import save_text
from tresnet_jax.labels import class_names
from tresnet_jax.plotting import contact_sheet
from tresnet_jax.training.class_scores import confusion_matrix, scores_of_confusion, scores_of_labels
from tresnet_jax.training.evaluate import Arrays, EvalResult
from tresnet_jax.training.multilabel import POSITIVE_FROM, MultiLabelResult, sigmoid

WORST_ROWS = 100
WORST_IMAGES = 24
OTHER = 'another class'


def write_report(
    folder: Path,
    inputs: Inputs,
    labels: np.ndarray,
    outputs: np.ndarray | None,
    result: EvalResult,
    images: Sequence[Arrays],
) -> None:
    """Write the report on a data set with one class per image.

    Args:
        folder: the folder of the files; files of an earlier report are replaced.
        inputs: the model and the data.
        labels: (classes of the data,), the position of each class among the outputs that are compared. If some outputs
            are left out, the position of a class without images is meaningless.
        outputs: the outputs of the model that are compared; None: all.
        result: the accuracies.
        images: values of single images, as `evaluate` collects them.

    Raises:
        ConversionError: a file cannot be written.
    """
    make_folder(folder)
    values = _joined(images)
    known = class_names(inputs.model)
    indices = np.arange(inputs.model.num_classes) if outputs is None else outputs
    output_names = [shown(known[index]) if known else str(index) for index in indices]
    # With some outputs only, a class without images has no place among them.
    kept = [*range(len(labels))] if outputs is None else sorted(inputs.source.present)
    places = labels[kept]
    if known is None:
        for place, label in zip(places, kept, strict=True):
            output_names[place] = shown(inputs.source.class_names[label])
    output_names = _distinct(output_names, indices)
    names = [output_names[place] for place in places]

    count = len(kept)
    class_of_output = np.full(len(output_names), count)
    class_of_output[places] = np.arange(count)
    true, predicted = class_of_output[values['label']], class_of_output[values['predicted']]
    matrix = confusion_matrix(true, predicted, count)
    scores = scores_of_confusion(matrix)
    top5 = np.bincount(true, values['top5'], count) / np.maximum(scores.images, 1)
    _save_csv(
        folder / 'classes.csv',
        ('label', 'class', 'images', 'top1', 'top5', 'predicted', 'precision', 'f1'),
        zip(
            kept, names, scores.images, scores.recall, top5, scores.predicted, scores.precision, scores.f1,
            strict=True,
        ),
    )  # fmt: skip

    others = [OTHER] if matrix[:, count].any() else []
    shown_matrix = matrix[:, : count + len(others)]
    rows = ((name, *row) for name, row in zip(names, shown_matrix.tolist(), strict=True))
    _save_csv(folder / 'confusion.csv', ('class', *names, *others), rows)
    title = f'{inputs.name} on {inputs.source.name}: top-1 {100 * result.top1:.2f} %'
    draw_confusion(folder / 'confusion.png', shown_matrix, names, [*names, *others], title)

    wrong = values['label'] != values['predicted']
    pairs, counts = np.unique(np.stack([true, values['predicted']])[:, wrong], axis=1, return_counts=True)
    order = np.argsort(-counts, kind='stable')
    _save_csv(
        folder / 'confused.csv',
        ('class', 'predicted', 'images', 'share'),
        [
            (names[label], output_names[output], number, number / scores.images[label])
            for (label, output), number in zip(pairs.T[order], counts[order], strict=True)
        ],
    )

    def describe(row: int) -> tuple[str, str]:
        return names[true[row]], f'{output_names[values["predicted"][row]]} {values["probability"][row]:.4f}'

    _save_worst(folder, inputs, values, describe)


def write_multilabel_report(
    folder: Path, inputs: Inputs, result: MultiLabelResult, images: Sequence[Arrays], threshold: float
) -> None:
    """Write the report on a data set with any number of classes per image.

    Args:
        folder, inputs: as for `write_report`.
        result: the metrics.
        images: values of single images, as `evaluate_multilabel` collects them.
        threshold: probability from which a class counts as predicted.

    Raises:
        ConversionError: a file cannot be written.
    """
    make_folder(folder)
    values = _joined(images)
    names = [shown(name) for name in inputs.source.class_names]
    labels, probabilities = values['targets'] >= POSITIVE_FROM, sigmoid(values['logits'])
    predicted = probabilities >= threshold
    scores = scores_of_labels(predicted, labels)
    _save_csv(
        folder / 'classes.csv',
        ('label', 'class', 'images', 'average_precision', 'predicted', 'precision', 'recall', 'f1'),
        zip(
            range(len(names)), names, scores.images, result.average_precisions, scores.predicted, scores.precision,
            scores.recall, scores.f1, strict=True,
        ),
    )  # fmt: skip
    title = f'{inputs.name} on {inputs.source.name}: mAP {100 * result.map:.2f} %'
    draw_scores(folder / 'classes.png', result.average_precisions, scores.f1, names, title, threshold)

    def describe(row: int) -> tuple[str, str]:
        found = [f'{names[index]} {probabilities[row, index]:.4f}' for index in np.flatnonzero(predicted[row])]
        return '; '.join(names[index] for index in np.flatnonzero(labels[row])), '; '.join(found)

    _save_worst(folder, inputs, values, describe)


def _distinct(names: Sequence[str], indices: Sequence[int] | np.ndarray) -> list[str]:
    """Return the names of outputs, with the index behind those of several: two classes of ImageNet are 'crane'.

    A class of the data that is named '3' and the output 3, which has no name, also look alike.
    """
    count = collections.Counter(names)
    pairs = zip(names, indices, strict=True)
    return [f'{name} (output {index})' if count[name] > 1 else name for name, index in pairs]


def _joined(images: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([batch[name] for batch in images]) for name in images[0]}


def _save_worst(folder: Path, inputs: Inputs, values: Arrays, describe: Any) -> None:
    """Write worst.csv and worst.png: the images with the largest loss.

    Args:
        folder, inputs: as for `write_report`.
        values: of single images.
        describe: takes the row of an image; returns its classes and what is predicted.
    """
    worst = np.argsort(-values['loss'], kind='stable')[:WORST_ROWS]
    rows = [
        (shown(inputs.source.describe(int(values['index'][row]))), *describe(row), float(values['loss'][row]))
        for row in worst
    ]
    _save_csv(folder / 'worst.csv', ('image', 'class', 'predicted', 'loss'), rows)
    thumbnails = [
        thumbnail_of(inputs.source, int(values['index'][row]), inputs.max_value) for row in worst[:WORST_IMAGES]
    ]
    captions = [
        f'{short_name(image)}\n{label[:CAPTION] or "no class"}\n→ {found[:CAPTION] or "no class"}'
        for image, label, found, _ in rows[:WORST_IMAGES]
    ]
    contact_sheet(thumbnails, captions, folder / 'worst.png', columns=min(6, len(thumbnails)))


def _save_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    text = io.StringIO(newline='')
    table = csv.writer(text, lineterminator='\n')
    table.writerow(columns)
    for row in rows:
        table.writerow([f'{value:.6f}' if isinstance(value, float) else value for value in row])
    save_text(path, text.getvalue())
