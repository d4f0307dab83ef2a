"""The commands, `flowrl VERB ...`: one file for each family. Nothing heavy is imported before a verb runs."""

from flowrl.cli.main import main

__all__ = ["main"]
