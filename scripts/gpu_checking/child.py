"""Run one part in this process and write its findings to a file after each: ``python -m gpu_checking.child``."""

import dataclasses
import faulthandler
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
from benchmarking.processes import failure

from gpu_checking.plan import PARTS
from gpu_checking.records import FAILED, FINISHED
from gpu_checking.sizes import sizes_of
from tresnet_jax.files import save_text


def main(part: str, settings: str, folder: str, out: str) -> None:
    """Run a part, with the arguments of `runner.run_parts`, and write {'status', 'message', 'findings'} to `out`.

    When each finding was made is printed.
    """
    if not PARTS[part].on_device:
        jax.config.update('jax_platforms', 'cpu')  # of this process alone; those that it starts have the device
    document: dict[str, Any] = {'status': '', 'message': '', 'findings': []}
    began = time.monotonic()
    try:
        for finding in PARTS[part].run(sizes_of(**json.loads(settings)), Path(folder)):
            document['findings'].append(dataclasses.asdict(finding))
            save_text(Path(out), json.dumps(document))
            print(f'{time.monotonic() - began:.1f} s  {finding.group}: {finding.name}  {finding.note}', flush=True)
        document['status'] = FINISHED
    except Exception as error:  # of any library
        document |= {'status': FAILED, 'message': failure(error)[0]}
    save_text(Path(out), json.dumps(document))


if __name__ == '__main__':
    faulthandler.enable()  # where a library crashed
    main(*sys.argv[1:])
    sys.stderr.flush()
    os._exit(0)  # libraries may wait for their threads, and the result is written
