"""Plans of all sorts of images are usable; plan.yaml says them and takes them back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from alseg.config.composition import conf_folder, instantiate
from alseg.core.errors import ConfigError, DataError
from alseg.networks.dropout import active_dropout_layers, drop_no_logits
from alseg.planning.budget import Budget, budget_of, main_memory
from alseg.planning.numbers import CPU, GPU
from alseg.planning.plan import Plan, make_plan
from alseg.planning.plan_file import KINDS, as_yaml, check_value, read_plan, write_plan
from alseg.planning.rules import divisors, training_bytes
from tests.planning.builders import ON_CPU, ON_GPU, channel, facts

shapes = st.tuples(*[st.integers(1, 2000)] * 3)
spacings = st.tuples(*[st.floats(0.05, 20)] * 3)
budgets = st.builds(
    Budget, st.just("a device"), st.integers(2**26, 2**37), st.sampled_from([CPU, GPU])
)


def network_of(plan: Plan, n_channels: int, n_classes: int) -> Any:
    """The network of conf/model/auto.yaml with the levels of a plan."""
    model = OmegaConf.load(Path(conf_folder(), "model", "auto.yaml"))
    values = {k.removeprefix("model."): v for k, v in plan.values.items() if k.startswith("model.")}
    config = OmegaConf.create({"model": OmegaConf.merge(model, values)})
    return instantiate(config.model.network, in_channels=n_channels, out_channels=n_classes)


def output_of(plan: Plan, n_channels: int, n_classes: int) -> torch.Size:
    values = plan.values
    with torch.device("meta"):
        network = network_of(plan, n_channels, n_classes)
        batch = torch.empty(values["data.batch_size"], n_channels, *values["data.patch_size"])
        return network.train()(batch).shape


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    images=st.lists(st.tuples(shapes, spacings), min_size=1, max_size=4),
    names=st.lists(st.sampled_from(["CT", "MRI"]), min_size=1, max_size=2),
    n_classes=st.integers(2, 6),
    budget=budgets,
)
def test_whatever_the_images_the_plan_can_be_trained(
    images: Any, names: list[str], n_classes: int, budget: Budget
) -> None:
    some = facts(
        n_images=len(images), shapes=tuple(s for s, _ in images),
        spacings_mm=tuple(s for _, s in images), n_classes=n_classes,
        channels=tuple(channel(name) for name in names),
    )  # fmt: skip
    plan = make_plan(some, budget)
    values = plan.values
    assert list(values) == [*KINDS] or set(values) == set(KINDS)
    for name, value in values.items():
        check_value(name, value)
        assert plan.reasons[name]
    patch, n_batch = values["data.patch_size"], values["data.batch_size"]
    by = divisors(values["model.strides"])
    assert [n % d for n, d in zip(patch, by, strict=True)] == [0, 0, 0]
    assert [n % d for n, d in zip(values["data.scoring_window"], by, strict=True)] == [0, 0, 0]
    needed = training_bytes(
        patch, n_batch, values["model.strides"], values["model.filters"], n_classes
    )
    fits = (
        needed <= budget.usable_bytes and math.prod(patch) * n_batch <= budget.numbers.step_voxels
    )
    assert fits or max(patch) <= 64, patch
    assert output_of(plan, len(names), n_classes) == (n_batch, n_classes, *patch)
    assert make_plan(some, budget) == plan
    assert yaml.safe_load(as_yaml(plan)) == values


def test_a_gpu_gets_larger_patches_and_networks_than_a_cpu() -> None:
    large = facts((300, 300, 200), (1.0, 1.0, 1.0))
    cpu, gpu = make_plan(large, ON_CPU).values, make_plan(large, ON_GPU).values
    assert math.prod(gpu["data.patch_size"]) > 4 * math.prod(cpu["data.patch_size"])
    assert gpu["data.spacing_mm"][0] < cpu["data.spacing_mm"][0]
    assert gpu["model.filters"][0] > cpu["model.filters"][0]
    assert gpu["steps_per_round"] > cpu["steps_per_round"]


@pytest.mark.parametrize("kind", [ON_CPU, ON_GPU])
@pytest.mark.parametrize("shape", [(48, 48, 32), (64, 64, 6)])
def test_the_estimate_of_memory_covers_what_a_step_keeps(
    kind: Budget, shape: tuple[int, ...]
) -> None:
    given_values = {"data.patch_size": list(shape), "data.batch_size": 1}
    plan = make_plan(facts(shape, (1, 1, 1)), kind, given_values)
    values = plan.values
    network = network_of(plan, 1, 3)
    parameters = {p.data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network.train()(torch.zeros(1, 1, *shape))
    assert logits.requires_grad
    estimate = training_bytes(shape, 1, values["model.strides"], values["model.filters"], 3)
    assert 1 < estimate / sum(kept.values()) < 2  # gradients come on top of what is kept


def test_less_memory_makes_smaller_patches() -> None:
    large = facts((300, 300, 200))
    small = make_plan(large, Budget("a small GPU", 2 * 2**30, GPU)).values["data.patch_size"]
    assert math.prod(small) < math.prod(make_plan(large, ON_GPU).values["data.patch_size"])


def test_what_is_given_stays_and_the_rest_follows() -> None:
    given_values = {
        "data.patch_size": [32, 32, 8],
        "data.spacing_mm": [1.0, 1.0, 6.0],
        "steps_per_round": 40,
    }
    plan = make_plan(facts(n_images=1000), ON_CPU, given_values)
    assert {name: plan.values[name] for name in given_values} == given_values
    assert plan.reasons["data.patch_size"] == "as it was set, not planned"
    assert plan.values["model.kernel_size"][0] == [3, 3, 1]
    assert plan.values["data.rotate_range"] == [0.0, 0.0, 0.8]
    assert plan.values["val_interval"] == 10
    assert plan.values["data.batch_size"] == CPU.max_batch


def test_the_budget_is_that_of_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = budget_of("cpu", {"steps": 7})
    assert found.numbers.steps == 7
    assert 2**28 < found.memory_bytes == main_memory()
    limit = tmp_path / "memory.max"
    limit.write_text("1073741824\n")
    monkeypatch.setattr("alseg.planning.budget._LIMITS", (str(limit), str(tmp_path / "no")))
    assert main_memory() == 2**30
    limit.write_text("max\n")
    assert main_memory() > 2**30


def test_a_plan_comes_back_as_it_was_written(tmp_path: Path) -> None:
    plan = make_plan(facts(), ON_CPU)
    write_plan(tmp_path / "plan.yaml", plan)
    assert read_plan(tmp_path / "plan.yaml").values == plan.values
    lines = (tmp_path / "plan.yaml").read_text().splitlines()
    assert lines[0].startswith("# Plan of data=auto for Blobs: 10 images")
    assert "the CPU with 16.0 GiB" in lines[1]
    of_values = [line for line in lines if not line.startswith("#")]
    assert [line.partition(":")[0] for line in of_values] == list(plan.values)
    assert all(" # " in line for line in of_values)


def test_names_of_a_data_set_cannot_break_the_file(tmp_path: Path) -> None:
    plan = make_plan(facts(name="a\nsteps_per_round: 1"), ON_CPU)
    write_plan(tmp_path / "plan.yaml", plan)
    assert read_plan(tmp_path / "plan.yaml").values == plan.values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data.patch_size: [1, 2", r"is no plan, as it cannot be read as YAML"),
        ("- 1\n- 2", r"is no plan: it must have a setting a line"),
        ("", r"is no plan: it must have a setting a line"),
        ("1: 2", r"is no plan: it must have a setting a line"),
        ("!!python/object/apply:os.system [ls]", r"cannot be read as YAML"),
        (
            "data.patch: [1, 2, 3]",
            r"'data\.patch', which no plan has; did you mean data\.patch_size",
        ),
        ("data.patch_size: [8, 8]", r"data\.patch_size is \[8, 8\]; .* at least 3 items"),
        ("data.patch_size: [8, 8, 0]", r"data\.patch_size\[2\]: .* greater than 0"),
        ("data.patch_size: [8, 8, 8.5]", r"data\.patch_size\[2\]: .* integer"),
        ("data.spacing_mm: [1, 1, .nan]", r"data\.spacing_mm\[2\]: .* finite number"),
        ("data.spacing_mm: 3 mm", r"data\.spacing_mm is '3 mm'"),
        ("steps_per_round: true", r"steps_per_round is True; .* integer"),
        ("data.intensities: [none]", r"data\.intensities\[0\]: .* dictionary"),
        ("model.strides: [[1, 1, 1]]", r"model\.strides is .* at least 3 items"),
    ],
)
def test_a_damaged_plan_is_reported(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        read_plan(path)
    assert str(path) in str(caught.value)


def test_what_is_no_plan_at_all_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    with pytest.raises(DataError, match=r"data\.plan is .*plan\.yaml, which is no file"):
        read_plan(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read as YAML"):
        read_plan(path)
    path.write_bytes(b"#" * 1_000_001)
    with pytest.raises(DataError, match="is larger than 1000000 bytes"):
        read_plan(path)


def test_logits_are_not_dropped() -> None:
    network = network_of(make_plan(facts(), ON_CPU), 1, 3)
    n_before = len(active_dropout_layers(network))
    drop_no_logits(network)
    assert len(active_dropout_layers(network)) == n_before - 1
    assert not active_dropout_layers(network.output_block)
