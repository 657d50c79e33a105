"""The language of a text, by py3langid, whose model comes with the package (Lui & Baldwin 2012)."""

from collections.abc import Callable
from dataclasses import dataclass

from bigjax.config.fields import bounded
from bigjax.prepare.step import Dropped, Record, Step, text_of
from bigjax.prepare.text import blocks
from bigjax.prepare.words import any_word


@dataclass(frozen=True)
class Language:
    """Which languages are kept."""

    keep: tuple[str, ...] = ()
    """Codes of ISO 639-1 of the languages that are kept, as `en`; empty means all."""
    min_score: float = bounded(0.65, minimum=0, maximum=1)
    """The probability of the language, at least."""
    chars: int = bounded(5000, minimum=1)
    """The first characters of a text that are looked at."""


def _build(options: Language, cfg) -> Callable[[Record], Record | Dropped]:
    langid = blocks.imported("py3langid.langid")
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)

    def apply(record: Record) -> Record | Dropped:
        text = text_of(record, cfg.text_key)
        if not any_word(text):
            return Dropped("empty")
        language, score = identifier.classify(text[: options.chars])
        if options.keep and language not in options.keep:
            return Dropped("other_language", language)
        if score < options.min_score:
            return Dropped("unsure", f"{language} {score:.2f}")
        return {**record, "language": language}

    return apply


STEP = Step(_build, Language, counted=("language",))
