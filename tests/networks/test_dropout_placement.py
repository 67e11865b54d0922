"""Where dropout acts, in each network of conf/model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from alseg.core.errors import ConfigError
from alseg.networks.dropout import active_dropout_layers
from alseg.networks.dropout_placement import place_dropout
from alseg.scoring.passes import dropout_passes
from alseg.scoring.plain_passes import stochastic_statistics
from tests.networks.test_dropout import MODELS, build, mask_seed
from tests.scoring.test_passes import INFERER, Calls, check_equal

PATCH = (32, 32, 32)


def active(network: nn.Module) -> list[str]:
    layers = active_dropout_layers(network)
    return [name for name, module in network.named_modules() if module in layers]


@pytest.mark.parametrize("model", MODELS)
def test_all_is_the_network_as_it_comes(model: str) -> None:
    network = build(model)
    before = active(network)
    place_dropout(network, "all", 1, PATCH)
    assert active(network) == before


@pytest.mark.parametrize(
    ("model", "bottleneck"),
    [
        ("unet", "model.1.submodule.1.submodule.1.submodule.1.submodule.conv.unit0.adn.D"),
        ("unet_small", "model.1.submodule.1.submodule.1.submodule.conv.unit1.adn.D"),
        ("basic_unet", "down_4.convs.conv_1.adn.D"),
        ("dynunet", "bottleneck.conv2.adn.D"),
    ],
)
def test_bottleneck_and_decoder(model: str, bottleneck: str) -> None:
    everywhere = active(build(model))
    deep, late = build(model), build(model)
    place_dropout(deep, "bottleneck", 1, PATCH)
    place_dropout(late, "decoder", 1, PATCH)
    assert bottleneck in active(deep)
    assert set(active(deep)) < set(active(late)) < set(everywhere)
    assert everywhere[0] not in active(late)  # the encoder's
    assert everywhere[-1] not in active(deep)  # the decoder's
    assert everywhere[-1] in active(late)


@pytest.mark.parametrize("placement", ["decoder", "bottleneck"])
@pytest.mark.parametrize("model", ["unet_small", "basic_unet", "dynunet"])
def test_later_dropout_is_exact_and_saves_the_encoder(model: str, placement: str) -> None:
    network, image = build(model), torch.rand(1, 1, 40, 16, 14)
    place_dropout(network, placement, 1, PATCH)
    *_, statistics = dropout_passes(network, image, INFERER, 3, mask_seed)
    encoder = Calls(next(m for m in network.modules() if isinstance(m, nn.Conv3d)))
    *_, statistics = dropout_passes(network, image, INFERER, 3, mask_seed)
    assert encoder.windows == 2
    check_equal(statistics, stochastic_statistics(network, image, INFERER, 3, mask_seed))


def test_bad_placements_are_refused() -> None:
    with pytest.raises(ConfigError, match="allowed are all, decoder, bottleneck"):
        place_dropout(build("unet_tiny"), "encoder", 1, PATCH)
    for placement in ("decoder", "bottleneck"):
        with pytest.raises(ConfigError, match="SegResNet has no dropout there"):
            place_dropout(build("segresnet"), placement, 1, PATCH)
    without = nn.Sequential(nn.Conv3d(1, 2, 1))
    place_dropout(without, "decoder", 1, PATCH)  # nothing to place
