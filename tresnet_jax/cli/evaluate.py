"""`evaluate.py`: accuracy of a model on labelled images, compared with the published accuracy of its weights.

With any number of classes per image: mean average precision and F1.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import jax
import numpy as np
import tyro

from tresnet_jax.checkpoints.checkpoint import METRICS
from tresnet_jax.checkpoints.report import describe_images
from tresnet_jax.cli.common import fail, parse, quiet_libraries
from tresnet_jax.cli.inputs import InputFlags, Inputs, load_inputs, match_inputs
from tresnet_jax.cli.measuring import measure_all, with_accepted, with_labels
from tresnet_jax.cli.outputs import check_plot_folder
from tresnet_jax.cli.report import write_multilabel_report, write_report
from tresnet_jax.cli.results import read_results, timm_row, write_result
from tresnet_jax.cli.timm_flags import EVALUATE, check_timm_flags
from tresnet_jax.data.examples import check_total
from tresnet_jax.data.real_labels import accepted_labels, read_real_labels
from tresnet_jax.data.targets import MultiLabelSource
from tresnet_jax.data.transforms import resolve_data_config
from tresnet_jax.errors import TrainingError, amount, shown
from tresnet_jax.labels import class_synsets
from tresnet_jax.options import SHARE, check_options, flag, flag_name
from tresnet_jax.published import TEST_SETS, PublishedAccuracy
from tresnet_jax.training.evaluate import Arrays, EvalResult, evaluate, evaluate_multilabel
from tresnet_jax.training.hosts import Hosts
from tresnet_jax.training.step import make_eval_step, make_multilabel_eval_step

TestSetName = Literal['imagenet-real', 'imagenet-v2', 'imagenet-sketch', 'imagenet-a', 'imagenet-r']
IMAGENET_CLASSES = 1000
NO_TREE = 'trained with --loss semantic, whose tree is not used here: top-1 compares classes of all levels'
MAX_DISTANCE = 3.0  # standard errors that an accuracy may differ from the published one


@dataclasses.dataclass(frozen=True)
class EvaluateArguments:
    """Measure top-1 and top-5 accuracy with standard errors, and compare them with the published values of the tag.

    With any number of classes per image, measure mean average precision and F1.

    Standard error shows a progress bar on a terminal, and one line every 30 seconds elsewhere.

    Exit codes: 0; 1, with --check, an accuracy differs from the published one; 2, an error in the flags or the data,
    or, with --check, there is no published accuracy; 130, interrupted.
    """

    flags: tyro.conf.OmitArgPrefixes[InputFlags]
    hosts: tyro.conf.OmitArgPrefixes[Hosts] = Hosts()
    multilabel_threshold: Annotated[float | None, SHARE, flag('P', 'that of the run, or 0.5')] = None
    """Probability from which a class counts as predicted in F1, with any number of classes per image."""
    json: bool = False
    """Print one JSON document instead of lines."""
    check: bool = False
    """Fail if top-1 or top-5 differs from the published value by more than three standard errors."""
    valid_labels: bool = False
    """Compare only the outputs of the classes that the data has, as is done for ImageNet-A and ImageNet-R."""
    real_labels: Annotated[Path | None, flag('FILE.json', 'the labels of the data')] = None
    """ReaL labels of ImageNet's validation images. Images without one are not counted."""
    published: Annotated[TestSetName | None, flag('TEST_SET', "the tag's own: ImageNet's validation split")] = None
    """Test set whose published accuracies to compare with: imagenet-real, imagenet-v2, imagenet-sketch,
    imagenet-a or imagenet-r."""
    results: Annotated[
        Path | None,
        tyro.conf.arg(metavar='FILE.csv', aliases=('--results-file',), help_behavior_hint='(default: none)'),
    ] = None
    """Also write the accuracies to a CSV file with timm's columns. A file with these columns gets another row."""
    report: Annotated[Path | None, flag('FOLDER', 'none')] = None
    """Also write CSV and PNG files: scores of each class, confusion matrix, most confused classes, worst images."""


