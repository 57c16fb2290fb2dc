"""Images and labels of MS-COCO (Lin et al., arXiv:1405.0312): the classes of the objects that are annotated in them.

    DIR/annotations/instances_train2017.json    DIR/train2017/*.jpg, or DIR/images/train2017/*.jpg
    DIR/annotations/instances_val2017.json      DIR/val2017/*.jpg

Other data in this format: ``coco:FILE.json:IMAGES``, one JSON file and the folder of its images. Masks are not read, so
pycocotools is not needed.
"""

import collections
import json
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from tresnet_jax.data.class_matching import check_order, normal_name
from tresnet_jax.data.file_source import FileSource, repeated_files
from tresnet_jax.data.splits import Split, choose_drawn, choose_split, split_kind
from tresnet_jax.data.target_values import TargetKeys, target_source
from tresnet_jax.data.targets import MultiLabelSource
from tresnet_jax.errors import DataError, reason, shown

PREFIX = 'instances_'


class Instances(NamedTuple):
    """The content of a JSON file.

    Attributes:
        class_names: in the order of the file.
        files: the path of each image below its folder.
        labels: the classes of each image, ascending.
    """

    class_names: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[list[int], ...]


def open_coco(
    path: Path,
    split: str | None,
    where: str,
    val_fraction: float,
    *,
    class_names: Sequence[str] | None = None,
    for_evaluation: bool = False,
    keep_unlabelled: bool = False,
) -> MultiLabelSource:
    """Open one split. An image has the classes of its annotations, crowds and small objects included.

    Args:
        path: the folder DIR; or FILE.json:IMAGES, a file and the folder of its images, as a path from that of the file.
        split: as in `choose_split`; the year in a name counts as in 'train2017', but 'train' finds it too.
        where: the data set, for errors.
        val_fraction: for FILE.json, the share of the images that is for validation.
        class_names: the name of each class, as a run has stored them. None: those of the file, in its order.
        for_evaluation: FILE.json is opened whole.
        keep_unlabelled: keep images without annotations. They are left out otherwise, as by the authors of the
            asymmetric loss and of ML-Decoder.

    Raises:
        DataError: a file or a folder does not exist, the JSON is not of this format, or the classes differ.
    """
    drawn = None
    if match := re.fullmatch(r'(.+\.json)(?::(.+))?', str(path)):
        chosen, file, images = _one_file(Path(match[1]), match[2], split, where, for_evaluation)
        drawn = None if for_evaluation else val_fraction
    else:
        chosen, file, images = _choose(path, split, where)
    found = read_instances(file, where)
    if class_names is not None:
        check_order(found.class_names, class_names, f'{where}: {shown(file)}')
    kept = [index for index, labels in enumerate(found.labels) if labels or keep_unlabelled]
    if len(kept) < len(found.files):
        logging.getLogger(__name__).warning(
            '%s: left out %d images of %s without annotations', shown(where), len(found.files) - len(kept), shown(file)
        )
    if not kept:
        raise DataError(f'{where}: {shown(file)} has no image with annotations')
    for one, two in repeated_files(found.files, images):
        names = ' and '.join(dict.fromkeys(shown(found.files[place]) for place in (one, two)))
        raise DataError(f'{where}: {shown(file)} lists an image twice, as {names}; leave out one')

    def make(part: np.ndarray) -> FileSource:
        files = tuple(found.files[kept[index]] for index in part)
        return FileSource(shown(f'{where} {chosen.text}'), (), images, files, np.zeros(len(files), np.int32), ())

    source = target_source(
        [found.labels[index] for index in kept],
        chosen,
        TargetKeys((), 'indices'),
        class_names=found.class_names,
        train=None,
        drawn=drawn,
        describe=lambda index: found.files[kept[index]],
        make=make,
    )
    if not Path(source.describe(0)).is_file():
        raise DataError(f'{where}: the image {shown(source.describe(0))} does not exist')
    return source


