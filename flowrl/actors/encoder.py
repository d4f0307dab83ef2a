"""The actor that turns prompts into text conditions, once each."""

from __future__ import annotations

from pathlib import Path

from flowrl.actors.turns import give_back
from flowrl.model_spec import ModelSpec
from flowrl.models.condition_cache import ConditionCache
from flowrl.protocols import PromptEncoder
from flowrl.types import TextCondition


class Encoder:
    """Holds the text encoders, so that no other actor has to.

    With a folder as `cache` it keeps conditions there, and reads them from there. Unless it `stays`, it loads the text
    encoders for what is not there yet and frees them afterwards.
    """

    def __init__(self, model: ModelSpec, cache: str = "", stays: bool = True) -> None:
        model.prepare_process()
        self._model = model
        self._stays = stays
        self._cache = _cache(model, Path(cache)) if cache else None
        self._encoders: PromptEncoder | None = self._load() if stays else None

    def prepare(self, texts: list[str]) -> int:
        """Encode those of the texts that the cache lacks; returns how many they were. Does nothing without a cache."""
        cache = self._cache
        if cache is None:
            return 0
        missing = [text for text in dict.fromkeys(texts) if text not in cache]
        if missing:
            encoders = self._encoders or self._load()
            for text in missing:
                cache.save(text, encoders.encode(text))
            del encoders
            if not self._stays:
                give_back()
        return len(missing)

    def encode(self, text: str) -> TextCondition:
        """The condition of one text."""
        if self._cache is not None:
            self.prepare([text])
            return self._cache.load(text)
        encoders = self._encoders or self._load()
        return encoders.encode(text)

    def _load(self) -> PromptEncoder:
        model = self._model
        return model.family.load_encoder(
            model.path,
            max_sequence_length=model.section.max_sequence_length,
            dtype=model.dtype,
            device=model.device,
        )


def _cache(model: ModelSpec, folder: Path) -> ConditionCache:
    family, path = model.family, model.path
    return ConditionCache(
        folder,
        encoders=family.text_encoders(path),
        text_length=family.text_length(path, model.section.max_sequence_length),
        dtype=model.dtype,
    )
