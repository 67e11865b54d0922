"""The source of uncertainty of a committee that was trained with SVGD."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from monai.inferers import Inferer
from torch import Tensor, nn

from alseg.core.errors import check_whole_number
from alseg.networks.committee import Committee
from alseg.networks.dropout import MaskSeed
from alseg.scoring.sources import plain_pass
from alseg.strategies.statistics import VoxelStatistics


@dataclass(frozen=True)
class SVGD:
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
    n_members = 1  # the committee is one network to the rounds

    def __post_init__(self) -> None:
        check_whole_number("uncertainty.n_particles", self.n_particles, at_least=1)

    def check(self, network: nn.Module) -> None:
        """Any network will do."""

    def statistics(
        self, networks: Sequence[nn.Module], image: Tensor, inferer: Inferer, mask_seed: MaskSeed
    ) -> VoxelStatistics:
        """One pass of each particle; statistics stream over particles."""
        (committee,) = networks
        assert isinstance(committee, Committee)
        statistics = VoxelStatistics()
        for particle in committee.particles:
            statistics.update(plain_pass(particle, image, inferer))
        return statistics
