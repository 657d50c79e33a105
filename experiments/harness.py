"""A trained run as lm-evaluation-harness drives it (`pip install -e '.[lm-eval]'`):

    from lm_eval import simple_evaluate
    from bigjax.experiments.harness import RunLM

    print(simple_evaluate(RunLM("runs/quickstart"), tasks=["lambada_openai"])["results"])  # downloads its data

`hf:PATH` of a Hugging Face folder may stand for the run. A text starts with what its tokenizer.json puts there, which
is never scored; in rolling likelihoods the harness's own models score it, too, after another one. There are no chat
templates.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]
from lm_eval.models.utils import normalize_gen_kwargs  # pyright: ignore[reportMissingImports]

from bigjax import data
from bigjax.errors import UserError
from bigjax.evaluate import generation, writing
from bigjax.evaluate.likelihood import Scorer
from bigjax.run import runtime

from . import cli, config_source, trained

DRAWN = ("top_k", "top_p", "min_p")
"""What requests may say about how to draw tokens, besides the temperature."""


class RunLM(LM):
    """The weights of a run's newest checkpoint, or of `hf:PATH`, asked for likelihoods and texts.

    Args:
      workdir: the run folder, or `hf:PATH`. overrides: fields of its config that change, as in `{"mesh.tensor": 2}`.
      seed: draws the tokens of requests that sample.

    Raises:
      UserError: as the commands that read a run folder; or the model is an encoder.
    """

    def __init__(self, workdir: str, overrides: Mapping[str, Any] | None = None, seed: int = 0):
        super().__init__()
        runtime.configure_jax()
        config = config_source.load(workdir)
        try:
            config.update_from_flattened_dict(dict(overrides or {}))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"overrides={overrides!r}: the config of {workdir} has no such field: {error}") from None
        cfg = cli.load_config(config)
        self.run = trained.load(workdir, cfg)
        tokenizer = data.load_tokenizer(trained.folder_of(workdir))
        self.scorer = Scorer(cfg, self.run.model, self.run.weights, tokenizer, self.run.layout)
        self._key = jax.random.key(seed)

    def loglikelihood(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        """Return the log probability of each continuation after its context, and whether it is the likeliest."""
        with jax.set_mesh(self.run.mesh):
            found = self.scorer.after([request.args for request in requests])
        return [(one.log_prob, one.greedy) for one in found]

    def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
        """Return the log probability of each whole text."""
        with jax.set_mesh(self.run.mesh):
            return self.scorer.rolling([request.args[0] for request in requests])

    def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
        """Return what is written after each context, up to and without any of its `until`.

        `max_gen_toks` is 256 where a request does not say; a context keeps the tokens at its end that leave room.

        Raises:
          UserError: a request asks for something else than `until`, a length, a temperature, `do_sample` and `DRAWN`.
        """
        asked = [normalize_gen_kwargs(request.args[1]) for request in requests]
        written: dict[int, str] = {}
        for settings in {str(one): one for one in asked}.values():
            alike = [i for i, one in enumerate(asked) if one == settings]
            size = self.scorer.cfg.train.global_batch_size
            for first in range(0, len(alike), size):
                chosen = alike[first : first + size]
                texts = self._write([requests[i].args[0] for i in chosen], dict(settings))
                written |= zip(chosen, texts, strict=True)
        return [written[i] for i in range(len(requests))]

    def _write(self, contexts: Sequence[str], asked: dict[str, Any]) -> list[str]:
        cfg, tokenizer = self.scorer.cfg, self.scorer.tokenizer
        until, longest = [text for text in asked.pop("until") if text], asked.pop("max_gen_toks")
        temperature = asked.pop("temperature", 1.0) if asked.pop("do_sample") else 0.0
        asked.pop("temperature", None)
        drawn = {name: asked.pop(name, None) for name in DRAWN}
        if asked:
            raise UserError(f"generation settings that a run does not have: {', '.join(sorted(asked))}")
        prompts: list[list[int]] = []
        common: dict[str, Any] = {"eos_id": tokenizer.eos_id}
        for context in contexts:
            ids, ends = writing.prompt_of(cfg, tokenizer, context)
            if ends:
                common = {"eos_id": ends.end, "start_id": ends.start}
            elif longest >= cfg.data.seq_len:
                raise UserError(f"max_gen_toks={longest} leaves no room for a context: data.seq_len={cfg.data.seq_len}")
            prompts.append((ids if ends else ids[longest - cfg.data.seq_len :]) or [self.scorer.prefix_id])
        stop = [tokenizer.encode(text).tolist() for text in until]
        how: dict[str, Any] = {
            "max_new_tokens": longest,
            "temperature": temperature,
            "stop": stop,
            "key": self._key,
            **drawn,
        }
        with jax.set_mesh(self.run.mesh):
            model, weights, layout = self.run.model, self.run.weights, self.run.layout
            ids = generation.generate(model, weights, prompts, layout=layout, **how, **common)
        return [writing.until(tokenizer.decode(one), until) for one in ids]
