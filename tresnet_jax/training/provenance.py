"""What a run depends on besides its configuration: examples, classes, splits, devices and versions.

A run resumes only with what it began with. Otherwise it is refused with a message that states the difference or, if
changes are accepted, it continues and records them in provenance.json.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from tresnet_jax.checkpoints.run import stored_label_names
from tresnet_jax.data.sources import Source
from tresnet_jax.errors import TrainingError, amount, reason, shown
from tresnet_jax.files import read_json, save_text, sha256
from tresnet_jax.options import as_flag, flag_name
from tresnet_jax.training.config import TrainConfig
from tresnet_jax.training.devices import differing_item, differing_process
from tresnet_jax.training.embedding import digest
from tresnet_jax.training.run_config import ACCEPTABLE, CHANGEABLE, RESOLVED, changed_options
from tresnet_jax.version import __version__

PROVENANCE_FILE = 'provenance.json'
LIBRARIES = ('jax', 'flax', 'optax')
FILES = ('class_stats', 'semantic_tree')  # options whose files the loss depends on
# Options that may differ between the processes of a run: for their own decoding, for the first process alone, and paths
# of files whose content is compared.
OF_A_PROCESS = ('threads', 'workers', 'data_dir', 'checkpoint', 'class_map', 'kd_checkpoint', *FILES)
OF_A_PROCESS += ('log_wandb', 'wandb_project', 'wandb_tags', 'wandb_resume_id')


@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of a split.

    Attributes:
        name: the data set and the split.
        count: number of examples.
        classes: number of classes that have examples in the whole split.
        digests: see `Source.fingerprint`.
    """

    name: str
    count: int
    classes: int
    digests: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What a run depends on.

    Attributes:
        train, val: the examples of the two splits.
        class_names: in the order of the labels.
        devices: over all processes.
        versions: of this library and of those it computes with.
        resolved: names of the options that were not given, but set to the values of the data or the model.
        changes: the changes of resumed runs: {'step': number of steps done, 'changes': descriptions}.
        teacher: name, origin and SHA-256 of the weights of the teacher, if there is one.
        files: SHA-256 of the files of the options FILES that are given.
    """

    train: Examples
    val: Examples
    class_names: tuple[str, ...]
    devices: int
    versions: dict[str, str]
    resolved: tuple[str, ...] = ()
    changes: tuple[dict[str, Any], ...] = ()
    teacher: dict[str, str] = dataclasses.field(default_factory=dict)
    files: dict[str, str] = dataclasses.field(default_factory=dict)


def provenance(
    config: TrainConfig, train: Source, val: Source, devices: int, teacher: dict[str, str] | None = None
) -> Provenance:
    """Return what a run depends on now.

    Args:
        config: the configuration, before it is resolved.
        train, val: the two splits.
        devices: number of devices of this process.
        teacher: as in `Provenance`; None: there is no teacher.

    Raises:
        TrainingError: a file of the loss cannot be read.
    """
    versions = {'tresnet_jax': __version__} | {name: importlib.metadata.version(name) for name in LIBRARIES}
    resolved = tuple(name for name in RESOLVED if getattr(config, name) is None)
    given = {name: path for name in FILES if (path := getattr(config, name)) is not None}
    return Provenance(
        train=_examples(train),
        val=_examples(val),
        class_names=train.class_names,
        devices=devices * jax.process_count(),
        versions=versions,
        resolved=resolved,
        teacher=teacher or {},
        files={name: _digest(path) for name, path in given.items() if path.is_file()},  # the loss reports a missing one
    )


def _digest(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise TrainingError(f'{shown(path)}: cannot be read: {reason(error)}') from error


def check_processes(now: Provenance, config: TrainConfig, workdir: Path, latest: int | None) -> None:
    """Check that all processes have the same options, data, teacher and checkpoint. Every process calls this.

    Args:
        now: what the run depends on.
        config: its configuration.
        workdir: folder of the run.
        latest: the step of its latest checkpoint; None if there is none.

    Raises:
        TrainingError: they differ, in all processes.
    """
    options = {name: value for name, value in dataclasses.asdict(config).items() if name not in OF_A_PROCESS}
    if (found := differing_item([_hash(value) for value in options.values()])) is not None:
        process, (name, value) = found[0], [*options.items()][found[1]]
        raise TrainingError(
            f'{as_flag(name, value)}: process {process} has another value than the first process; all processes need '
            'the same options'
        )
    if (other := differing_process(_hash(latest))) is not None:
        raise TrainingError(
            f'{workdir}: process {other} finds another latest checkpoint than the first process; all hosts need the '
            'same folder, on a file system that they share'
        )
    other = differing_process(_hash([dataclasses.asdict(now.train), dataclasses.asdict(now.val), now.class_names]))
    if other is not None:
        raise TrainingError(
            f'{now.train.name}: process {other} reads other training or evaluation images than the first process; all '
            'hosts need the same files, with the same names and sizes'
        )
    if now.teacher and (other := differing_process(bytes.fromhex(now.teacher['sha256']))) is not None:
        raise TrainingError(f'{now.teacher["name"]}: process {other} has another teacher than the first process')
    if (other := differing_process(_hash(now.files))) is not None:
        flags = ' or '.join(map(flag_name, FILES))
        raise TrainingError(f'{flags}: the file of process {other} has other content than that of the first process')


def check_weights(variables: Any, data_config: dict[str, Any], name: str) -> None:
    """Check that all processes start from the same weights and prepare images alike. Every process calls this.

    Args:
        variables: parameters and statistics.
        data_config: how images are prepared, which a file of weights may state.
        name: the model.

    Raises:
        TrainingError: they differ, in all processes.
    """
    if jax.process_count() == 1:
        return
    if (other := differing_process(bytes.fromhex(digest(variables)))) is not None:
        raise TrainingError(
            f'{name}: process {other} starts from other weights than the first process; all hosts need the same files '
            'and the same kind of devices'
        )
    if (other := differing_process(_hash(data_config))) is not None:
        raise TrainingError(
            f'{name}: the weights of process {other} state other images than those of the first process; all hosts '
            'need the same files'
        )


def _hash(value: Any) -> bytes:
    """Return a digest of a value of JSON; other values count as their text."""
    return hashlib.blake2b(json.dumps(value, default=str).encode(), digest_size=16).digest()


def _examples(source: Source) -> Examples:
    return Examples(source.name, len(source), len(source.present), source.fingerprint())


def save_provenance(value: Provenance, workdir: Path) -> None:
    """Write provenance.json to the folder of a run.

    Raises:
        ConversionError: the file cannot be written.
    """
    # Names that are not UTF-8 hold surrogates, which JSON escapes.
    save_text(workdir / PROVENANCE_FILE, json.dumps(dataclasses.asdict(value), indent=1) + '\n')


def load_provenance(workdir: Path) -> Provenance | None:
    """Read provenance.json from the folder of a run; None if it has none, as older runs.

    Raises:
        TrainingError: the file cannot be read.
    """
    path = workdir / PROVENANCE_FILE
    if not path.exists():
        return None
    try:
        values = read_json(path)
        return Provenance(
            **{name: _load_examples(values[name]) for name in ('train', 'val')},
            class_names=tuple(map(str, values['class_names'])),
            devices=int(values['devices']),
            versions=_load_texts(values['versions']),
            resolved=tuple(map(str, values['resolved'])),
            changes=tuple(map(dict, values['changes'])),
            teacher=_load_texts(values.get('teacher', {})),
            files=_load_texts(values.get('files', {})),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TrainingError(
            f'{path}: cannot be read ({reason(error)}); without the file, a run resumes without comparing its data'
        ) from error


def _load_examples(values: Any) -> Examples:
    digests = _load_texts(values['digests'])
    return Examples(str(values['name']), int(values['count']), int(values['classes']), digests)


def _load_texts(values: Any) -> dict[str, str]:
    return {str(name): str(value) for name, value in values.items()}


def stored_classes(workdir: Path) -> tuple[str, ...] | None:
    """Return the classes of the data of a run, in the order of the labels; None if they are unknown.

    Raises:
        TrainingError, ConversionError: a file of the run cannot be read.
    """
    before = load_provenance(workdir)
    return before.class_names if before else stored_label_names(workdir)


def compare(
    now: Provenance, config: TrainConfig, saved: TrainConfig, workdir: Path, step: int, accept_changes: bool
) -> tuple[Provenance, list[str]]:
    """Compare a run that resumes with what it began with.

    Args:
        now: what it has now.
        config: its configuration now.
        saved: its configuration in config.json.
        workdir: folder of the run.
        step: number of steps done.
        accept_changes: continue even if something differs.

    Returns:
        `now` with a record of the changes, and the lines to log about them. Versions of libraries may change.

    Raises:
        TrainingError: something differs and changes are not accepted, an option differs that may not change, or
            provenance.json cannot be read.
        ConversionError: as `stored_classes`.
    """
    before = load_provenance(workdir)
    fixed = changed_options(saved, config, (*CHANGEABLE, *ACCEPTABLE))
    if fixed:
        flags = ', '.join(as_flag(name, getattr(saved, name)) for name in fixed)
        raise TrainingError(f'{workdir} holds a run with {flags}; resume it with its own configuration')
    found = [
        f'{as_flag(name, getattr(config, name))} instead of {as_flag(name, getattr(saved, name))}'
        for name in changed_options(saved, config, CHANGEABLE)
    ]
    if before:
        found += _of_examples('training', before.train, now.train)
        found += _of_examples('evaluation', before.val, now.val)
        if before.teacher.get('sha256') != now.teacher.get('sha256'):
            found.append(f'the teacher is {_of_teacher(now)} instead of {_of_teacher(before)}')
        others = [name for name in FILES if name in before.files and before.files[name] != now.files.get(name)]
        for name in others:
            if (file := getattr(config, name)) is not None:  # else the option has changed
                what = 'has other content' if name in now.files else 'is gone'
                found.append(f'the file of {as_flag(name, file)} {what}')
    found += _of_classes(stored_classes(workdir), now.class_names)
    if before and not config.sync_bn and before.devices != now.devices:
        found.append(f'{amount(now.devices, "device")} instead of {before.devices}, which matters with --no-sync-bn')
    if found and not accept_changes:
        raise TrainingError(
            f'{workdir}: the run began with something else: {"; ".join(found)}. Restore what it began with, or accept '
            'the changes with --accept-changes'
        )
    remarks = [f'accepted: {change}' for change in found]
    if before is None:
        return now, [*remarks, f'{workdir} did not record the data that the run began with, so it cannot be compared']
    versions = [
        f'{name} {version} instead of {before.versions[name]}'
        for name, version in now.versions.items()
        if before.versions.get(name, version) != version
    ]
    if versions:
        remarks.append(f'{", ".join(versions)}: results may differ by rounding')
    record = ({'step': step, 'changes': remarks},) if remarks else ()
    return dataclasses.replace(now, resolved=before.resolved, changes=before.changes + record), remarks


def _of_examples(what: str, before: Examples, now: Examples) -> Iterator[str]:
    if before.name != now.name:
        yield f'the {what} images are those of {shown(now.name)} instead of {shown(before.name)}'
    if before.count != now.count:
        yield f'{amount(now.count, f"{what} image")} instead of {before.count:,}'
    if before.classes != now.classes:
        yield f'{amount(now.classes, "class", "classes")} with {what} images instead of {before.classes:,}'
    parts = before.digests.keys() & now.digests.keys()
    other = sorted(part for part in parts if before.digests[part] != now.digests[part])
    if before.count == now.count and other:
        yield f'other {" and ".join(other)} of the {what} images, or another order'


def _of_teacher(value: Provenance) -> str:
    name, weights, digest = (value.teacher.get(key, '') for key in ('name', 'weights', 'sha256'))
    return f'{shown(name)} ({shown(weights)}, SHA-256 {digest[:12]})' if name else 'none'


def _of_classes(before: Sequence[str] | None, now: Sequence[str]) -> Iterator[str]:
    if before is None:
        return
    new, missing = ([name for name in a if name not in {*b}] for a, b in ((now, before), (before, now)))
    for names, what in ((new, 'new'), (missing, 'missing')):
        if names:
            more = f' and {len(names) - 5} more' if len(names) > 5 else ''
            yield f'{what} classes: {", ".join(map(shown, names[:5]))}{more}'
    if not new and not missing and tuple(before) != tuple(now):
        place = next(i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b)
        yield f'another order of the classes: class {place} is {shown(now[place])} instead of {shown(before[place])}'
