"""Keeping count of the pictures that cannot be read."""

import logging
import math
from pathlib import Path
from typing import Any

from tresnet_jax.training.errors import DataError
from tresnet_jax.training.sources import Source


class Unreadable:
    """Takes what batches tell of unreadable pictures; names each once in a log file; stops where there are too many.

    It works in the process that takes the batches, whoever decoded them, so it counts what this process has met.

    Args:
        source: what the pictures are from.
        share: the largest share of the source's pictures that may be unreadable.
        log: a file, made when it is needed, to which a line a picture is added that is not there yet.
    """

    def __init__(self, source: Source, share: float, log: Path | None):
        self.source, self.share, self.log = source, share, log
        self.allowed = math.floor(share * len(source) + 1e-6)
        self.known: dict[int, str] = {}

    def check(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Remove 'wanted' and 'problem' from a batch, and take note.

        Raises:
            DataError: more than the share is unreadable.
        """
        wanted, problems = batch.pop('wanted'), batch.pop('problem')
        new = {int(i): str(p) for i, p in zip(wanted, problems, strict=True) if p and int(i) not in self.known}
        if new:
            self._note(new)
        return batch

    def _note(self, new: dict[int, str]) -> None:
        first = not self.known
        self.known |= new
        lines = [f'{self.source.describe(index)}: {problem}' for index, problem in new.items()]
        if self.log is not None:
            there = set(self.log.read_text(encoding='utf-8').splitlines()) if self.log.exists() else set()
            with self.log.open('a', encoding='utf-8') as file:
                file.writelines(f'{line}\n' for line in lines if line not in there)
        where = '' if self.log is None else f'; all are named in {self.log}'
        if len(self.known) > self.allowed:
            raise DataError(
                f'{self.source.name}: {len(self.known)} of {len(self.source)} pictures cannot be read, more than the '
                f'share of {self.share:g} that may be (max_unreadable); the last is {lines[-1]}{where}'
            )
        if first:
            logging.getLogger(__name__).warning('a picture that cannot be read is left out: %s%s', lines[0], where)
