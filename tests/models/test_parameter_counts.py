"""Parameter counts of every named config equal counts made elsewhere: transformers, publications, closed forms.

Only declarations are counted; no array is made.
"""

import dataclasses
import functools

import pytest

from bigjax import models, params
from bigjax.config import Config, ModelConfig, strict
from bigjax.train.flops import model_flops_per_token
from configs import gemma, gpt, gshard, llama, mistral, mixtral, qwen, scaling, t5, transformer

PUBLISHED = {
    # Counts of the released checkpoints.
    ("gpt", "gpt2-small"): 124_439_808,
    ("gpt", "gpt2-medium"): 354_823_168,
    ("gpt", "gpt2-large"): 774_030_080,
    ("gpt", "gpt2-xl"): 1_557_611_200,
    ("llama", "1b"): 1_235_814_400,
    ("llama", "8b"): 8_030_261_248,
    ("llama", "70b"): 70_553_706_496,
    ("gemma", "2b"): 2_614_341_888,
    ("gemma", "9b"): 9_241_705_984,
    ("gemma", "27b"): 27_227_128_320,
    ("mistral", "7b"): 7_241_732_096,
    ("mixtral", "8x7b"): 46_702_792_704,
    ("mixtral", "8x22b"): 140_620_634_112,
    ("qwen", "qwen2-0.5b"): 494_032_768,
    ("qwen", "qwen2-7b"): 7_615_616_512,
    ("qwen", "qwen3-0.6b"): 596_049_920,
    ("qwen", "qwen3-1.7b"): 1_720_574_976,
    ("qwen", "qwen3-8b"): 8_190_735_360,
}
MODULES = {
    "gpt": gpt,
    "llama": llama,
    "scaling": scaling,
    "gemma": gemma,
    "mistral": mistral,
    "qwen": qwen,
    "mixtral": mixtral,
    "gshard": gshard,
}
BIASES = ("all", "qkv", "mlp", "none")
NAMED = [(module, arg) for module in MODULES for arg in MODULES[module].ARGUMENTS]


@functools.cache
def model_config(module: str, arg: str) -> ModelConfig:
    return strict.from_dict(Config, MODULES[module].get_config(arg)).model


def count(cfg: ModelConfig, without: tuple[str, ...] = ()) -> int:
    return params.count(models.build(cfg).specs, without)


@pytest.mark.parametrize("name", PUBLISHED, ids="/".join)
def test_published(name):
    assert count(model_config(*name)) == PUBLISHED[name]


TABLE_2_1 = {
    # Brown et al. 2020, table 2.1: layers, width, heads, head dim.
    "gpt3-small": (12, 768, 12, 64),
    "gpt3-medium": (24, 1024, 16, 64),
    "gpt3-large": (24, 1536, 16, 96),
    "gpt3-xl": (24, 2048, 24, 128),
    "gpt3-2.7b": (32, 2560, 32, 80),
    "gpt3-6.7b": (32, 4096, 32, 128),
    "gpt3-13b": (40, 5140, 40, 128),
    "gpt3-175b": (96, 12288, 96, 128),
}


@pytest.mark.parametrize("name", TABLE_2_1)
def test_gpt3(name):
    """GPT-2's architecture: V = 50257, 2048 positions, an MLP of four times the width, biases everywhere."""
    L, D, H, K = TABLE_2_1[name]
    attention = 3 * (D * H * K + H * K) + (H * K * D + D)
    mlp = (D * 4 * D + 4 * D) + (4 * D * D + D)
    norms = 2 * 2 * D
    assert count(model_config("gpt", name)) == (50257 + 2048) * D + L * (attention + mlp + norms) + 2 * D


@pytest.mark.parametrize("name", scaling.ARGUMENTS)
def test_scaling(name):
    """Kaplan et al. 2020, table 1: 12 L D^2 in the blocks; plus two tables and the scales of norms."""
    L, V, K = int(name[1:]), 4096, 64
    D = 64 * L
    assert count(model_config("scaling", name)) == 12 * L * D**2 + 2 * V * D + L * (2 * D + 2 * K) + D
    assert count(model_config("scaling", name), without=("embedding", "norm")) == 12 * L * D**2 + V * D


