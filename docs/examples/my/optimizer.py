"""Momentum of which only the sign counts (Bernstein et al. 2018)."""

import optax

from bigjax.train.optimizers import with_decay


def signum(cfg, specs, rate):
    direction = optax.chain(optax.trace(cfg.momentum), optax.scale_by_sign())
    return with_decay(cfg, specs, rate, direction, decoupled=True)
