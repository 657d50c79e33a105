"""What `--help` says of a command, typed as the reader types it."""

from collections.abc import Sequence

from absl import flags


def build(doc: str | None, flag_values: flags.FlagValues, examples: Sequence[str], config: str | None) -> str:
    """Return the help of a command.

    Args:
      config: what --config takes, None for a command without one.
    """
    rows = [_row(flag_values[name]) for name in flag_values if name != "h"]
    if config:
        rows.insert(0, ("--config=FILE[:ARG]", config))
        rows.insert(1, ("--config.SECTION.FIELD=VALUE", "change one field; None switches off what may be off"))
    width = max(len(name) for name, _ in rows)
    parts = [(doc or "").strip(), "Flags:\n" + "\n".join(f"  {name:<{width}}  {text}" for name, text in rows)]
    if examples:
        parts.append("Examples:\n" + "\n".join(f"  {example}" for example in examples))
    return as_typed("\n\n".join(parts))


def as_typed(text: str) -> str:
    """Return a text with its commands as they are typed for this package: `bigjax train` where it is bigjax's own."""
    return text.replace("python -m experiments.", "bigjax ") if __package__ == "bigjax.experiments" else text


def _row(flag: flags.Flag) -> tuple[str, str]:
    name = f"--{flag.name}" if flag.boolean else f"--{flag.name}=VALUE"
    has_default = flag.default is not None and not flag.boolean and flag.default != ""
    return name, f"{flag.help} (default {flag.default})" if has_default else flag.help
