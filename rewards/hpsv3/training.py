"""HPSv3 in training: the whole network on the images of a prepared preference set."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from flowrl.base.empty_module import fill
from flowrl.core.seeds import derive, global_seed
from rewards.data.store import PreferenceStore
from rewards.hpsv3 import layout
from rewards.hpsv3.model import ChatBatch, HPSv3Model, new_head, tokenize
from rewards.hpsv3.preprocess import PatchSpec, patchify
from rewards.hpsv3.template import REWARD_TOKEN


class HPSv3Training:
    """An HPSv3 network with a fresh head, of which all learns but the word embeddings, save the reward token's.

    That is the published choice (arXiv 2508.03789). Raises CheckpointError when the folder cannot be loaded, or has no
    language head to carry along.
    """

    head_prefixes: tuple[str, ...] = ("rm_head.",)
    no_decay: tuple[str, ...] = ("embed_tokens.",)  # only one row of it learns, and the others must stay
    score_bias: str = "rm_head.5.bias"

    def __init__(self, folder: Path, *, seed: int) -> None:
        stored = layout.open_folder(folder)
        model, tokenizer, spec = stored.model, stored.tokenizer, stored.spec
        weights = ((name, tensor.clone()) for name, tensor in stored.read_weights(torch.float32))
        fill(model, weights, torch.device("cpu"))
        with global_seed(derive(seed, "head")):
            model.rm_head = new_head(model.backbone.config.text_config.hidden_size)
        model.requires_grad_(True)
        words = model.backbone.get_input_embeddings().weight
        learns = torch.zeros(len(words), 1)
        learns[tokenizer.convert_tokens_to_ids(REWARD_TOKEN)] = 1
        words.register_hook(lambda grad: grad * learns.to(grad))
        self.module: torch.nn.Module = model
        self.model: HPSv3Model = model
        self.tokenizer: PreTrainedTokenizerBase = tokenizer
        self.spec: PatchSpec = spec
        self._lm_head = layout.load_lm_head(folder)  # now, as the folder may be gone when the training ends

    def inputs(
        self, store: PreferenceStore, samples: torch.Tensor, seeds: torch.Tensor, device: torch.device
    ) -> tuple[ChatBatch, torch.Tensor, torch.Tensor]:
        """The chats, patches and grid of samples [B]; no noise is drawn."""
        pixels = store.tensors("pixels", samples).to(device)
        patches, grid = patchify(pixels, self.spec)
        chats = tokenize(self.tokenizer, store.texts(samples), self.spec.num_tokens(*pixels.shape[2:]))
        return chats.to(device), patches, grid

    def save(
        self, folder: Path, state: dict[str, torch.Tensor], *, dtype: torch.dtype, notes: str, whole: bool
    ) -> None:
        """Write an HPSv3 folder in the published layout, with the language head that it started with."""
        layout.save(
            self.model,
            self.tokenizer,
            folder,
            area=self.spec.area,
            lm_head=self._lm_head,
            dtype=dtype,
            state=state,
        )
        (folder / "README.md").write_text(f"# HPSv3\n\n{notes}\n", encoding="utf-8")
