"""The fixtures that need a Stable Diffusion 3 folder; conftest files of several folders offer them."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowrl.models.sd3 import SD3Policy
from tests import tiny


@pytest.fixture(scope="session")
def sd3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny folder; built once, whichever test asks first. Read it only."""
    folder = tmp_path_factory.getbasetemp() / "tiny-sd3"
    return folder if folder.exists() else tiny.write_folder(folder)


@pytest.fixture
def policy(sd3_folder: Path) -> SD3Policy:
    """A fresh policy with an adapter that changes nothing yet."""
    return tiny.policy(sd3_folder)
