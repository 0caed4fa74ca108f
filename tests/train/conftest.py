import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real data sets that the tests may use where it exists."""
    default = Path(__file__).parents[2] / ".." / "shared" / "data"
    folder = Path(os.environ.get("SHARED_DATA") or default).resolve()
    if not folder.is_dir():
        pytest.skip(f"real data is not at {folder}; set SHARED_DATA to the folder that holds it")
    return folder
