"""What a run is said to need: counts by hand, and whether it fits."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from flowrl.base.amounts import size
from flowrl.base.embedded import embedded
from flowrl.base.errors import CheckpointError
from flowrl.cli.main import main
from flowrl.config import ConfigError, RunConfig, load
from flowrl.core.sampler import sample
from flowrl.plan.costs import costs_of
from flowrl.plan.gpus import GPUS, Gpu
from flowrl.plan.memory import RoleMemory, room
from flowrl.plan.model_sizes import UnplannedModelError
from flowrl.plan.page import page
from flowrl.plan.proposals import Proposal, proposals, room_for_more, too_large
from flowrl.plan.run_plan import RunPlan, run_plan
from flowrl.plan.traffic import trajectory_bytes
from flowrl.plan.verdict import as_json, judge
from flowrl.plan.work import step_work
from flowrl.protocols import Policy
from flowrl.types import Prompt, RolloutRequest, SamplingPlan
from tests import tiny

ROOT = Path(__file__).parents[2]
POCKET = ROOT / "configs" / "pocket" / "ditreward.yaml"


def tiny_config(folder: Path, *more: str) -> RunConfig:
    """16 groups of 4 on the tiny policy, 2 samples in a forward, 2 of 3 sampler steps trained."""
    sizes = ["rollout.prompts_per_step=16", "rollout.group_size=4", "rollout.samples_per_forward=2"]
    sizes += [
        "rewards.watch=[]",
        "eval.grid_prompts=0",
        "rollout.num_steps=3",
        "algorithm.trained_steps=all",
        f"model.image_size={tiny.IMAGE_SIZE}",
    ]
    return load(POCKET, [f"model.path={folder}", *sizes, *more])


def gpu(memory: int) -> Gpu:
    return Gpu(name="some", title="some GPU", memory=memory, flops=9e12, float32_flops=1e12)


def peaks(plan: RunPlan) -> dict[str, int]:
    return {role.role: role.peak for role in plan.roles}


def test_the_paper_s_step_is_two_updates_of_384_samples() -> None:
    work = step_work(load(ROOT / "configs" / "sd35-large" / "ditreward.yaml"))
    assert (work.samples, work.samples // work.inner_steps, work.trained_steps) == (768, 384, 9)
    assert work.forwards == 768 // 4 * 10
    assert work.losses == 768 // 4 * 9
    assert (work.rollouts, work.learners, work.scorers) == (12, 12, 4)


def test_a_local_run_has_one_of_each(sd3_folder: Path) -> None:
    work = step_work(tiny_config(sd3_folder, "placement.mode=local"))
    assert (work.rollouts, work.learners, work.scorers) == (1, 1, 1)


def test_phases_are_the_forwards_times_their_cost(sd3_folder: Path) -> None:
    plan = run_plan(tiny_config(sd3_folder, "placement.num_rollouts=4"))
    encode, rollout, score, update = plan.step.phases
    tokens = 16 * plan.costs.config.model.max_sequence_length
    assert encode.flops == 2 * plan.costs.model.text_encoder_parameters * tokens > 0
    assert rollout.flops == 16 * 2 * 3 * plan.policy.sample_flops
    assert update.flops == 16 * 2 * 2 * plan.policy.update_flops
    [reward] = plan.costs.rewards
    assert reward.cost is not None
    assert score.flops == 16 * 4 * reward.cost.flops > 0
    assert rollout.seconds(1e9) == pytest.approx(rollout.flops / 4 / 1e9)


def test_groups_are_not_split_over_actors(sd3_folder: Path) -> None:
    plan = run_plan(tiny_config(sd3_folder, "placement.num_rollouts=5"))
    rollout = plan.step.sampling
    assert rollout.seconds(1e9) == pytest.approx(rollout.flops * 4 / 16 / 1e9)  # one samples 4 of 16


def test_only_a_reward_on_images_has_them_decoded_in_a_step(sd3_folder: Path) -> None:
    latent, pixel = (
        run_plan(tiny_config(sd3_folder, f"rewards.train=[{{name: {name}}}]")) for name in ("dit_reward", "hpsv3")
    )
    assert [phase.name for phase in latent.step.phases] == ["encode", "rollout", "score", "update"]
    assert [phase.name for phase in pixel.step.phases] == ["encode", "rollout", "decode", "score", "update"]


def test_scoring_is_hidden_where_it_has_devices_of_its_own(sd3_folder: Path) -> None:
    sizes = ["placement.num_rollouts=1", "placement.num_scorers=8"]
    split, local = (run_plan(tiny_config(sd3_folder, f"placement.mode={mode}", *sizes)) for mode in ("split", "local"))
    encode, rollout, score, update = split.step.times(1e9)
    assert score.hidden == pytest.approx(score.seconds / 2)  # the last of 2 rounds of 8 scorers is waited for
    assert split.step.seconds(1e9) == pytest.approx(
        encode.seconds + rollout.seconds + score.seconds / 2 + update.seconds
    )
    assert [time.hidden for time in local.step.times(1e9)] == [0, 0, 0, 0]
    assert local.step.seconds(1e9) == pytest.approx(sum(phase.flops for phase in local.step.phases) / 1e9)


def test_slow_scoring_is_waited_for_but_for_the_sampling_beside_it(sd3_folder: Path) -> None:
    pixels = ["rewards.train=[{name: hpsv3}]", "placement.num_scorers=1"]
    encode, rollout, decode, score, update = (step := run_plan(tiny_config(sd3_folder, *pixels)).step).times(1e9)
    assert decode.seconds + score.seconds > rollout.seconds
    waited = rollout.seconds / 8 + decode.seconds + score.seconds  # 8 rounds of 2 rollouts
    expected = encode.seconds + waited + update.seconds
    assert step.seconds(1e9) == pytest.approx(expected)


def test_the_run_is_its_steps_and_evaluations(sd3_folder: Path) -> None:
    plan = run_plan(tiny_config(sd3_folder, "run.steps=7", "eval.every=3"))
    expected = 7 * plan.step.seconds(1e9) + 4 * plan.evaluation.seconds(1e9)  # at 0, 3, 6 and 7
    assert plan.seconds(1e9) == pytest.approx(expected)


def test_a_gang_of_scorers_divides_the_weights(sd3_folder: Path) -> None:
    gang, copies = (
        run_plan(tiny_config(sd3_folder, "placement.num_scorers=4", f"placement.shard_scorer={on}")).roles[-2]
        for on in ("true", "false")
    )
    whole, part = (next(one for one in role.held if "dit_reward" in one.name) for role in (copies, gang))
    assert part.size == pytest.approx(whole.size / 4, rel=0.05)  # tables of positions are whole on each


def test_strategies_that_cut_the_model_divide_the_frozen_weights(sd3_folder: Path) -> None:
    plans = {
        name: run_plan(tiny_config(sd3_folder, f"placement.learner_strategy={name}", "placement.num_learners=4"))
        for name in ("ddp", "zero2", "fsdp2", "zero3")
    }
    weights = {name: plan.roles[-1].held[0].size for name, plan in plans.items()}
    policy = plans["ddp"].policy
    cut = policy.buffer_bytes + (policy.weight_bytes - policy.buffer_bytes) // 4
    assert weights == {"ddp": policy.weight_bytes, "zero2": policy.weight_bytes, "fsdp2": cut, "zero3": cut}
    gathered = plans["zero3"].roles[-1].in_turn[0].size - plans["ddp"].roles[-1].in_turn[0].size
    assert gathered == policy.weight_bytes - policy.buffer_bytes  # without checkpointing all weights stay
    moved = {name: {one.name: one.size for one in plan.transfers} for name, plan in plans.items()}
    assert moved["ddp"]["gradients, over learners"] == 2 * 3 * policy.adapter_bytes
    assert "frozen weights by fsdp2, over learners" in moved["fsdp2"]
    assert not any("frozen" in name for name in moved["ddp"])
    updates = {name: plan.step.phases[-1].seconds(1e30) for name, plan in plans.items()}
    assert updates["ddp"] == pytest.approx(2 * 3 * policy.adapter_bytes / 4 / 25e9, rel=1e-3)
    all_of_it = sum(one.size for one in plans["zero3"].transfers if "learners" in one.name and "traj" not in one.name)
    assert updates["zero3"] == pytest.approx(all_of_it / 4 / 25e9, rel=1e-3)


def test_a_gang_waits_for_weights_where_they_take_longer_than_computing(sd3_folder: Path) -> None:
    plan = run_plan(tiny_config(sd3_folder, "placement.num_scorers=2"))
    [reward], [moved] = plan.costs.trained, [one for one in plan.transfers if "over scorers" in one.name]
    assert reward.cost is not None
    calls = 8 * -(-4 // reward.cost.samples)  # 16 groups of 4 over two
    assert moved.size == pytest.approx(calls * reward.cost.spread_bytes, rel=1e-3)  # the half that each has not, twice
    score = plan.step.scoring[0]
    assert score.seconds(1e30) == pytest.approx(moved.size / 2 / 25e9, rel=1e-3)
    assert score.seconds(1e9) == pytest.approx(score.flops / 2 / 1e9)


def held(*roles: RoleMemory) -> int:
    return sum(part.size for role in roles for part in role.held)


def test_in_one_process_all_is_held_at_once(sd3_folder: Path) -> None:
    fused, local = (
        run_plan(tiny_config(sd3_folder, f"placement.mode={mode}", "placement.shard_scorer=false"))
        for mode in ("fused", "local")
    )
    [one] = local.devices
    work = [part.size for role in local.roles for part in role.in_turn]
    assert one.peak == held(*fused.roles) + max(work) == held(*one.roles) + max(work)
    assert (fused.gpus, local.gpus) == (2 + 2, 1)


def test_the_encoder_sits_with_a_scorer(sd3_folder: Path) -> None:
    plan = run_plan(tiny_config(sd3_folder, "placement.num_scorers=3"))
    assert plan.gpus == 2 + 2 + 3
    kinds = {tuple(role.role for role in kind.roles): kind for kind in plan.devices}
    assert {roles: kind.devices for roles, kind in kinds.items()} == {
        ("encoder", "scorer"): 1,
        ("scorer",): 2,
        ("rollout",): 2,
        ("learner",): 2,
    }
    both = kinds["encoder", "scorer"]
    assert both.peak == sum(role.peak for role in both.roles) + 500 * 10**6  # the context of a second process


def test_in_turns_only_one_role_has_its_frozen_weights_on_a_shared_device(sd3_folder: Path) -> None:
    shared = ["placement.mode=colocated", "placement.num_rollouts=1", "placement.num_learners=1"]
    shared += ["placement.num_scorers=1", "data.condition_cache=c", "data.encode_ahead=4"]
    shared += ["placement.shard_scorer=false"]
    [together] = run_plan(tiny_config(sd3_folder, *shared)).devices
    [in_turn] = run_plan(tiny_config(sd3_folder, *shared, "placement.offload=true")).devices
    assert [role.role for role in in_turn.roles] == ["encoder", "rollout", "scorer", "learner"]
    encoder, rollout, scorer, learner = in_turn.roles
    assert encoder.stays == 0 < encoder.peak
    contexts = 3 * 500 * 10**6
    assert together.peak == contexts + sum(role.peak for role in together.roles)
    stays = rollout.stays + scorer.stays + learner.stays
    [reward] = (part.size for part in scorer.held)
    assert stays == held(rollout, scorer, learner) - 2 * learner.held[0].size - reward
    most = max(role.peak - role.stays for role in (encoder, rollout, scorer, learner))
    assert in_turn.peak == contexts + stays + most


def test_the_text_encoders_are_counted(sd3_folder: Path) -> None:
    encoder = run_plan(tiny_config(sd3_folder)).roles[0]
    files = sd3_folder.glob("text_encoder*/model.safetensors")
    assert encoder.role == "encoder"
    assert encoder.peak == pytest.approx(sum(file.stat().st_size for file in files), rel=0.1)  # float32, with headers


def test_a_learner_that_samples_holds_the_weights_once(sd3_folder: Path) -> None:
    split, fused = (run_plan(tiny_config(sd3_folder, f"placement.mode={mode}")) for mode in ("split", "fused"))
    assert peaks(fused)["learner that samples"] == peaks(split)["learner"]
    assert peaks(split)["rollout"] < peaks(split)["learner"]


def test_trajectories_are_as_large_as_those_that_are_sampled(sd3_folder: Path, policy: Policy) -> None:
    config = tiny_config(sd3_folder)
    [text] = tiny.conditions(sd3_folder, tiny.TEXTS[0])
    plan = SamplingPlan(kinds=("sde",) * 3, noise_level=0.7, start=0, stop=2)
    request = RolloutRequest(prompt=Prompt(id=0, text=""), seed=0, step=1, num_samples=4, plan=plan, guidance_scale=4.5)
    group = sample(policy, request, text, text, policy_version=0, samples_per_forward=2, device=torch.device("cpu"))
    expected = 16 * group.num_bytes
    assert trajectory_bytes(costs_of(config)) == pytest.approx(expected, rel=0.02)  # seeds and log-probabilities apart


def test_what_does_not_fit_is_told_and_what_is_proposed_fits(sd3_folder: Path) -> None:
    config = tiny_config(sd3_folder, "rollout.samples_per_forward=4", "placement.mode=local")
    plan = run_plan(config)
    fewer = run_plan(tiny_config(sd3_folder, "rollout.samples_per_forward=2", "placement.mode=local"))
    between = (plan.devices[0].peak + fewer.devices[0].peak) / 2
    small = gpu(int(between / 0.92))
    assert room(small) == pytest.approx(between, abs=2)
    assert too_large(plan, small) == list(plan.devices)
    *changes, larger = proposals(config, small)
    assert "rollout.samples_per_forward=2" in [one.text for one in changes]
    assert any("checkpointing" in one.text for one in changes)
    assert larger.gpu is not None
    assert not too_large(fewer, small)
    for proposal in changes:
        changed = tiny_config(sd3_folder, "rollout.samples_per_forward=4", "placement.mode=local", *proposal.overrides)
        assert not too_large(run_plan(changed), small), proposal.text


def test_fewer_gpus_than_a_run_takes_are_proposed_a_placement(sd3_folder: Path) -> None:
    config, large = tiny_config(sd3_folder), gpu(10**10)
    for number in (1, 2, 3):
        verdict = judge(config, run_plan(config), large, share=0.4, num_gpus=number)
        assert not verdict.fits
        assert verdict.proposals
        for proposal in verdict.proposals:
            assert run_plan(tiny_config(sd3_folder, *proposal.overrides)).gpus <= number, proposal.text
    assert judge(config, run_plan(config), large, share=0.4, num_gpus=6).fits


def test_room_for_more_samples_is_told(sd3_folder: Path) -> None:
    config = tiny_config(sd3_folder, "placement.mode=local", "rollout.samples_per_forward=1")
    two, four = (
        run_plan(tiny_config(sd3_folder, "placement.mode=local", f"rollout.samples_per_forward={samples}"))
        .devices[0]
        .peak
        for samples in (2, 4)
    )
    assert room_for_more(config, gpu(int((two + four) / 2 / 0.92))) == 2
    assert room_for_more(config, gpu(10**10)) == 4


def test_a_reward_that_does_not_say_what_it_takes_is_named(sd3_folder: Path) -> None:
    plan = run_plan(tiny_config(sd3_folder, "rewards.train=[{name: oracle}]"))
    verdict = judge(plan.costs.config, plan, gpu(10**10), share=0.4)
    assert "Not counted, as they do not say what they take: oracle." in page(plan, verdict)
    assert json.loads(as_json(plan, verdict))["not_counted"] == ["oracle"]


def test_the_update_is_told_with_and_without_gradient_checkpointing(sd3_folder: Path) -> None:
    plans = [run_plan(tiny_config(sd3_folder, f"model.gradient_checkpointing={on}")) for on in ("false", "true")]
    kept, again = (plan.policy for plan in plans)
    assert kept.update_rise > again.update_rise
    assert [plan.costs.with_other_checkpointing() for plan in plans] == [again, kept]
    pages = [page(plan, judge(plan.costs.config, plan, gpu(10**10), share=0.4)) for plan in plans]
    assert f"gradient_checkpointing=true the update's peak would be {size(again.update_rise)}, not" in pages[0]
    assert f"gradient_checkpointing=false the update's peak would be {size(kept.update_rise)}, not" in pages[1]


def test_a_reward_s_weights_are_counted_on_disk(sd3_folder: Path) -> None:
    folder = embedded("dit_reward")
    on_disk = {"weights of the policy, here": sd3_folder, "weights of dit_reward, here": folder}
    plan = run_plan(tiny_config(sd3_folder, f"rewards.train=[{{name: dit_reward, options: {{path: {folder}}}}}]"))
    amounts = {amount.name: amount for amount in plan.disk}
    for name, path in on_disk.items():
        files = sum(file.stat().st_size for file in path.rglob("*.safetensors"))
        assert (amounts[name].folder, amounts[name].size) == (path, files)


def test_prompts_are_counted_as_a_run_reads_them(sd3_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeff\none\u2028still one\n \ntwo\n", encoding="utf-8")
    cache = ["data.condition_cache=c", f"data.train_prompts={file}", "eval.num_prompts=5"]
    names = [amount.name for amount in run_plan(tiny_config(sd3_folder, *cache)).disk]
    assert "text conditions of up to 8 prompts" in names  # 2 to train on, 5 held out, and the empty one
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"^data\.train_prompts: .*prompts\.txt is not UTF-8 text"):
        run_plan(tiny_config(sd3_folder, *cache))


def test_an_update_that_takes_longer_than_the_timeout_is_told(sd3_folder: Path) -> None:
    plan = run_plan(tiny_config(sd3_folder, "placement.timeout_s=60"))
    update = plan.step.after[0]
    pages = [page(plan, judge(plan.costs.config, plan, gpu(10**10), share=update.seconds(1e12) / s)) for s in (59, 61)]
    said = "takes longer here than placement.timeout_s = 60 s: set placement.timeout_s=1000."
    assert [said in text for text in pages] == [False, True]


def test_proposals_give_an_update_the_time_that_it_takes(sd3_folder: Path) -> None:
    config = tiny_config(sd3_folder, "rollout.samples_per_forward=4", "placement.timeout_s=60")
    plan = run_plan(config)
    small = gpu(int((plan.devices[0].peak - 1000) / 0.92))
    slow = plan.step.after[0].seconds(1e12) / 100
    first, *_ = judge(config, plan, small, share=slow).proposals
    assert first.overrides[-1] == "placement.timeout_s=1000"
    assert "timeout" not in judge(config, plan, small, share=0.4).proposals[0].text


def test_float32_is_computed_at_the_rate_of_float32(sd3_folder: Path) -> None:
    plans = [run_plan(tiny_config(sd3_folder, f"model.dtype={dtype}")) for dtype in ("float32", "bfloat16")]
    single, half = (judge(plan.costs.config, plan, gpu(10**10), share=0.5) for plan in plans)
    assert (single.rate, half.rate) == (0.5e12, 4.5e12)
    assert "50 % of the 1 TFLOP/s of the data sheet" in page(plans[0], single)


def test_weights_that_are_half_there_are_to_come(sd3_folder: Path, tmp_path: Path) -> None:
    half = tmp_path / "sd35"
    shutil.copytree(sd3_folder, half)
    whole, torn = (run_plan(tiny_config(folder)).disk[-1] for folder in (sd3_folder, half))
    assert whole.size == torn.size
    for file in half.glob("text_encoder*/*.safetensors"):
        file.unlink()
    assert run_plan(tiny_config(half)).disk[-1].name == "weights of the policy, here"  # no text encoder is listed
    (half / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    assert run_plan(tiny_config(half)).disk[-1].name == "weights of the policy, to come"


def test_one_of_a_kind_is_said_as_one(sd3_folder: Path) -> None:
    local = ["placement.mode=local", "rollout.samples_per_forward=1"]
    pages = []
    for more in (local, ["placement.num_learners=16"]):
        plan = run_plan(tiny_config(sd3_folder, *more))
        pages.append(page(plan, judge(plan.costs.config, plan, gpu(10**10), share=0.4)))
    one, many = pages
    assert "1 learner trains on 16 groups, 16 in an inner step" in one
    assert "update, 1 sample, all activations kept" in one
    assert "16 learners train, each on 1 group, 1 in an inner step" in many
    assert "  learner, 16 of them\n" in many


def test_what_a_host_keeps_of_roles_that_wait_is_counted(sd3_folder: Path) -> None:
    shared = ["placement.mode=colocated", "placement.num_rollouts=2", "placement.offload=true"]
    plan = run_plan(tiny_config(sd3_folder, *shared))
    amounts = {amount.name: amount.size for amount in plan.host}
    assert amounts["weights of roles that wait"] == 2 * plan.policy.weight_bytes  # one of two copies on each device
    moved = {transfer.name: transfer.size for transfer in plan.transfers}
    assert moved["weights of roles in turn, off GPUs and on"] == 2 * 2 * 2 * plan.policy.weight_bytes
    [*_, update, turns] = plan.step.times(1e30)  # so fast that moving is all there is
    assert (update.phase.name, turns.phase.name) == ("update", "turns")
    assert turns.seconds == pytest.approx(2 * 2 * plan.policy.weight_bytes / 25e9)  # of each of two devices
    assert "weights of roles that wait" not in {amount.name for amount in run_plan(tiny_config(sd3_folder)).host}


def test_a_gpu_for_nothing_is_proposed_a_larger_one(sd3_folder: Path) -> None:
    [larger] = proposals(tiny_config(sd3_folder), gpu(1000))
    assert larger == Proposal(gpu=GPUS["rtx4090"])
    assert larger.text == "a GPU with 24 GB, such as RTX 4090 24 GB"


def test_a_model_of_unknown_sizes_is_named() -> None:
    config = load(POCKET, ["model.path=/nowhere/some-model"])
    with pytest.raises(CheckpointError, match=r"model\.path: /nowhere/some-model .* stable-diffusion-3\.5-large"):
        run_plan(config)


class Other:
    """A family of policies that is not Stable Diffusion 3."""


def test_a_model_of_another_family_is_not_planned(sd3_folder: Path) -> None:
    config = tiny_config(sd3_folder, "model.family=tests.unit.test_run_plan:Other")
    with pytest.raises(UnplannedModelError, match=r"model\.family: .* sd3 alone, got tests.*:Other; start the run"):
        run_plan(config)
    assert run_plan(tiny_config(sd3_folder, "model.family=flowrl.models.sd3:SD3")).gpus == 6


def test_the_vae_is_there_where_images_are_made_and_takes_a_few_at_a_time(sd3_folder: Path) -> None:
    def parts(*changes: str) -> dict[str, int]:
        scorer = run_plan(tiny_config(sd3_folder, "rollout.group_size=16", *changes)).roles[-2]
        return {part.name: part.size for part in (*scorer.held, *scorer.in_turn)}

    latent, shown = parts(), parts("eval.grid_prompts=1", "eval.samples_per_prompt=2")
    pixel = parts("rewards.train=[{name: hpsv3}]", "eval.samples_per_prompt=2")
    assert not any("VAE" in name or "decoding" in name for name in latent)
    assert shown["VAE, float32"] == pixel["VAE, float32"] > 0
    assert pixel["decoding 4 images"] == 2 * shown["decoding 2 images"] > 0  # 4 of a group of 16


def test_the_command_prints_the_plan_and_fails_where_it_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(POCKET), "--gpu", "a100"]) == 0
    assert "1,979,392 parameters, an adapter of 47 layers with 288,768" in capsys.readouterr().out
    assert main(["plan", str(POCKET), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["policy"]["num_parameters"] == 1_979_392
    assert main(["plan", str(POCKET), "--gpu", "a1000"]) == 2
    assert "did you mean 'a100'?" in capsys.readouterr().err
