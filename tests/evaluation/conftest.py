"""Published weights that lie beside a checkout in development; tests that need them skip where they do not."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    folder = Path(__file__).parents[3] / "shared" / "weights"
    if not folder.is_dir():
        pytest.skip("no folder of published weights beside the project")
    return folder
