"""The pocket preference set as a prepared set, which is what the training of rewards reads.

It holds both the latents that the policy made, as a latent reward sees them in a run, and their decoded images; and
beside them what the pocket HPSv3 starts from.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import StableDiffusion3Pipeline

from flowrl.base.atomic_file import write_atomically
from flowrl.core.buckets import BucketPlan
from flowrl.core.seeds import global_seed
from flowrl.models.sd3 import SD3
from flowrl.pocket.fitting import FitPlan, FitRecord
from flowrl.pocket.preferences import TEST_MARGIN, TRAIN_MARGIN, SampleTable, SetPlan, build_table, ranked_pairs
from flowrl.pocket.scene import IMAGE_SIZE
from flowrl.pocket.vision_language import SPEC, Captioner, new_config, new_tokenizer, pretrain
from rewards.data.pairs import PairTable
from rewards.data.set_origin import check_folder, settle
from rewards.data.store import INFO, PROMPTS, TABLES, StoreInfo, save_info, save_tensors, shard_path
from rewards.hpsv3 import layout as hpsv3_layout
from rewards.hpsv3.model import HPSv3Model

CAPTIONER = "hpsv3_base"
_PER_SHARD = 1024


def draw_preferences(folder: Path, policy: Path, *, seed: int, plan: SetPlan) -> dict[str, SampleTable]:
    """Fill `folder`/train and `folder`/validation with the preference set of a policy, or go on with it; the tables.

    Samples, edited renderings and the oracle's judgement of them wait in `folder`/drawn.
    """
    pipeline = StableDiffusion3Pipeline.from_pretrained(policy, torch_dtype=torch.float32)
    tables = {}
    for part, margin in (("train", TRAIN_MARGIN), ("validation", TEST_MARGIN)):
        table = build_table(pipeline, folder / "drawn", test=part == "validation", seed=seed, plan=plan)
        write_store(folder / part, table, ranked_pairs(table, margin=margin), latent_space=SD3.latent_space(policy))
        tables[part] = table
    return tables


def make_captioner(folder: Path, *, seed: int, plan: FitPlan) -> FitRecord:
    """Fill `folder`/hpsv3_base with a small Qwen2-VL that has learned to caption renderings, in HPSv3's layout."""
    tokenizer = new_tokenizer()
    with global_seed(seed):
        captioner = Captioner(HPSv3Model(new_config(tokenizer)))
    record = pretrain(captioner, tokenizer, seed=seed, checkpoint=folder / "captions.pt", plan=plan)
    hpsv3_layout.save(
        captioner.model,
        tokenizer,
        folder / CAPTIONER,
        area=SPEC.area,
        lm_head=captioner.lm_head.weight,
        dtype=torch.float32,
    )
    return record


def write_store(folder: Path, table: SampleTable, pairs: PairTable, *, latent_space: str) -> None:
    """Fill a folder with a prepared set; one that is whole is left as it is."""
    if (folder / INFO).is_file():
        return
    settings = {"buckets": asdict(BucketPlan(image_size=IMAGE_SIZE, step=IMAGE_SIZE, max_aspect=1))}
    check_folder(folder, settings)
    settle(folder, settings, scan="")  # it was drawn, and not read
    for kind in ("samples", "conditions"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    count = len(table.prompt)
    for number, rows in enumerate(torch.arange(count).split(_PER_SHARD)):
        samples = {"latents": table.latents[rows], "pixels": table.images[rows]}
        save_tensors(shard_path(folder, "samples", number), samples)
    for number, rows in enumerate(torch.arange(len(table.prompts)).split(_PER_SHARD)):
        save_tensors(
            shard_path(folder, "conditions", number),
            {"embeds": table.text.embeds[rows], "pooled": table.text.pooled[rows]},
        )
    place = torch.arange(count)
    tables = {
        "sample_shard": place // _PER_SHARD,
        "sample_row": place % _PER_SHARD,
        "sample_prompt": table.prompt,
        "sample_shape": torch.zeros(count, dtype=torch.int64),
        **{f"pair_{name}": values for name, values in pairs.columns().items()},
    }
    save_tensors(folder / TABLES, tables)
    lines = "".join(f'"{prompt}"\n' for prompt in table.prompts)  # of letters and spaces, which JSON keeps as they are
    write_atomically(folder / PROMPTS, lines.encode())
    save_info(
        folder,
        StoreInfo(
            holds=("latents", "pixels"),
            latent_space=latent_space,
            text_length=int(table.text.embeds.shape[1]),
            encoders="pocket",
            conditions_per_shard=_PER_SHARD,
            sources=pairs.sources,
            categories=pairs.categories,
            num_samples=count,
            num_prompts=len(table.prompts),
        ),
    )
