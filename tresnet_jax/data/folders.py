"""Images in class folders: DIR/train/cat/1.jpg and DIR/val/cat/2.jpg, or DIR/cat/1.jpg without splits."""

import collections
import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from tresnet_jax.data.class_matching import normal_name
from tresnet_jax.data.file_source import FileSource, class_order, labels_of, make_source, share
from tresnet_jax.data.splits import Split, choose_drawn, choose_split, split_kind
from tresnet_jax.data.walk import (
    describe_passed_over,
    folder_identity,
    has_images,
    report_passed_over,
    subfolders,
    walk,
)
from tresnet_jax.errors import DataError, shown

MOST_SPLITS = 12  # more folders than this are classes
LISTED = 5  # names in a message
CSV = 'list the images and their labels in a CSV file: --data csv:FILE'

logger = logging.getLogger(__name__)


def open_folder(
    root: Path,
    split: str | None,
    where: str,
    val_fraction: float,
    *,
    class_names: Sequence[str] | None = None,
    for_evaluation: bool = False,
    unlabelled: bool = False,
) -> FileSource:
    """Open one split of a folder. The classes are the subfolders of the split, with images at any depth.

    `find_splits` decides which folders are splits. Any other folder of class folders is a split if `split` names it.
    If there are no splits, `root` contains the classes, and a share of each class, drawn with a fixed seed, is the
    split 'validation'. The classes are those of the training split, in timm's natural order.

    Args:
        root: the folder.
        split: as in `choose_split`, or the path of a folder below `root`; '.' is `root` itself.
        where: the data set, for errors.
        val_fraction: the share of each class that is for validation if the folder has no splits.
        class_names: the names of the labels, as a run has stored them. None: those of the training split.
        for_evaluation: a folder without splits is opened whole, and may have a single class.
        unlabelled: also accept images without class folders; their label is 0.

    Raises:
        DataError: the folder or the split does not exist, its structure can be read in two ways, there are fewer than
            two classes, a class has no images, or the split has a class that the class names lack.
    """
    if not root.is_dir():
        raise DataError(f'{where}: the folder {shown(root)} does not exist')
    splits, chosen = _choose(root, split, where, for_evaluation, unlabelled)
    base = root / chosen.name if splits else root
    folders, found = subfolders(base), walk(base)
    if unlabelled and not folders:
        if not found.images:
            raise DataError(f'{where}: no images in {shown(base)}')
        report_passed_over(where, found.passed_over)
        source = make_source(where, chosen, ('',), base, [found.images], [0])
        return source if splits else dataclasses.replace(source, name=shown(where))
    _check_folders(base, folders, where)
    # The order of the files depends on the names of the folders alone, and not on the order of the labels.
    groups = _by_folder(folders, found.images)
    if class_names is None:
        train = next((name for name in splits if split_kind(name) == 'train'), chosen.name)
        own = train == chosen.name or split_kind(chosen.name) == 'train'
        class_names = class_order(folders if own else subfolders(root / train))
    else:
        own = False
    if len(class_names) < 2 and not for_evaluation:
        inner = shown(base / folders[0])
        raise DataError(
            f'{where}: only one class folder, {inner}; expected at least two. If it holds the classes or the splits, '
            f'give --data folder:{inner}'
        )
    labels = labels_of(folders, class_names, chosen.name, where)
    _check_images(base, folders, groups, where, describe_passed_over(found.passed_over), partial=not own)
    if not splits and not for_evaluation:
        groups = [share(group, chosen.name == 'validation', val_fraction) for group in groups]
        if not any(groups):
            raise DataError(f'{where}: no images for {chosen.name}; val_fraction is {val_fraction}')
    source = make_source(where, chosen, class_names, base, groups, labels)
    if splits or chosen.name == 'train':  # the drawn shares are of the same files
        _report(source, folders, labels, found.passed_over, sum('/' not in image for image in found.images))
    return source


def find_splits(root: Path, where: str, *, unlabelled: bool = False) -> tuple[str, ...]:
    """Return the names of the splits of a folder; () if it contains classes.

    A split is a folder of folders of images with the name of a split, such as 'train' or 'Validation'. A folder of
    images is a class, whatever its name.

    Args:
        root: the folder.
        where: the data set, for errors.
        unlabelled: folders of images with the names of splits are splits too, if all folders are.

    Raises:
        DataError: the folders may be splits or classes, or they have the names of splits but contain no classes.
    """
    folders = subfolders(root)
    named = [name for name in folders if split_kind(name)]
    splits = [name for name in named if has_images(root / name, below=True)]
    flat = [name for name in named if name not in splits and has_images(root / name)]
    others = [name for name in folders if name not in named]
    if splits:
        if len({*map(split_kind, splits)}) == 1 and (classes := _unlike(root, splits, others)):
            if all(has_images(root / name) for name in splits):
                return ()
            raise DataError(
                f'{where}: is {_listed(splits)} a split or a class? It holds folders of images, but {_listed(classes)} '
                f'beside it hold other images; keep either splits or classes in {shown(root)}, or {CSV}'
            )
        return (*splits, *(flat if unlabelled else ()))
    others = [name for name in others if _holds_images(root / name)]
    if flat and (not others or len({*map(split_kind, flat)}) > 1):
        if unlabelled:
            return tuple(flat)
        raise DataError(
            f'{where}: {_listed(flat)} have the names of splits, but hold images without class folders; expected '
            f'{shown(root / flat[0])}/CLASS/IMAGE. To train on these images, {CSV}'
        )
    _check_not_splits(root, [*flat, *others], where)
    return ()


