"""SVGD on a known density, one particle against plain training, and the committee's scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from monai.inferers import SimpleInferer
from monai.losses import DiceCELoss
from torch import Tensor, nn
from torch.utils.data import DataLoader

from alseg.core.errors import ConfigError
from alseg.networks.committee import Committee
from alseg.scoring.sources import Ensemble
from alseg.scoring.svgd import SVGD
from alseg.training.module import SegmentationModule
from alseg.training.recipe import Recipe
from alseg.training.svgd import LogDice, SteinModule, rbf_kernel, stein_direction, stein_gradients

MEANS = torch.tensor([[-1.5, 0.0], [1.5, 1.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)


def mixture_scores(x: Tensor) -> Tensor:
    """grad log p of two unit Gaussians, by autograd."""
    x = x.detach().requires_grad_()
    log_p = torch.logsumexp(-0.5 * (x[:, None] - MEANS).square().sum(-1) + WEIGHTS.log(), dim=1)
    return torch.autograd.grad(log_p.sum(), x)[0]


def distances(x: Tensor) -> Tensor:
    return torch.cdist(x, x).square()


def converge(x: Tensor, *, repulsion: bool) -> Tensor:
    for step in range(400):
        scores = mixture_scores(x)
        phi = stein_direction(x, scores, rbf_kernel(distances(x))) if repulsion else scores
        x = x + (2.0 if step < 250 else 0.5) * phi
    return x


def test_svgd_finds_the_moments_of_a_mixture_where_plain_ascent_finds_its_modes() -> None:
    generator = torch.Generator().manual_seed(0)
    start = 3 * torch.randn(60, 2, dtype=torch.float64, generator=generator)
    particles = converge(start, repulsion=True)
    mean = WEIGHTS @ MEANS
    centred = MEANS - mean
    covariance = torch.eye(2) + (WEIGHTS[:, None] * centred).T @ centred
    assert (particles.mean(0) - mean).abs().max() < 0.05
    # 60 particles fall a tenth short of the variance
    np.testing.assert_allclose(particles.T.cov(), covariance, atol=0.12)
    modes = converge(start, repulsion=False)
    nearest = torch.cdist(modes, MEANS).argmin(dim=1)
    for mode in (0, 1):
        assert modes[nearest == mode].std(dim=0).max() < 1e-3


def test_the_direction_by_hand_is_shared_gradients_plus_repulsion() -> None:
    x = torch.tensor([[0.0], [2.0]], dtype=torch.float64)
    scores = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    kernel = rbf_kernel(distances(x))
    assert kernel.bandwidth == pytest.approx(4 / math.log(2))
    k = math.exp(-4 / kernel.bandwidth)
    assert k == pytest.approx(0.5)  # exp(-log 2)
    push = 2 / kernel.bandwidth * k * 2
    expected = [(1 + k * 3 - push) / 2, (k * 1 + 3 + push) / 2]
    phi = stein_direction(x, scores, kernel).flatten().tolist()
    assert phi == pytest.approx(expected)


def test_the_repulsion_is_the_kernels_gradient() -> None:
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    kernel = rbf_kernel(distances(x))
    moved = x.clone().requires_grad_()
    for i in range(5):
        k = torch.exp(-(moved - x[i]).square().sum(1) / kernel.bandwidth)
        (gradient,) = torch.autograd.grad(k.sum(), moved)  # with respect to each x_j
        alone = stein_direction(x, torch.zeros_like(x), kernel)[i]
        torch.testing.assert_close(alone, gradient.sum(0) / 5)


def test_equal_particles_share_gradients_and_do_not_repel() -> None:
    kernel = rbf_kernel(torch.zeros(3, 3))
    scores = torch.tensor([[1.0], [2.0], [6.0]])
    assert stein_direction(torch.ones(3, 1), scores, kernel).flatten().tolist() == [3, 3, 3]


def test_gradients_of_networks_are_those_of_their_flat_parameters() -> None:
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)) for _ in range(3)]
    for network in networks:
        network(torch.randn(5, 3)).square().sum().backward()

    def flat(gradients: bool) -> Tensor:
        values = [[p.grad if gradients else p for p in n.parameters()] for n in networks]
        return torch.stack([torch.cat([v.flatten() for v in row]) for row in values]).detach()

    particles, scores = flat(False), -flat(True)
    expected = -stein_direction(particles, scores, rbf_kernel(distances(particles)))
    stein_gradients(networks)
    torch.testing.assert_close(flat(True), expected, rtol=1e-4, atol=1e-5)


def tiny_network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Dropout(0.3), nn.Conv3d(4, 2, 1)
    )


def fitted(module_class: type, network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(8, 1, 6, 6, 6, generator=generator)
    samples = [{"image": image, "label": (image > 0.5).float()} for image in images]
    module = module_class(
        network,
        Recipe(
            loss=DiceCELoss(to_onehot_y=True, softmax=True),
            optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, weight_decay=1e-2),
            schedule=lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, 6),
            n_steps=6,
        ),
        inferer=SimpleInferer(),
        classes=("blob",),
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=6,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    torch.manual_seed(3)
    trainer.fit(module, DataLoader(samples, batch_size=2))
    return network


def test_one_particle_is_plain_training_bit_for_bit() -> None:
    plain = fitted(SegmentationModule, tiny_network(1))
    committee = fitted(SteinModule, Committee([tiny_network(1)]))
    weights = committee.particles[0].state_dict()  # type: ignore[union-attr, index]
    for name, value in plain.state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_particles_are_trained_jointly() -> None:
    plain = fitted(SegmentationModule, tiny_network(1))
    committee = fitted(SteinModule, Committee([tiny_network(1), tiny_network(2)]))
    first = committee.particles[0].state_dict()  # type: ignore[union-attr, index]
    assert not torch.equal(plain.state_dict()["0.weight"], first["0.weight"])


def test_statistics_are_those_of_the_particles_and_the_first_one_answers() -> None:
    networks = [tiny_network(seed).eval() for seed in (1, 2, 3)]
    committee = Committee(networks).eval()
    image = torch.randn(1, 1, 6, 6, 6)
    mine = SVGD(3).statistics([committee], image, SimpleInferer(), lambda *_: 0)
    ensemble = Ensemble(3).statistics(networks, image, SimpleInferer(), lambda *_: 0)
    assert mine.n_passes == 3
    assert torch.equal(mine.mean, ensemble.mean)
    assert torch.equal(mine.variance, ensemble.variance)
    assert torch.equal(committee(image), networks[0](image))


def test_log_dice_by_hand() -> None:
    label = torch.tensor([1.0, 1.0, 0.0, 0.0]).view(1, 1, 4, 1, 1)
    p = torch.tensor([0.8, 0.6, 0.4, 0.2])
    logits = torch.stack([torch.log(1 - p), torch.log(p)]).view(1, 2, 4, 1, 1)
    dice = 2 * (0.8 + 0.6) / (2 + (p**2).sum())
    assert LogDice()(logits, label).item() == pytest.approx(-math.log(dice), abs=1e-4)
    perfect = torch.stack([-50 * (label - 0.5), 50 * (label - 0.5)], dim=1)[:, :, 0]
    assert LogDice()(perfect, label).item() == pytest.approx(0, abs=1e-5)


def test_the_number_of_particles_is_checked() -> None:
    with pytest.raises(ConfigError, match="n_particles is 0"):
        SVGD(0)
