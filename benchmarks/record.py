"""What every record of a benchmark says of how it came about."""

import datetime
import importlib.metadata
import importlib.util
import os
import platform
import sys
from typing import Any


def about(*packages: str) -> dict[str, Any]:
    """The command, the day, the cores, and the versions of Python and of those packages that are installed."""
    installed = (name for name in packages if importlib.util.find_spec(name))
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in installed},
        },
        "cores": os.cpu_count(),
    }
