"""What libraries say while they load models, less what no reader can use: warnings about weights stay."""

from __future__ import annotations

import logging
import os


def hush_before_imports() -> None:
    """Settings that libraries read when they are imported, here and in the processes that this one starts.

    A name that the environment gives already stays as it is. Imports nothing.
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # also decides for transformers
    # Importing diffusers makes transformers speak of an optional package that no part of flowrl uses.
    logging.getLogger("transformers.utils.import_utils").setLevel(logging.ERROR)
    # Where bitsandbytes is installed peft imports it, and it asks for kernels that nothing here uses.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def hide_progress_bars() -> None:
    """No bars for the loading of each file: many actors load at once, and the console is the driver's."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