def _unlike(root: Path, splits: Sequence[str], others: Sequence[str]) -> list[str]:
    """Return the other folders with images that are not splits: they have none of the splits' class folders."""
    classes = {name for split in splits for name in subfolders(root / split)}
    return [
        name
        for name in others
        if has_images(root / name)
        or (has_images(root / name, below=True) and not classes.intersection(subfolders(root / name)))
    ]


def _check_not_splits(root: Path, folders: Sequence[str], where: str) -> None:
    """Raise DataError if folders without the names of splits may still be splits: 'a_train' and 'a_test'."""
    words = [{split_kind(word) for word in re.findall('[a-z]+', name.lower())} - {None} for name in folders]
    if len(folders) > 1 and all(words) and len(set.union(*words)) > 1:
        likely = True
    elif not 2 <= len(folders) <= MOST_SPLITS:
        return
    else:
        inner = [
            {name for name in subfolders(root / folder) if _holds_images(root / folder / name)}
            if not has_images(root / folder)
            else set[str]()
            for folder in folders
        ]
        likely = any(len(names) > 1 for names in inner) if len(inner) == 2 else len(set.intersection(*inner)) > 1
    if likely:
        first, second = sorted(folders, key=lambda name: 'train' not in name.lower())[:2]
        raise DataError(
            f'{where}: {_listed(folders)}: are these splits? If so, name them: --train-split {first!r} --val-split '
            f"{second!r}, or --split to evaluate. If they are classes, give --train-split '.[10%:]' --val-split "
            f"'.[:10%]', or --split . to evaluate"
        )


def _choose(
    root: Path, split: str | None, where: str, for_evaluation: bool, unlabelled: bool
) -> tuple[tuple[str, ...], Split]:
    """Return the splits of a folder and the chosen one. There are no splits if `root` contains the classes."""
    asked = (split or '').partition('[')[0]
    if asked and split_kind(asked) is None and (root / asked).is_dir():
        return (asked,), choose_split(split, [asked], where)
    splits = find_splits(root, where, unlabelled=unlabelled)
    if splits:
        try:
            return splits, choose_split(split, splits, where)
        except DataError as error:
            raise DataError(f'{error}{_without_classes(root, splits)}') from None
    return (), choose_drawn(split, where, for_evaluation=for_evaluation)


def _without_classes(root: Path, splits: Sequence[str]) -> str:
    """Return a hint about folders that have the names of splits but are not splits, for lack of class folders."""
    flat = [name for name in subfolders(root) if split_kind(name) and name not in splits and has_images(root / name)]
    return f'; {_listed(flat)} holds images without class folders: {CSV}' if flat else ''


def _holds_images(folder: Path) -> bool:
    return has_images(folder) or has_images(folder, below=True)


def _by_folder(folders: Sequence[str], images: Sequence[str]) -> list[list[str]]:
    """Return the images of each folder; those outside all of them are left out."""
    groups = collections.defaultdict(list)
    for image in images:
        groups[image.partition('/')[0]].append(image)
    return [groups[name] for name in folders]


def _check_folders(base: Path, folders: Sequence[str], where: str) -> None:
    """Raise DataError if there are no class folders, or if two of them are links to the same folder."""
    if not folders:
        hint = f'; to use images without class folders, {CSV}' if has_images(base) else ''
        raise DataError(f'{where}: no class folders in {shown(base)}; expected {shown(base)}/CLASS/IMAGE{hint}')
    first: dict[object, str] = {}
    for name in folders:
        other = first.setdefault(folder_identity(base / name), name)
        if other != name:
            raise DataError(
                f'{where}: the class folders {shown(other)} and {shown(name)} in {shown(base)} are the same'
            )


def _check_images(
    base: Path, folders: Sequence[str], groups: Sequence[Sequence[str]], where: str, passed_over: str, *, partial: bool
) -> None:
    """Raise DataError if a class has no images. A split that is not for training, `partial`, needs only one image."""
    filled = {normal_name(name) for name, group in zip(folders, groups, strict=True) if group}
    empty = [name for name in folders if normal_name(name) not in filled]
    if empty and not (partial and filled):
        names = ', '.join(shown(base / name) for name in empty[:LISTED])
        also = f'; {base.name} has {passed_over}' if passed_over else ''
        raise DataError(f'{where}: no images in {len(empty)} of {len(folders)} class folders: {names}{also}')


def _report(
    source: FileSource, folders: Sequence[str], labels: Sequence[int], passed_over: Mapping[str, int], loose: int
) -> None:
    """Log what a user would not expect: files passed over, missing classes, classes renamed."""
    report_passed_over(source.name, passed_over)
    if loose:
        logger.warning('%s: passed over %d images outside the class folders', source.name, loose)
    if len(source.present) < source.num_classes:
        logger.warning('%s: has images of %d of %d classes', source.name, len(source.present), source.num_classes)
    renamed = [
        f'{shown(name)} is {shown(source.class_names[label])}'
        for name, label in zip(folders, labels, strict=True)
        if normal_name(name) != normal_name(source.class_names[label])
    ]
    if renamed:
        logger.warning('%s: %d classes are matched by similar names: %s', source.name, len(renamed), _listed(renamed))


def _listed(names: Sequence[str]) -> str:
    return ', '.join(map(shown, names[:LISTED])) + (', ...' if len(names) > LISTED else '')