class Classes(NamedTuple):
    """Which outputs of the model are compared, and which of them belong to the classes of the data.

    Attributes:
        labels: (classes of the data,) int32, the position of each class among the outputs that are compared.
        outputs: the outputs that are compared, ascending; None: all.
        text: how classes were matched, as text.
        accepted: (images, labels) int32, all right outputs for each image, padded with -1; None: that of its class.
    """

    labels: np.ndarray
    outputs: np.ndarray | None
    text: str
    accepted: np.ndarray | None = None

    @property
    def unlabelled(self) -> int:
        """The number of images without a right output, which are not counted."""
        return 0 if self.accepted is None else int((self.accepted < 0).all(1).sum())


@dataclasses.dataclass(frozen=True)
class Figure:
    """A measured accuracy and the published one, in percent.

    Attributes:
        value: the measured accuracy.
        error: its standard error.
        published: the published accuracy; None if there is none.
        distance: `value` minus `published`, in standard errors of the published accuracy over as many images.
    """

    value: float
    error: float
    published: float | None
    distance: float | None

    def __str__(self) -> str:
        text = f'{self.value:.3f} % ± {self.error:.2f}'
        if self.published is None:
            return text
        return f'{text}, published {self.published:.3f} ({self.distance:+.1f} standard errors)'


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code. Wrong usage and ``--help`` raise SystemExit."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        check_timm_flags(argv, EVALUATE)
    except TrainingError as error:
        return fail(error)
    arguments = parse(EvaluateArguments, argv, default=EvaluateArguments(InputFlags()))
    quiet_libraries()
    try:
        check_options(arguments, TrainingError)
        if arguments.report is not None:
            check_plot_folder('--report', arguments.report)
            if arguments.real_labels is not None:
                raise TrainingError('--report needs one right class for each image; leave out --real-labels')
        inputs = load_inputs(arguments.flags, arguments.hosts)
        if isinstance(inputs.source, MultiLabelSource):
            print_multilabel(arguments, inputs)
            return 0
        if arguments.multilabel_threshold is not None:
            raise TrainingError('--multilabel-threshold: for --task multilabel, not for one class per image')
        classes = choose_outputs(inputs, valid_labels=arguments.valid_labels, real_labels=arguments.real_labels)
        test_set = choose_test_set(arguments, inputs, classes)
        partial = classes.outputs is not None and len(classes.outputs) < inputs.model.num_classes
        published = None if partial and test_set is None else published_for(inputs, test_set)
        if arguments.check and published is None:
            raise TrainingError(_nothing_to_check(inputs, test_set))
        if arguments.results is not None:
            read_results(arguments.results)
        images: list[Arrays] | None = None if arguments.report is None else []
        result = measure(inputs, arguments.flags, classes, images)
        check_total(inputs.source, _skipped(inputs, classes, result), arguments.flags.max_unreadable)
    except (ValueError, OSError, KeyboardInterrupt) as error:  # those of the library are ValueErrors of one line
        return fail(error)
    top1 = figure(result, result.top1, published and published.top1)
    top5 = figure(result, result.top5, published and published.top5)
    if jax.process_index() == 0:
        print((_as_json if arguments.json else _as_text)(inputs, classes, result, top1, top5, test_set))
        try:
            if arguments.results is not None:
                write_result(arguments.results, timm_row(inputs, top1.value, top5.value))
            if arguments.report is not None and images is not None:
                write_report(arguments.report, inputs, classes.labels, classes.outputs, result, images)
                if not arguments.json:
                    print(f'report    {arguments.report}')
        except ValueError as error:
            return fail(error)
    agree = all(abs(f.distance) <= MAX_DISTANCE for f in (top1, top5) if f.distance is not None)
    return 1 if arguments.check and not agree else 0


def choose_outputs(inputs: Inputs, *, valid_labels: bool, real_labels: Path | None = None) -> Classes:
    """Match the classes of the data to the outputs of the model.

    Args:
        inputs: the model and the data.
        valid_labels: keep only the outputs of the classes that the data has.
        real_labels: the file of ReaL labels; None: the labels of the data.

    Raises:
        DataError: the classes of the data are not the model's, or the ReaL labels are not those of the images.
        TrainingError: the model has no classifier, or ReaL labels do not suit it.
    """
    if not inputs.model.num_classes:
        raise TrainingError(f'{inputs.name}: has no classifier')
    match = match_inputs(inputs)
    if inputs.semantic:
        match = match._replace(text=f'{match.text}; {NO_TREE}')
    if real_labels is not None:
        if class_synsets(inputs.model) != class_synsets(IMAGENET_CLASSES):
            raise TrainingError(f"--real-labels are of ImageNet's 1,000 classes, which {inputs.name} does not have")
        if valid_labels:
            raise TrainingError('--real-labels are of all classes; leave out --valid-labels')
        accepted = accepted_labels(inputs.source, read_real_labels(real_labels, IMAGENET_CLASSES))
        return Classes(match.places, None, f'{match.text}; ReaL labels of {shown(real_labels)}', accepted)
    if not valid_labels:
        return Classes(match.places, None, match.text)
    kept = np.sort(match.places[list(inputs.source.present)])
    text = f'{match.text}; outputs of {len(kept)} classes compared'
    return Classes(np.searchsorted(kept, match.places).astype(np.int32), kept, text)


