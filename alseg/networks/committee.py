"""Networks that are trained jointly and used like one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Committee(nn.Module):
    """M networks of one architecture; called, it answers with the first.

    The first particle is what a run reports: evaluation, the choice of the best weights and the
    pictures. So its Dice is that of one network, as for Monte-Carlo dropout and ``Ensemble``, and
    a difference between them is one of training and queries. Rejected: the committee's mean
    prediction, whose Dice would gain by averaging M networks as well, at M times the cost.
    """

    def __init__(self, particles: Sequence[nn.Module]) -> None:
        super().__init__()
        self.particles = nn.ModuleList(particles)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of the first particle."""
        logits: Tensor = self.particles[0](x)
        return logits


def reported_network(network: nn.Module) -> nn.Module:
    """The network that answers for another one: a committee's first particle, or itself."""
    return network.particles[0] if isinstance(network, Committee) else network
