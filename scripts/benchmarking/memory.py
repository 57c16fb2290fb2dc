"""How much memory this process has held at most."""

import resource
import sys
from pathlib import Path


def peak_resident() -> int:
    """Bytes. On Linux of this program alone: getrusage's figure there begins with that of the parent process."""
    status = Path('/proc/self/status')
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith('VmHWM'))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024