def choose_test_set(arguments: EvaluateArguments, inputs: Inputs, classes: Classes) -> TestSetName | None:
    """Return the test set whose published accuracies apply; None: the tag's own.

    Raises:
        TrainingError: the data or the flags are not those of the test set.
    """
    name = arguments.published
    if name is None:
        whole = inputs.source.num_classes == inputs.model.num_classes
        return 'imagenet-real' if arguments.real_labels is not None and whole else None
    wanted, count = TEST_SETS[name], len(inputs.source) - classes.unlabelled
    compared = inputs.model.num_classes if classes.outputs is None else len(classes.outputs)
    what = f'--published {name}: '
    if (name == 'imagenet-real') != (arguments.real_labels is not None):
        raise TrainingError(f'{what}imagenet-real, and no other test set, needs --real-labels')
    if inputs.source.num_classes != wanted.classes:
        raise TrainingError(f'{what}has {wanted.classes} classes; {inputs.source.name} has {inputs.source.num_classes}')
    if compared != wanted.classes:
        hint = '; give --valid-labels' if not arguments.valid_labels else ''
        raise TrainingError(f'{what}compares {wanted.classes} outputs, not {compared}{hint}')
    if count > wanted.images:
        raise TrainingError(f'{what}has {amount(wanted.images, "image")}; {inputs.source.name} has {count:,}')
    return name


def measure(inputs: Inputs, flags: InputFlags, classes: Classes, images: list[Arrays] | None = None) -> EvalResult:
    """Evaluate the model on all images, on all devices and hosts, and show progress.

    Args:
        inputs, flags, classes: the model and the data.
        images: a list that gets the values of single images.

    Raises:
        DataError: the data cannot be read.
        TrainingError: there is no image.
    """
    return measure_all(
        inputs,
        flags,
        classes.outputs,
        functools.partial(make_eval_step, each_image=images is not None),
        evaluate,
        lambda step: with_accepted(with_labels(step, classes.labels), classes.accepted),
        images=images,
    )


def print_multilabel(arguments: EvaluateArguments, inputs: Inputs) -> None:
    """Evaluate a model on images with any number of classes, and print the metrics over the classes of the data.

    Raises:
        DataError: the data cannot be read, or its classes are not the model's.
        TrainingError: the model has no classifier, there is no image, or a flag is for one class per image.
    """
    names = ('check', 'valid_labels', 'real_labels', 'published', 'results')
    given = [flag_name(name) for name in names if getattr(arguments, name)]
    if given:
        raise TrainingError(f'{", ".join(given)}: for one class per image, not for --task multilabel')
    if not inputs.model.num_classes:
        raise TrainingError(f'{inputs.name}: has no classifier')
    match = match_inputs(inputs)
    threshold = arguments.multilabel_threshold
    threshold = inputs.multilabel_threshold if threshold is None else threshold
    source = inputs.source
    images: list[Arrays] = []
    result = measure_all(
        inputs,
        arguments.flags,
        match.places,
        make_multilabel_eval_step,
        evaluate_multilabel,
        threshold=threshold,
        images=images,
    )
    check_total(source, len(source) - result.count, arguments.flags.max_unreadable)
    if jax.process_index() != 0:
        return
    if arguments.json:
        precisions = dict(zip(source.class_names, result.average_precisions.tolist(), strict=True))
        document = {
            'model': inputs.name,
            'data': source.name,
            'pictures': len(source),
            'classes': match.text,
            'data_config': inputs.data_config,
            'threshold': threshold,
            **result.metrics(),
            'average_precisions': precisions,
        }
        print(json.dumps(document, indent=2))
    else:
        skipped = len(source) - result.count
        lines = [
            f'{inputs.name} on {source.name}: {amount(result.count, "image")}'
            + (f'; not counted: {amount(skipped, "unreadable image")}' if skipped else ''),
            f'images    {describe_images(inputs.data_config)}',
            f'classes   {match.text}',
            *(f'{METRICS[name]:10}{100 * value:.3f} %' for name, value in result.metrics().items() if name in METRICS),
            f'loss      {result.loss:.4f}',
        ]
        print('\n'.join(lines))
    if arguments.report is not None:
        write_multilabel_report(arguments.report, inputs, result, images, threshold)
        if not arguments.json:
            print(f'report    {arguments.report}')


