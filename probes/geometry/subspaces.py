"""Subspaces of the residual stream: the refusal subspace, random ones to compare it with, energy inside, angles.

All take and return float64; a subspace is an orthonormal basis, [d_model, rank]. Vectors of prompts are rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.linalg import subspace_angles
from scipy.optimize import brentq
from torch import Tensor

from interp.errors import InputError

RANK_TOLERANCE = 1e-6
"""The singular values, relative to the largest, below which there is only the rounding of float32 activations."""
MATCHING_DRAWS = 100
LARGEST_POWER = 8.0


def refusal_subspace(
    harmful: Float[Tensor, "n_harmful d_model"], harmless: Float[Tensor, "n_harmless d_model"], components: int
) -> Float[Tensor, "d_model rank"]:
    """The difference of means, then the top principal components of the paired contrast: rank = 1 + components.

    The contrast of a pair is harmful − harmless, of two prompts on the same line of their sets; the components are of
    its deviations from its mean, orthogonal to the difference of means (Arditi et al. 2024, arXiv:2406.11717, have the
    first vector; Wollschläger et al. 2025, arXiv:2502.17420, show that refusal is more than one direction). Where the
    sets have different lengths the longer one's rest counts for its mean only.

    Args:
        harmful: activations; the first vector points to their mean.
        harmless: activations.
        components: 0 or more, fewer than the pairs.

    Raises:
        InputError: not enough pairs, or equal means: there is no subspace of this rank.
    """
    pairs = min(len(harmful), len(harmless))
    if components >= pairs or components >= harmful.shape[1]:
        raise InputError(f"{components} components of {pairs} pairs", "fewer components than pairs and than dimensions")
    harmful, harmless = harmful.double(), harmless.double()
    direction = harmful.mean(0) - harmless.mean(0)
    if not direction.any():
        raise InputError("The harmful and harmless means are equal", "a direction between them")
    direction = direction / torch.linalg.vector_norm(direction)
    contrast = harmful[:pairs] - harmless[:pairs]
    deviations = contrast - contrast.mean(0)
    across = deviations - torch.outer(deviations @ direction, direction)
    return torch.cat([direction[:, None], Spectrum.of(across).top(components)], dim=1)


class Spectrum(NamedTuple):
    """Centred vectors as the directions in which they vary, the most first.

    Attributes:
        sizes: singular values, falling.
        directions: orthonormal rows.
    """

    sizes: Float[Tensor, " varying"]
    directions: Float[Tensor, "varying d_model"]

    @classmethod
    def of(cls, centred: Float[Tensor, "n d_model"]) -> Spectrum:
        """Directions without variance (rounding apart) are left out."""
        _, sizes, directions = torch.linalg.svd(centred.double(), full_matrices=False)
        mask = sizes > RANK_TOLERANCE * sizes.max() if len(sizes) else sizes > 0
        return cls(sizes[mask], directions[mask])

    def top(self, rank: int) -> Float[Tensor, "d_model rank"]:
        """The subspace in which the vectors vary most.

        Raises:
            InputError: they vary in fewer dimensions.
        """
        self._check(rank)
        return self.directions[:rank].T

    def random(
        self, rank: int, draws: int, generator: torch.Generator, power: float = 1.0
    ) -> Float[Tensor, "draws d_model rank"]:
        """Subspaces spanned by Gaussian vectors with the covariance of the vectors: where these vary, they vary.

        The Gaussian vectors are drawn in the space itself, not in coordinates of `directions`: generators in one state
        give similar subspaces for similar spectra.

        Args:
            rank: of each.
            draws: how many.
            generator: of the Gaussian vectors.
            power: of the standard deviation of every direction; above 1 subspaces keep closer to the top.

        Raises:
            InputError: the vectors vary in fewer dimensions than `rank`.
        """
        self._check(rank)
        white = torch.randn(draws, self.directions.shape[1], rank, generator=generator, dtype=torch.float64)
        gaussian = self.directions @ white
        spread = (self.sizes / self.sizes[0]) ** power
        return self.directions.T @ torch.linalg.qr(spread[:, None] * gaussian).Q

    def matching_power(
        self, rank: int, share: float, vectors: Float[Tensor, "n d_model"], generator: torch.Generator
    ) -> float:
        """The power with which random subspaces hold, on average, so large a share of the energy of some vectors.

        The largest or smallest power looked at, 8 or 0, where none does.
        """
        state = generator.get_state()

        def excess(power: float) -> float:
            generator.set_state(state)
            bases = self.random(rank, MATCHING_DRAWS, generator, power)
            return float(energy_inside(vectors, bases).sum(-1).mean() / vectors.square().sum()) - share

        if excess(0.0) >= 0:
            return 0.0
        if excess(LARGEST_POWER) <= 0:
            return LARGEST_POWER
        return float(brentq(excess, 0.0, LARGEST_POWER, xtol=1e-3))

    def _check(self, rank: int) -> None:
        if len(self.sizes) < rank:
            raise InputError(
                f"The activations vary in {len(self.sizes)} dimensions",
                f"at least {rank}",
                "Use more prompts or fewer components",
            )


def isotropic(d_model: int, rank: int, draws: int, generator: torch.Generator) -> Float[Tensor, "draws d_model rank"]:
    """Subspaces that favour no direction (Haar measure)."""
    gaussian = torch.randn(draws, d_model, rank, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(gaussian).Q


def energy_inside(
    vectors: Float[Tensor, "n d_model"], basis: Float[Tensor, "*draws d_model rank"]
) -> Float[Tensor, "*draws n"]:
    """Squared length of each vector's projection on one subspace or on many."""
    rank = basis.shape[-1]
    columns = basis.movedim(-2, 0)  # [d_model, *draws, rank]: one product of matrices, not one per draw
    projected = vectors.double() @ columns.flatten(1)
    return projected.view(len(vectors), *columns.shape[1:-1], rank).square().sum(-1).movedim(0, -1)


def angles(a: Float[Tensor, "d_model rank"], b: Float[Tensor, "d_model rank"]) -> Float[np.ndarray, " rank"]:
    """Principal angles in degrees, the smallest first (Björck & Golub 1973; scipy's computation)."""
    return np.degrees(subspace_angles(a.numpy(), b.numpy()))[::-1]
