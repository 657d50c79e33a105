"""Synthetic runs of published scaling laws."""

import numpy as np

HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
"""Hoffmann et al. 2022, appendix D.2."""

BESIROGLU = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
"""Besiroglu et al. 2024, table 1."""


def loss_of(law, params, tokens):
    """Return E + A / N^alpha + B / D^beta."""
    return law["E"] + law["A"] / params ** law["alpha"] + law["B"] / tokens ** law["beta"]


def best_size(law, flops):
    """Return N_opt = G (C / 6)^(beta / (alpha + beta)) (Hoffmann et al. 2022, eq. 4)."""
    total = law["alpha"] + law["beta"]
    g = (law["alpha"] * law["A"] / (law["beta"] * law["B"])) ** (1 / total)
    return g * (flops / 6) ** (law["beta"] / total)


def isoflop_runs(law, *, budgets=5, sizes=7, width=5.0, noise=0.0, seed=0):
    """Return params, tokens and loss of runs at 1e18 ... 1e21 FLOPs, log-spaced `width` times around the optimum."""
    flops = np.repeat(np.geomspace(1e18, 1e21, budgets), sizes)
    params = best_size(law, flops) * np.tile(np.geomspace(1 / width, width, sizes), budgets)
    tokens = flops / (6 * params)
    return (
        params,
        tokens,
        loss_of(law, params, tokens) * np.exp(np.random.default_rng(seed).normal(0, noise, len(flops))),
    )
