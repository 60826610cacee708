"""When less similar kernels fail to have less similar maps, and what normalisation leaves: inputs, errors, backends."""

from __future__ import annotations

import numpy as np
import pytest

from convla import identities
from convla.errors import ShapeError
from convla.similarity import feature_map_gram


def test_the_criterion_is_that_of_the_maps_themselves() -> None:
    rng = np.random.default_rng(3)
    k1, k2, x = rng.standard_normal((40, 4)), rng.standard_normal((40, 4)), rng.standard_normal((40, 9)) + 1
    gram = feature_map_gram(x[:, None], (4,), padding="same")
    ends = identities.orthogonalized_pair(k1, k2)
    before, after = (
        np.array(
            [abs(identities.feature_inner_product(a, b, y, padding="same")) for a, b, y in zip(*pair, x, strict=True)]
        )
        for pair in ((k1, k2), ends)
    )
    fails = identities.orthogonality_fails(k1, k2, gram)
    assert np.array_equal(fails, after >= before)
    assert 0 < fails.sum() < 40
    assert np.abs((ends[0] * ends[1]).sum(axis=1)).max() < 1e-14


def test_what_has_no_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="neither equal nor opposite"):
        identities.orthogonalized_pair([1.0, 2.0], [-1.0, -2.0])
    with pytest.raises(ShapeError, match=r"gram must have shape \(\.\.\., 2, 2\)"):
        identities.orthogonality_fails([1.0, 2.0], [1.0, 0.0], np.eye(3))
    with pytest.raises(ShapeError, match="k1"):
        identities.orthogonalized_pair([1.0, 2.0], [1.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="correlation must be at most 1"):
        identities.crossing_probability(1.0, 1.5)
    with pytest.raises(ValueError, match="length"):
        identities.orthogonality_failure_limit(5, 4)
    with pytest.raises(ValueError, match="time"):
        identities.similarity_failure_limit(0.0)
    with pytest.raises(ValueError, match=r"correlation must lie in \[-1, 1\]"):
        identities.activated_cosine([0.0, 1.01])
    with pytest.raises(ValueError, match="slope must be at most 1"):
        identities.activated_cosine(0.0, 1.01)
    with pytest.raises(ValueError, match="positive variance"):
        identities.map_correlation(np.zeros((2, 1, 3)), np.eye(3))
    with pytest.raises(ShapeError, match="covariance must have shape"):
        identities.map_correlation(np.ones((2, 1, 3)), np.eye(4))


def test_covariances_are_those_of_the_windows() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 2, 4, 3))
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    windows = np.stack([padded[:, :, i : i + 3, j : j + 2].reshape(5, -1) for i in range(4) for j in range(2)])
    wanted = np.cov(windows.reshape(-1, 12).T, bias=True)
    found = identities.window_covariance(x, (3, 2), padding=[(1, 1), (0, 0)])
    assert np.abs(found - wanted).max() < 1e-14


@pytest.mark.parametrize("backend", ["array_api_strict", "torch"])
def test_other_arrays_give_the_same(backend: str) -> None:
    xp = pytest.importorskip(backend)
    rng = np.random.default_rng(1)
    k1, k2, x = rng.standard_normal((3, 4)), rng.standard_normal((3, 4)), rng.standard_normal((2, 1, 9))
    gram = rng.standard_normal((4, 4))
    gram = gram @ gram.T

    def every(convert):  # type: ignore[no-untyped-def]
        a, b = convert(k1), convert(k2)
        covariance = identities.window_covariance(convert(x), (4,), padding="valid")
        return [
            *identities.orthogonalized_pair(a, b),
            identities.orthogonality_fails(a, b, convert(gram)),
            identities.even_similarity(a[0, :], b[0, :]),
            covariance,
            identities.map_correlation(convert(k1[:, None]), covariance),
            identities.activated_cosine(convert(np.linspace(-1, 1, 5)), 0.2),
        ]

    for found, wanted in zip(every(lambda a: xp.asarray(a)), every(np.asarray), strict=True):
        assert type(found).__module__.split(".")[0] == backend
        assert np.allclose(np.asarray(found.tolist() if backend == "torch" else found), wanted, rtol=1e-12, atol=1e-14)