TABLE_1 = {
    # Lepikhin et al. 2020, table 1: parameters, experts, layers of encoder and decoder.
    "12.5b": (12.5e9, 128, 12),
    "37b": (37e9, 128, 36),
    "50b": (50e9, 512, 12),
    "150b": (150e9, 512, 36),
    "200b": (200e9, 2048, 12),
    "600b": (600e9, 2048, 36),
}


@pytest.mark.parametrize("name", TABLE_1)
def test_gshard(name):
    """Every other layer of both stacks is sparse; experts of 2 x 1024 x 8192 weights (appendix A.2).

    The paper's figures are round, and all lower.
    """
    printed, E, L = TABLE_1[name]
    D, F, H, K, V = 1024, 8192, 16, 128, 64000
    attention, mlp = 4 * D * H * K, 2 * D * F
    attentions, norms = L + L // 2, 2 * L + L // 2  # with those to what was read
    rest = V * D + attentions * attention + (norms + 2) * D + L // 2 * (mlp + D * E)
    assert count(model_config("gshard", name)) == rest + L // 2 * E * mlp
    assert printed < L // 2 * E * mlp < 1.045 * printed
    assert count(model_config("gshard", name)) < 1.07 * printed
    active = params.count(models.build(model_config("gshard", name)).specs, experts=2)
    assert active == rest + L // 2 * 2 * mlp


def test_mixtral_has_13b_active_parameters():
    """Jiang et al. 2024, section 1: "13B active parameters" of 47B."""
    cfg = model_config("mixtral", "8x7b")
    found = params.counts(models.build(cfg).specs, cfg.moe.experts_per_token)
    expert = 3 * 4096 * 14336
    assert found["params_active"] == found["params_total"] - 32 * 6 * expert == 12_879_925_248
    # 6 for each that multiplies: all but the table that is looked up and the norms; and 12 D for each key.
    multiplying = found["params_active"] - 32000 * 4096 - 65 * 4096
    assert model_flops_per_token(cfg, models.build(cfg).specs, 100) == 6 * multiplying + 12 * 32 * 4096 * 100
    dense = model_config("llama", "1b")
    assert "params_active" not in params.counts(models.build(dense).specs, 2)


def test_mixtral_8x22b_of_either_vocabulary():
    """The base model has 32,000 pieces, the instruction-tuned one 32,768: 140,630,071,296, by transformers' classes."""
    cfg = dataclasses.replace(model_config("mixtral", "8x22b"), vocab_size=32768)
    assert count(cfg) == 140_630_071_296 == count(model_config("mixtral", "8x22b")) + 2 * 768 * 6144
    torch = pytest.importorskip("torch", reason="counting transformers' parameters needs PyTorch")
    import transformers

    sizes = {"hidden_size": 6144, "intermediate_size": 16384, "num_hidden_layers": 56}
    sizes |= {"num_attention_heads": 48, "num_key_value_heads": 8, "num_local_experts": 8}
    with torch.device("meta"):
        theirs = transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes, vocab_size=32768))
    assert sum(w.numel() for w in theirs.parameters()) == count(cfg)


def transformers_count(cfg: ModelConfig) -> int:
    torch = pytest.importorskip("torch", reason="counting transformers' parameters needs PyTorch")
    from transformers import AutoModelForCausalLM

    from tests.parity import peers

    # GPT-2 has no windows, which hold no parameters.
    plain = dataclasses.replace(cfg, layer_windows=()) if cfg.positions == "learned" else cfg
    with torch.device("meta"):
        return sum(w.numel() for w in AutoModelForCausalLM.from_config(peers.config(plain)).parameters())


