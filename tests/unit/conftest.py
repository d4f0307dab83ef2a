"""Fixtures of the unit tests."""

from tests.sd3_fixture import policy, sd3_folder

__all__ = ["policy", "sd3_folder"]
