"""The source of uncertainty of a committee that was trained with SVGD."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from monai.inferers import Inferer
from torch import Tensor, nn

from alseg.core.errors import check_whole_number
from alseg.networks.committee import Committee
from alseg.networks.dropout import MaskSeed
from alseg.networks.features import BottleneckFeatures
from alseg.scoring.passes import Passes
from alseg.scoring.sources import UncertaintySource, plain_pass, streamed
from alseg.strategies.statistics import KEPT


@dataclass(frozen=True)
class SVGD(UncertaintySource):
    """One plain pass of each of M particles, trained jointly with SVGD.

    Each step runs all particles on the same batch, so its time and the memory of activations,
    gradients and optimiser state are those of M networks at once. Particles differ by their first
    weights and dropout masks, and by the repulsion. The prior is the optimiser's weight decay,
    which acts on each particle by itself; with an adaptive optimiser, such as AdamW, phi stands
    where the gradient does, as in Liu and Wang's experiments with AdaGrad.

    Open in the paper: M in its experiments, the step size and the variant of the heuristic.

    Args:
        n_particles: M, at least 1.
        loss: -log p of a batch; None for the training's own loss, for comparisons in which nothing
            but the repulsion differs.

    Raises:
        ConfigError: if M is not a whole number of at least 1.
    """

    n_particles: int
    loss: Callable[[Tensor, Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        check_whole_number("uncertainty.n_particles", self.n_particles, at_least=1)

    def untrained(self, make_network: Callable[[int], nn.Module]) -> nn.Module:
        """A committee of M networks, which is one network to the rounds."""
        return Committee([make_network(number) for number in range(1, self.n_particles + 1)])

    def stream(
        self,
        networks: Sequence[nn.Module],
        image: Tensor,
        inferer: Inferer,
        mask_seed: MaskSeed,
        features: BottleneckFeatures | None = None,
        kept: Collection[str] = KEPT,
    ) -> Passes:
        """One pass of each particle."""
        (committee,) = networks
        assert isinstance(committee, Committee)
        predictions = (plain_pass(particle, image, inferer) for particle in committee.particles)
        return streamed(predictions, committee, features, kept)
