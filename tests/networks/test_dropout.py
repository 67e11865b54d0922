from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from monai.inferers import SlidingWindowInferer, sliding_window_inference
from torch import Tensor, nn

from alseg.config.composition import conf_folder, instantiate
from alseg.core.errors import ConfigError
from alseg.core.seeding import seed_for
from alseg.networks.dropout import (
    MaskedDropout,
    active_dropout_layers,
    check_dropout,
    kept_units,
)
from alseg.scoring.plain_passes import stochastic_statistics
from alseg.strategies.aggregations import mean
from alseg.strategies.measures import variance
from alseg.strategies.statistics import VoxelStatistics
from tests.planning.builders import with_a_plan

MODELS = sorted(path.stem for path in (Path(conf_folder()) / "model").glob("*.yaml"))
WINDOW = (32, 32, 32)


def mask_seed(pass_index: int, window: int, layer: int) -> int:
    return seed_for(1, 1, f"mc_dropout/{pass_index}/{window}/{layer}", "case")


def build(model: str) -> nn.Module:
    with initialize_config_dir(conf_folder(), version_base="1.3"):
        config = with_a_plan(compose("config", overrides=[f"model={model}"]))
    torch.manual_seed(0)
    network = instantiate(config.model.network, in_channels=1, out_channels=3)
    # Batch norm with statistics that differ from those of any window, so that a scoring that
    # updated or ignored them would be seen.
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def passes_of(network: nn.Module, image: Tensor, inferer: SlidingWindowInferer, n: int) -> Tensor:
    """The same passes, one window at a time, all kept: [T, C, D, H, W]."""
    masks = MaskedDropout(mask_seed)
    kept = []
    with torch.no_grad(), masks.attached_to(network):
        for pass_index in range(n):
            window = iter(range(1000))

            def predict(windows: Tensor, pass_index: int = pass_index, window=window) -> Tensor:
                masks.samples = [(pass_index, next(window))]
                return network(windows)

            logits = sliding_window_inference(
                image, inferer.roi_size, 1, predict, overlap=inferer.overlap
            )
            kept.append(torch.softmax(logits[0], dim=0))
    return torch.stack(kept)


@pytest.mark.parametrize("model", MODELS)
def test_streaming_equals_stacked_and_leaves_the_network_bit_identical(model: str) -> None:
    network = build(model)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    image = torch.rand(1, 1, 40, 32, 32)
    inferer = SlidingWindowInferer(WINDOW, sw_batch_size=2, overlap=0.25)
    statistics = stochastic_statistics(network, image, inferer, 3, mask_seed)
    stacked = passes_of(network, image, inferer, 3).double()

    # 5e-6: convolutions of two windows and of one sum in another order, in float32
    torch.testing.assert_close(statistics.mean.double(), stacked.mean(0), atol=5e-6, rtol=0)
    torch.testing.assert_close(
        statistics.variance.double(), stacked.var(0, correction=0), atol=5e-6, rtol=0
    )
    entropy = -(stacked * stacked.log()).sum(1).mean(0)
    torch.testing.assert_close(statistics.expected_entropy.double(), entropy, atol=1e-5, rtol=0)
    assert statistics.variance.max() > 1e-6  # the passes do differ

    assert not any(module.training for module in network.modules())
    assert not any(module._forward_hooks for module in network.modules())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_tutorials_variance_score_is_reproduced() -> None:
    """Independently in NumPy, as the tutorial computes it: lift zeros, nanvar, sum, nanmean."""
    network = build("unet")
    image = torch.rand(1, 1, 48, 40, 33)
    inferer = SlidingWindowInferer(WINDOW, sw_batch_size=4, overlap=0.25)
    stack = passes_of(network, image, inferer, 5).numpy().astype("float32")[:, 1:]
    stack[stack <= 0] = 0.0005
    expected = np.nanmean(np.sum(np.nanvar(stack, axis=0), axis=0))
    statistics = stochastic_statistics(network, image, inferer, 5, mask_seed)
    score = mean(variance(statistics), statistics)
    assert score == pytest.approx(float(expected), abs=1e-6, rel=1e-4)
    assert score > 1e-5  # or 1e-6 would prove nothing


