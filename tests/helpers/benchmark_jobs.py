"""Benchmark jobs in the test's own process."""

import json

import pytest
from benchmarking import command, jobs, measures


def run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run jobs in this process; arguments and results still pass through JSON."""

    def run(job, arguments, threads, environment):
        return json.loads(json.dumps(getattr(jobs, job)(**json.loads(json.dumps(arguments)))))

    for module in (command, measures):
        monkeypatch.setattr(module, 'in_new_process', run)