def published_for(inputs: Inputs, test_set: TestSetName | None = None) -> PublishedAccuracy | None:
    """Return the published accuracy of these weights at this size and crop, or None.

    Args:
        inputs: the model and the data.
        test_set: as `choose_test_set` returns it; None: the tag's own, which has all classes of the model.
    """
    row = inputs.model.pretrained_cfg
    if not inputs.named or row is None:
        return None
    if test_set is None and inputs.source.num_classes != inputs.model.num_classes:
        return None
    if inputs.data_config not in (resolve_data_config(row), resolve_data_config(row, use_test_size=True)):
        return None
    return next((a for a in row.published(test_set) if inputs.data_config['input_size'][1:] == (a.size, a.size)), None)


def figure(result: EvalResult, share: float, published: float | None) -> Figure:
    """Compare a share of the images of `result` with the published accuracy, which is in percent."""
    error = 100 * result.standard_error(share)
    if published is None:
        return Figure(100 * share, error, None, None)
    distance = (100 * share - published) / (100 * result.standard_error(published / 100))
    return Figure(100 * share, error, published, distance)


def _nothing_to_check(inputs: Inputs, test_set: TestSetName | None) -> str:
    """Return the message that says why --check has no published accuracy, and which flags would have one."""
    row, source = inputs.model.pretrained_cfg, inputs.source
    what = f'--check: nothing is published for {inputs.name}' + (f' on {test_set}' if test_set else '')
    if not inputs.named or row is None or not row.published(test_set):
        return f'{what}; give a timm tag with published accuracies'
    if test_set is None and source.num_classes != inputs.model.num_classes:
        classes = f'{source.num_classes} of its {inputs.model.num_classes} classes'
        return f'{what} on {classes}; for ImageNet-A, ImageNet-R and others give --published'
    size, test = row.input_size[1], row.test_input_size and row.test_input_size[1]
    published = [
        f'{a.top1} % at {a.size} pixels' + {size: ' by default', test: ' with --test-size'}.get(a.size, '')
        for a in row.published(test_set)
    ]
    return f'{what} at {describe_images(inputs.data_config)}; published: {", ".join(published)}'


def _skipped(inputs: Inputs, classes: Classes, result: EvalResult) -> int:
    """Return the number of unreadable images."""
    return len(inputs.source) - classes.unlabelled - result.count


def _as_text(
    inputs: Inputs, classes: Classes, result: EvalResult, top1: Figure, top5: Figure, test_set: TestSetName | None
) -> str:
    skipped = _skipped(inputs, classes, result)
    return '\n'.join(
        [
            f'{inputs.name} on {inputs.source.name}: {amount(result.count, "image")}'
            + (f'; not counted: {amount(classes.unlabelled, "image")} without a label' if classes.unlabelled else '')
            + (f'; not counted: {amount(skipped, "unreadable image")}' if skipped else ''),
            f'images    {describe_images(inputs.data_config)}',
            f'classes   {classes.text}',
            f'top-1     {top1}',
            f'top-5     {top5}',
            f'loss      {result.loss:.4f}',
            *([f'published {TEST_SETS[test_set].title}, in {TEST_SETS[test_set].results} of timm'] if test_set else []),
        ]
    )


def _as_json(
    inputs: Inputs, classes: Classes, result: EvalResult, top1: Figure, top5: Figure, test_set: TestSetName | None
) -> str:
    document = {
        'model': inputs.name,
        'data': inputs.source.name,
        'pictures': len(inputs.source),
        'count': result.count,
        'classes': classes.text,
        'data_config': inputs.data_config,
        'published': test_set,
        'loss': result.loss,
        'top1': dataclasses.asdict(top1),
        'top5': dataclasses.asdict(top5),
    }
    return json.dumps(document, indent=2)
