"""The coefficient of the balancing loss of Mixtral means what it means to transformers, to first order."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="parity with transformers needs PyTorch")

from bigjax import models  # noqa: E402
from bigjax.interop import hf  # noqa: E402
from tests.parity import folders  # noqa: E402

TOKENS = np.random.default_rng(0).integers(0, 300, (4, 32))
EXPERTS, CHOSEN, COEFFICIENT = 4, 2, 0.02


@pytest.mark.parametrize("layers", [2, 3, 8])
@pytest.mark.parametrize(("router", "apart"), [(1e-4, 1e-4), (1.0, 0.1)], ids=["near balance", "as initialised"])
def test_what_is_added_to_the_loss(tmp_path, layers, router, apart):
    """Near balance each layer's loss is K; away from it shares and gates of layers and rows go together."""
    said = {"num_hidden_layers": layers, "num_local_experts": EXPERTS, "num_experts_per_tok": CHOSEN}
    said |= {"intermediate_size": 32, "router_aux_loss_coef": COEFFICIENT}
    model = folders.save("mixtral", tmp_path, **said)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("gate.weight"):
                weight.mul_(router)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        theirs = COEFFICIENT * model(torch.from_numpy(TOKENS), output_router_logits=True).aux_loss.item()
    cfg, params = hf.import_checkpoint(tmp_path)
    assert cfg.moe.aux_loss == pytest.approx(COEFFICIENT / layers)
    family = models.build(cfg).family
    ours = float(jax.jit(lambda p: family.apply(p, TOKENS, cfg)[1]["loss"].mean())(params))
    assert ours == pytest.approx(theirs, rel=apart)
    if router < 1:
        assert ours == pytest.approx(COEFFICIENT * CHOSEN, rel=1e-3)
        return  # whom such a router chooses, rounding decides
    hf.export_checkpoint(params, cfg, tmp_path / "out")
    assert hf.import_checkpoint(tmp_path / "out")[0].moe.aux_loss == cfg.moe.aux_loss
    assert f'"router_aux_loss_coef": {COEFFICIENT}' in (tmp_path / "out/config.json").read_text()
