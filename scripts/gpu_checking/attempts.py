"""What fails is a row of its table, so that the other rows are measured nevertheless."""

from collections.abc import Iterable, Iterator

from benchmarking.processes import failure

from gpu_checking.records import Finding


def attempt(group: str, name: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """Yield findings; if making them fails, yield a row that says why.

    Running out of memory is not a fault: a GPU may be too small.

    Args:
        group, name: of that row.
        findings: made while they are iterated over.
    """
    try:
        yield from findings
    except Exception as error:  # of any library
        message, out_of_memory = failure(error)
        yield Finding(group, name, passed=None if out_of_memory else False, note=message)