def read_instances(file: Path, where: str) -> Instances:
    """Read a JSON file of instances.

    Raises:
        DataError: it cannot be read, or is not of this format: an identity repeats or is unknown, a path is not below
            the folder of the images, or a class has no name of its own.
    """
    try:
        document: Any = json.loads(file.read_text(encoding='utf-8'))
        names = {each['id']: normal_name(each['name']) for each in document['categories']}
        files = {each['id']: each['file_name'] for each in document['images']}
        pairs = [(each['image_id'], each['category_id']) for each in document['annotations']]
        unknown = next((pair for pair in pairs if pair[0] not in files or pair[1] not in names), None)
        counts = [len(document[key]) for key in ('categories', 'images')]
    except OSError as error:
        raise DataError(f'{where}: {shown(file)} cannot be read: {reason(error)}') from error
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{where}: {shown(file)} is not a file of COCO's instances, with images, annotations and categories: "
            f'{reason(error)}'
        ) from error
    what = f'{where}: {shown(file)}'
    if counts != [len(names), len(files)] or not names or len({*names.values()}) < len(names):
        raise DataError(f'{what}: expected categories with different ids and names, and images with different ids')
    if unknown is not None:
        image, category = (shown(str(each)) for each in unknown)
        raise DataError(f'{what}: an annotation is of image {image} and category {category}, which are not in it')
    for name in files.values():
        if not isinstance(name, str) or not name or '\0' in name or PurePosixPath(name).is_absolute():
            raise DataError(f'{what}: {shown(str(name))} is not a path below the folder of the images')
        if '..' in PurePosixPath(name).parts:
            raise DataError(f'{what}: {shown(name)} leaves the folder of the images')
    places = {category: place for place, category in enumerate(names)}
    labels = collections.defaultdict(set)
    for image, category in pairs:
        labels[image].add(places[category])
    return Instances(
        tuple(names.values()), tuple(files.values()), tuple(sorted(labels.get(image, ())) for image in files)
    )


def _choose(folder: Path, split: str | None, where: str) -> tuple[Split, Path, Path]:
    """Return the split, its JSON file and the folder of its images."""
    annotations = folder / 'annotations'
    if not annotations.is_dir():
        raise DataError(f'{where}: has no folder {shown(annotations)} with {PREFIX}*.json')
    names = sorted(file.stem.removeprefix(PREFIX) for file in annotations.glob(f'{PREFIX}*.json'))
    # 'train' finds 'train2017' if there is no other year.
    kinds = {name: split_kind(re.sub(r'\d+$', '', name)) or name for name in names}
    asked = split and re.sub(r'\[.*', '', split)
    if asked in names:
        chosen = choose_split(split, names, where)
        name = chosen.name
    else:
        several = [name for name, count in collections.Counter(kinds.values()).items() if count > 1]
        chosen = choose_split(split, list(dict.fromkeys(kinds.values())), where)
        if chosen.name in several:
            both = ' and '.join(shown(name) for name, kind in kinds.items() if kind == chosen.name)
            raise DataError(
                f'{where}: {both} are splits of the same kind; name one: --train-split, --val-split or --split'
            )
        name = next(name for name, kind in kinds.items() if kind == chosen.name)
    images = next((base for base in (folder / name, folder / 'images' / name) if base.is_dir()), None)
    if images is None:
        raise DataError(f'{where}: the images of {shown(name)} are not in {shown(folder / name)}')
    return chosen, annotations / f'{PREFIX}{name}.json', images


def _one_file(
    file: Path, images: str | None, split: str | None, where: str, for_evaluation: bool
) -> tuple[Split, Path, Path]:
    """Return the split of FILE.json:IMAGES, the file and the folder of the images."""
    if images is None:
        raise DataError(f'{where}: where are its images? give coco:FILE.json:IMAGES')
    chosen = choose_drawn(split, where, for_evaluation=for_evaluation)
    folder = file.parent / os.path.expanduser(images)
    if not folder.is_dir():
        raise DataError(f'{where}: the folder {shown(folder)} does not exist')
    return chosen, file, folder
