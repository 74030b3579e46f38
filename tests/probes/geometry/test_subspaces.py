"""Subspaces of vectors whose geometry is known, against scikit-learn and analytic expectations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from interp.errors import InputError
from probes.geometry.subspaces import Spectrum, angles, energy_inside, isotropic, refusal_subspace

E = torch.eye(12, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def constructed(n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs that differ by 3 along axis 0, and in how far apart they are along axes 4 (much) and 7 (less); what both
    share varies along axis 9, most of all."""
    z = torch.randn(n, 12, generator=generator(), dtype=torch.float64)
    z = z - z.mean(0)
    shared = 10 * z[:, 9:10] * E[9] + 0.01 * z
    return shared + 3 * E[0] + 2 * z[:, 4:5] * E[4] + z[:, 7:8] * E[7], shared


def test_refusal_subspace_is_the_planes_that_pairs_differ_in() -> None:
    harmful, harmless = constructed()
    found = refusal_subspace(harmful, harmless, 2)
    torch.testing.assert_close(found.abs(), E[[0, 4, 7]].T, atol=0.02, rtol=0)
    assert found[0, 0] > 0.99  # towards harmful
    torch.testing.assert_close(found.T @ found, torch.eye(3, dtype=torch.float64))
    assert angles(found, E[[0, 4, 7]].T).max() < 2
    torch.testing.assert_close(refusal_subspace(harmful, harmless, 0), found[:, :1])


def test_components_are_scikit_learns() -> None:
    random = np.random.default_rng(0)
    harmful, harmless = torch.from_numpy(random.normal(size=(30, 9))), torch.from_numpy(random.normal(size=(30, 9)))
    direction = (harmful - harmless).mean(0).numpy()
    direction /= np.linalg.norm(direction)
    contrast = (harmful - harmless).numpy()
    across = contrast - contrast.mean(0)
    across -= np.outer(across @ direction, direction)
    expected = PCA(3).fit(across).components_
    found = refusal_subspace(harmful, harmless, 3)[:, 1:].T.numpy()
    np.testing.assert_allclose(np.abs((found * expected).sum(1)), 1, atol=1e-10)


def test_prompts_without_a_pair_count_for_the_mean_only() -> None:
    harmful, harmless = constructed()
    more = torch.cat([harmful, harmful.mean(0, keepdim=True).expand(5, -1)])
    torch.testing.assert_close(refusal_subspace(more, harmless, 2), refusal_subspace(harmful, harmless, 2))


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_energy_is_kept_by_rotations_and_adds_up(seed: int, rank: int) -> None:
    vectors = torch.randn(6, 10, generator=generator(seed), dtype=torch.float64)
    bases = isotropic(10, rank, 3, generator(seed + 1))
    inside = energy_inside(vectors, bases)
    assert inside.shape == (3, 6)
    for draw, basis in enumerate(bases):
        torch.testing.assert_close(inside[draw], (basis @ basis.T @ vectors.T).square().sum(0))
        turn = torch.linalg.qr(torch.randn(rank, rank, generator=generator(seed), dtype=torch.float64)).Q
        torch.testing.assert_close(energy_inside(vectors, basis @ turn), inside[draw])
    whole = torch.linalg.qr(torch.randn(10, 10, generator=generator(seed), dtype=torch.float64)).Q
    parts = energy_inside(vectors, whole[:, :rank]) + energy_inside(vectors, whole[:, rank:])
    torch.testing.assert_close(parts, vectors.square().sum(1))


def test_isotropic_subspaces_hold_rank_over_dimensions_of_anything() -> None:
    """The share of a fixed vector is Beta(r/2, (d − r)/2) distributed."""
    from scipy import stats

    shares = energy_inside(E[:1], isotropic(12, 3, 2000, generator()))[:, 0]
    assert stats.kstest(shares.numpy(), stats.beta(1.5, 4.5).cdf).pvalue > 1e-3


def test_random_subspaces_stay_where_vectors_vary() -> None:
    vectors = torch.randn(50, 12, generator=generator(), dtype=torch.float64) * torch.tensor(
        [5.0, 2.0, 1.0] + [0.0] * 9
    )
    spectrum = Spectrum.of(vectors - vectors.mean(0))
    assert len(spectrum.sizes) == 3
    bases = spectrum.random(2, 400, generator())
    assert bases[:, 3:].abs().max() < 1e-12
    torch.testing.assert_close(bases.mT @ bases, torch.eye(2, dtype=torch.float64).expand(400, 2, 2))
    by_axis = bases.square().sum(-1).mean(0)
    assert by_axis[0] > by_axis[1] > by_axis[2]
    # One dimension: the direction of a Gaussian vector with this covariance.
    line = spectrum.random(1, 4000, generator())[:, :, 0]
    direct = vectors.T @ torch.randn(50, 4000, generator=generator(5), dtype=torch.float64)
    expected = (direct / torch.linalg.vector_norm(direct, dim=0)).square().mean(1)
    torch.testing.assert_close(line.square().mean(0), expected, atol=0.03, rtol=0)
    with pytest.raises(InputError, match="vary in 3 dimensions"):
        spectrum.random(4, 1, generator())


@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_matching_power_gives_the_share_asked_for(share: float) -> None:
    vectors = normal(200, 12) * 0.6 ** torch.arange(12)
    spectrum = Spectrum.of(vectors - vectors.mean(0))
    power = spectrum.matching_power(3, share, vectors, generator())
    found = (
        energy_inside(vectors, spectrum.random(3, 2000, generator(9), power)).sum(-1).mean() / vectors.square().sum()
    )
    assert found.item() == pytest.approx(share, abs=0.02)


def test_shares_out_of_reach_give_the_nearest_power() -> None:
    vectors = torch.randn(50, 12, generator=generator(), dtype=torch.float64) * torch.linspace(5, 0.5, 12)
    spectrum = Spectrum.of(vectors)
    assert spectrum.matching_power(3, 0.0, vectors, generator()) == 0.0
    assert spectrum.matching_power(3, 1.0, vectors, generator()) == 8.0


def test_angles_are_known_ones() -> None:
    turned = torch.stack([E[0], np.cos(0.3) * E[1] + np.sin(0.3) * E[2]], dim=1)
    np.testing.assert_allclose(angles(E[:2].T, turned), np.degrees([0, 0.3]), atol=1e-6)
    np.testing.assert_allclose(angles(E[:2].T, E[2:4].T), [90, 90])


def test_no_subspace_is_an_error() -> None:
    harmful, harmless = constructed()
    with pytest.raises(InputError, match="40 components of 40 pairs"):
        refusal_subspace(harmful, harmless, 40)
    with pytest.raises(InputError, match="means are equal"):
        refusal_subspace(harmless, harmless, 1)
    with pytest.raises(InputError, match="vary in 0 dimensions"):
        refusal_subspace(harmless + E[0], harmless, 1)
