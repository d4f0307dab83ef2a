"""Tests; a package so that they can share what is in `tests.tiny`."""