@pytest.mark.parametrize("window_batch_size", [1, 3, 8])
def test_scores_do_not_depend_on_the_window_batch_size(window_batch_size: int) -> None:
    network, image = build("unet_small"), torch.rand(1, 1, 64, 48, 40)
    one = stochastic_statistics(network, image, SlidingWindowInferer(WINDOW, 2), 2, mask_seed)
    inferer = SlidingWindowInferer(WINDOW, window_batch_size)
    other = stochastic_statistics(network, image, inferer, 2, mask_seed)
    torch.testing.assert_close(one.mean, other.mean, atol=1e-5, rtol=0)


def test_scoring_neither_uses_nor_changes_the_global_generator() -> None:
    network, image = build("unet_small"), torch.rand(1, 1, *WINDOW)
    inferer = SlidingWindowInferer(WINDOW, 1)
    torch.manual_seed(5)
    one = stochastic_statistics(network, image, inferer, 2, mask_seed)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), after)
    other = stochastic_statistics(network, image, inferer, 2, mask_seed)
    assert torch.equal(one.mean, other.mean)


@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Dropout(0.4), (50, 4, 5, 6)), (nn.Dropout3d(0.4), (50, 1, 1, 1))]
)
def test_masks_keep_the_stated_share_and_the_expected_value(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    masks = MaskedDropout(mask_seed)
    masks.samples = [(0, window) for window in range(40)]
    ones = torch.ones(40, 50, 4, 5, 6)
    with masks.attached_to(layer.eval()):
        out = layer(ones)
    # whole channels for Dropout3d, single voxels for Dropout
    assert (out == out[(slice(None), slice(None), *([slice(0, 1)] * 3))]).all() == (shape[1] == 1)
    values = out.unique()
    torch.testing.assert_close(values, torch.tensor([0.0, 1 / 0.6]))
    n = 40 * int(np.prod(shape))
    assert abs((out > 0).float().mean() - 0.6) < 5 * (0.24 / n) ** 0.5
    assert not torch.equal(out[0], out[1])


@pytest.mark.parametrize("n_units", [1, 8, 13824, 20001])
@pytest.mark.parametrize("rate", [0.1, 0.25, 1.0])
def test_masks_that_are_drawn_together_are_those_drawn_one_by_one(
    n_units: int, rate: float
) -> None:
    device = torch.device("cpu")
    together = kept_units([3, 1, 4], n_units, rate, device)
    one_by_one = [kept_units([seed], n_units, rate, device) for seed in (3, 1, 4)]
    assert torch.equal(together, torch.cat(one_by_one))


@pytest.mark.parametrize("rate", [1e-6, 0.02, 0.5, 0.98, 1.0])
def test_extreme_rates_are_met(rate: float) -> None:
    layer = nn.Dropout(rate).eval()
    masks = MaskedDropout(mask_seed)
    masks.samples = [(0, 0)]
    with masks.attached_to(layer):
        dropped = (layer(torch.ones(1, 101, 31, 31)) == 0).double().mean()
    assert abs(float(dropped) - rate) < 5 * (max(rate * (1 - rate), 2e-5) / 97061) ** 0.5 + 2e-5


def test_networks_without_active_dropout_are_refused() -> None:
    assert active_dropout_layers(nn.Sequential(nn.Dropout(0.0), nn.Conv3d(1, 1, 1))) == []
    with pytest.raises(ConfigError, match=r"set model.dropout above 0"):
        check_dropout(nn.Sequential(nn.Dropout(0.0)))
    with pytest.raises(ConfigError, match="does not support AlphaDropout"):
        check_dropout(nn.Sequential(nn.AlphaDropout(0.1)))


def test_statistics_refuse_to_answer_before_a_pass() -> None:
    with pytest.raises(ValueError, match="no pass"):
        _ = VoxelStatistics().mean
    statistics = VoxelStatistics()
    statistics.update(torch.full((2, 2, 2, 2), 0.5))
    with pytest.raises(ValueError, match="earlier ones"):
        statistics.update(torch.full((2, 2, 2, 3), 0.5))