def has_a_twin(module: str, arg: str) -> bool:
    """Whether transformers has it: GShard is missing, attention of another width than GPT-2's, and squared relu."""
    cfg = model_config(module, arg)
    return module not in ("scaling", "gshard") and (module != "gpt" or cfg.num_heads * cfg.head_dim == cfg.d_model)


@pytest.mark.parametrize("name", [name for name in NAMED if has_a_twin(*name)], ids="/".join)
def test_transformers_counts_the_same(name):
    cfg = model_config(*name)
    assert transformers_count(cfg) == count(cfg)


@pytest.mark.parametrize("name", t5.ARGUMENTS)
def test_t5(name):
    """transformers ties the output table of a new model in any case: T5 v1.1 has one more."""
    torch = pytest.importorskip("torch", reason="counting transformers' parameters needs PyTorch")
    from transformers import T5ForConditionalGeneration

    from tests.parity import encdec_peers

    cfg = strict.from_dict(Config, t5.get_config(name)).model
    with torch.device("meta"):
        theirs = sum(w.numel() for w in T5ForConditionalGeneration(encdec_peers.t5_config(cfg)).parameters())
    untied = 0 if cfg.tie_embeddings else cfg.vocab_size * cfg.d_model
    assert count(cfg) == theirs + untied
    released = {"small": 60_506_624, "base": 222_903_552, "large": 737_668_096, "v1_1-small": 76_961_152}
    assert count(cfg) == released.get(name, count(cfg))


@pytest.mark.parametrize(("name", "total"), [("base", 63_045_632), ("big", 214_171_648)])
def test_transformer(name, total):
    """By hand: attention 4 D^2, MLP 2 D F + F + D, norms 2 D; Vaswani et al. 2017, table 3: 65 and 213 M."""
    cfg = strict.from_dict(Config, transformer.get_config(name)).model
    D, F = cfg.d_model, cfg.d_ff
    attention, mlp, norm = 4 * D * D, 2 * D * F + F + D, 2 * D
    layers = 6 * (attention + mlp + 2 * norm) + 6 * (2 * attention + mlp + 3 * norm)
    assert count(cfg) == total == 37_000 * D + layers


@pytest.mark.parametrize("family", ["decoder", "encoder", "encdec"])
def test_biases_of_attention_and_of_mlps_are_independent(family):
    """What each choice leaves out, by name; kinds, and so decay, rates and plans, follow from what is declared."""
    sizes = {
        "num_layers": 2,
        "d_model": 8,
        "num_heads": 2,
        "positions": "none" if family == "decoder" else "sinusoidal",
    }
    cfg = ModelConfig(family=family, activation="relu", **sizes)
    found = {bias: params.names(models.build(dataclasses.replace(cfg, bias=bias)).specs) for bias in BIASES}
    within = {name: spec for name, spec in found["all"].items() if not name.startswith("head/")}
    everywhere = {name for name, spec in within.items() if spec.kind == "bias"}
    attention = {name for name in everywhere if "/attn/" in name or "/cross/" in name}
    output = {name for name in attention if name.endswith("/o_bias")}
    assert attention and everywhere - attention and output
    lacking = {bias: set(within) - set(declared) for bias, declared in found.items()}
    expected = {"all": set(), "none": everywhere, "mlp": attention, "qkv": everywhere - attention | output}
    assert lacking == expected
    for declared in found.values():
        for name, spec in declared.items():
            full = found["all"][name]
            assert (spec.shape, spec.axes, spec.kind) == (full.shape, full.axes, full.kind)


def test_every_named_config_is_counted_here():
    counted = {*PUBLISHED, *(("gpt", name) for name in TABLE_2_1), *(("scaling", name) for name in scaling.ARGUMENTS)}
    counted |= {("gshard", name) for name in TABLE_1}
    aliases = {("gpt", alias) for alias in gpt.ALIASES}
    assert counted | aliases == set(NAMED)
    for alias, name in gpt.ALIASES.items():
        assert model_config("gpt", alias) == model_config("gpt", name)
