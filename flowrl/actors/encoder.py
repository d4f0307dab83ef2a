"""The actor that turns prompts into text conditions, once each."""

from __future__ import annotations

from flowrl.model_spec import ModelSpec
from flowrl.types import TextCondition


class Encoder:
    """Holds the text encoders, so that no other actor has to."""

    def __init__(self, model: ModelSpec) -> None:
        model.prepare_process()
        self._encoder = model.family.load_encoder(
            model.path,
            max_sequence_length=model.section.max_sequence_length,
            dtype=model.dtype,
            device=model.device,
        )

    def encode(self, text: str) -> TextCondition:
        """The condition of one text."""
        return self._encoder.encode(text)
