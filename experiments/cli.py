"""The command line that every command shares: flags, --config with overrides, --help, and errors without tracebacks.

Overrides are `--config.SECTION.FIELD=VALUE`. `None` switches a field off that may be (`--config.optim.grad_clip=None`),
a bool is `--config.model.qk_norm` or `--noconfig.model.qk_norm`, and a tuple is the flag repeated or a Python tuple
(`--config.data.weights="(1, 2)"`). This file does not import JAX, so that --help and --print_config answer at once.
"""

import difflib
import errno
import io
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from bigjax.config import Config, shipped, strict
from bigjax.config import fields as schema
from bigjax.errors import UserError
from bigjax.interop.hf.config import PREFIX
from bigjax.paths import AnyPath, as_path
from bigjax.run.folder import RunFolder

from . import config_source, show_config

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
"""What a system says of a disk, or a file, that takes no more."""

_OVERRIDE = re.compile(r"^--?(?:no)?config\.([^=]*)(?:=(.*))?$", re.DOTALL)


def main(
    run: Callable[[flags.FlagValues], int | None],
    *,
    doc: str | None,
    define_flags: Callable[[flags.FlagValues], None] | None = None,
    examples: Sequence[str] = (),
    config: bool = True,
    config_of_run: bool = False,
    argv: Sequence[str] | None = None,
) -> None:
    """Parse the command line and call `run(flag_values)`; what it returns is the exit status.

    `define_flags(flag_values)` defines the command's own flags. With `config` the command also takes --config (a
    ConfigDict in `flag_values.config`, None if absent) and answers --print_config and --diff without calling `run`.
    With `config_of_run` the config is that of the run folder --workdir, which a command must then define.
    A user error, from parsing or from `run`, a file that may not be used or a full disk is one message on stderr and
    exit status 2; --debug adds the traceback. Any other exception passes through.

    Raises:
        SystemExit: the exit status is not 0.
    """
    argv = list(sys.argv if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character is no reason to end
    try:
        if config_of_run and not {"-h", "-help", "--help"} & set(argv):
            if (given := config_of(argv)) is not None:
                raise UserError(f"--config={given} has no use here: the config is that of --workdir")
            argv.append(f"--config={_workdir_of_run(argv)}")
        status = _main(run, doc, define_flags, examples, config, argv)
    except (UserError, flags.Error, OSError) as error:
        # Even to ask whether a file exists may be forbidden, and so may any of a run's files: it is the user's to mend.
        mended = isinstance(error, UserError | PermissionError)
        if isinstance(error, OSError) and not (mended or error.errno in NO_ROOM):
            raise
        if "--debug" in argv:
            traceback.print_exc()
        print(f"error: {_message(error)}", file=sys.stderr)
        status = getattr(error, "exit_code", UserError.exit_code)
    except KeyboardInterrupt:
        # Once it trains, a run turns Ctrl-C into a checkpoint; before that there is nothing to save.
        print("interrupted", file=sys.stderr)
        status = 130
    if status:
        sys.exit(status)


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error)


def load_config(config: ConfigDict | None) -> Config:
    """Turn the value of --config into the frozen config.

    Raises:
        UserError: --config was not given.
        ConfigError: a field is wrong, or fields clash.
    """
    if config is None:
        raise UserError("--config=FILE[:ARG] is missing, e.g. --config=gpt:d12")
    return strict.from_dict(Config, config)


def required(flag_values: flags.FlagValues, name: str) -> Any:
    """Return the value of a flag that the command cannot do without.

    Raises:
        UserError: the flag was not given.
    """
    if flag_values[name].value is None:
        raise UserError(f"--{name} is missing: {flag_values[name].help}")
    return flag_values[name].value


def config_of(argv: Sequence[str]) -> str | None:
    """Return what the command line gives as --config."""
    return _take_config(list(argv), Config)[1]


def out_path(flag_values: flags.FlagValues) -> AnyPath | None:
    """Return the file that --out asks for, None if it was not given, after making the folders above it.

    Raises:
        UserError: no file can be written there, which is better said before minutes of work than after.
    """
    if flag_values.out is None:
        return None
    out = as_path(flag_values.out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if isinstance(out, Path):  # an object store is asked when there is something to write
            tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror}") from error
    return out


def write_out(out: AnyPath | None, value: Any) -> None:
    """Write the JSON that --out asks for, if it was given.

    Raises:
        UserError: the file cannot be written.
    """
    from bigjax.run.json_files import write_json

    if out is None:
        return
    try:
        write_json(out, value)
    except OSError as error:
        raise UserError(f"--out={out} cannot be written: {error.strerror}") from error


def default_workdir(argv: Sequence[str]) -> str:
    """Return the run folder of a command line without --workdir.

    It is `runs/NAME` or `runs/NAME-ARG` after `--config=.../NAME.py:ARG`, with the last part of ARG if that is a path,
    `runs/NAME` after `--config=hf:.../NAME`, or the folder itself if --config is a run's.
    """
    source = shipped.located(config_of(argv) or "")
    if source.startswith(PREFIX):
        return str(Path("runs", Path(source.removeprefix(PREFIX)).resolve().name))
    if as_path(source).is_dir():
        return source
    file, _, argument = source.partition(":")
    return str(Path("runs", "-".join(filter(None, (Path(file).stem, Path(argument.removeprefix(PREFIX)).name)))))


def parse_range(name: str, value: str | None) -> range | None:
    """Return the range that `FIRST-LAST` means, both included, or None for None.

    Raises:
        UserError: it is not two whole numbers in ascending order.
    """
    if value is None:
        return None
    match = re.fullmatch(r"(\d+)-(\d+)", value)
    if not match or int(match[1]) > int(match[2]):
        raise UserError(f"--{name}={value} is not a range of steps such as 10-12")
    return range(int(match[1]), int(match[2]) + 1)


def _workdir_of_run(argv: list[str]) -> str:
    values = [argument.partition("=")[2] for argument in argv if argument.startswith(("--workdir=", "-workdir="))]
    if not values:
        raise UserError("--workdir=RUN is missing: the folder of the run")
    if values[-1].startswith(PREFIX):
        return values[-1]
    return str(RunFolder.existing(values[-1]).path)


def _main(run, doc, define_flags, examples, config, argv) -> int | None:
    flag_values = flags.FlagValues()
    if define_flags:
        define_flags(flag_values)
    flags.DEFINE_boolean("debug", False, "show the traceback of an error", flag_values=flag_values)
    flags.DEFINE_boolean("help", False, "show this help", short_name="h", flag_values=flag_values)
    if config:
        flags.DEFINE_boolean("print_config", False, "print the resolved config and stop", flag_values=flag_values)
        flags.DEFINE_string("diff", None, "print how another config differs and stop", flag_values=flag_values)
    if {"-h", "-help", "--help"} & set(argv):
        print(_help(doc, flag_values, examples, config))
        return None
    source = _parse(flag_values, argv) if config else _parse_flags(flag_values, argv)
    # Libraries that read absl's global flags must find them parsed.
    flags.FLAGS.mark_as_parsed()
    if config and (flag_values.print_config or flag_values.diff is not None):
        _show_config(flag_values, source)
        return None
    return run(flag_values)


def _parse(flag_values: flags.FlagValues, argv: list[str]) -> str | None:
    """Parse a command line with --config and its overrides; return where the config comes from."""
    source = _take_config(argv, Config)[1]
    config = None if source is None else config_source.load(source)
    declared: type[Config] = Config
    if config is not None:
        config, declared = config_source.with_named(config, _named(argv))
    argv, source, switched_off = _take_config(argv, declared)
    overrides = [match[1] for match in map(_OVERRIDE.match, argv) if match] + switched_off
    if config is None:
        if overrides:
            raise UserError(f"--config.{overrides[0]} changes a config, but --config=FILE[:ARG] is missing")
        flags.DEFINE_string("config", None, "", flag_values=flag_values)
        return _parse_flags(flag_values, argv)
    for path in overrides:
        _check_override(config, declared, path)
    for path in switched_off:
        config.update_from_flattened_dict({path: None})
    config_flags.DEFINE_config_dict("config", config, flag_values=flag_values, sys_argv=argv)
    _parse_flags(flag_values, argv, declared)
    return source


def _named(argv: Sequence[str]) -> dict[str, str]:
    """Return the overrides that say which sections the config has, as those of a family."""
    matches = [match for match in map(_OVERRIDE.match, argv) if match and match[2] is not None]
    return {match[1]: match[2] for match in matches if match[1] in config_source.NAMING}


def _take_config(argv: list[str], declared: type[Config]) -> tuple[list[str], str | None, list[str]]:
    """Return argv without --config and without overrides to None, the value of --config, and those overrides' paths.

    The file is loaded here rather than by a config-file flag, which hides the file's own error in a traceback, and
    None is handled here because no typed flag parses it.
    """
    kept, source, switched_off = argv[:1], None, []
    arguments = iter(argv[1:])
    for argument in arguments:
        # A bool may stand alone; any other override without "=" is followed by its value.
        match = _OVERRIDE.match(argument)
        if match and match[2] is None and not _is_switch(declared, match[1]):
            argument = f"{argument}={next(arguments, '')}"
            match = _OVERRIDE.match(argument)
        if argument in ("--config", "-config"):
            source = next(arguments, "")
        elif argument.startswith(("--config=", "-config=")):
            source = argument.partition("=")[2]
        elif match and match[2] == "None":
            kept = [other for other in kept if not _sets(other, match[1])]
            switched_off.append(match[1])
        else:
            if match and match[1] in switched_off:
                switched_off.remove(match[1])
            kept.append(argument)
    return kept, source, switched_off


def _is_switch(declared: type[Config], path: str) -> bool:
    declaration = schema.field_paths(declared).get(path)
    return declaration is not None and schema.unwrap_optional(declaration[0])[0] is bool


def _sets(argument: str, path: str) -> bool:
    match = _OVERRIDE.match(argument)
    return match is not None and match[1] == path


def _check_override(config: ConfigDict, declared: type[Config], path: str) -> None:
    if path in schema.sections(declared):
        example = next(name for name in schema.field_paths(declared) if name.startswith(f"{path}."))
        raise UserError(f"--config.{path} is a section: set its fields one by one, e.g. --config.{example}=...")
    if path not in schema.field_paths(declared):
        raise UserError(f"--config.{schema.unknown_field(declared, path)}")
    node: Any = config
    for name in path.split("."):
        if name not in node:
            raise UserError(
                f"{path} is missing from the config, so no flag can set it: let get_config build it "
                "with strict.to_config_dict"
            )
        node = node[name]


def _parse_flags(flag_values: flags.FlagValues, argv: list[str], declared: type[Config] = Config) -> None:
    try:
        rest = flag_values(argv)
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, [*flag_values, "config"], n=1)
        hint = f"did you mean --{near[0]}?" if near else "--help lists the flags"
        raise UserError(f"unknown flag --{error.flagname}: {hint}") from error
    except flags.IllegalFlagValueError as error:
        raise UserError(_illegal_value(str(error), declared)) from error
    except ValueError as error:  # a switch with a value, as --noanalytic=3
        raise UserError(str(error)) from error
    if rest[1:]:
        raise UserError(f"unexpected argument {rest[1]!r}: every argument is a flag, --NAME=VALUE")


def _illegal_value(message: str, declared: type[Config]) -> str:
    """Reword absl's 'flag --config.optim.lr=a: could not convert ...' as what the field accepts."""
    match = re.match(r"flag --config\.([^=]+)=(.*?): ", message, re.DOTALL)
    if not match or match[1] not in schema.field_paths(declared):
        return message.removeprefix("flag ")
    expected = schema.expected(declared, match[1])
    hint = ": repeat the flag, or write a Python tuple" if expected.startswith("a tuple") else ""
    return f"--config.{match[1]}={match[2]} is not {expected}{hint}"


def _show_config(flag_values: flags.FlagValues, source: str | None) -> None:
    cfg = load_config(flag_values.config)
    if flag_values.print_config:
        print(show_config.format_config(cfg))
    if flag_values.diff is not None:
        other = load_config(config_source.load(flag_values.diff))
        print(show_config.format_diff(source or "", cfg, flag_values.diff, other))


def _help(doc: str | None, flag_values: flags.FlagValues, examples: Sequence[str], config: bool) -> str:
    rows = [_help_row(flag_values[name]) for name in flag_values if name != "h"]
    if config:
        sources = "config file, or the name of a shipped one, and its argument; the folder of a run, or hf:PATH"
        rows.insert(0, ("--config=FILE[:ARG]", sources))
        rows.insert(1, ("--config.SECTION.FIELD=VALUE", "change one field; None switches off what may be off"))
    width = max(len(name) for name, _ in rows)
    parts = [(doc or "").strip(), "Flags:\n" + "\n".join(f"  {name:<{width}}  {text}" for name, text in rows)]
    if examples:
        parts.append("Examples:\n" + "\n".join(f"  {example}" for example in examples))
    return as_typed("\n\n".join(parts))


def as_typed(text: str) -> str:
    """Return a text with its commands as they are typed for this package: `bigjax train` where it is bigjax's own."""
    return text.replace("python -m experiments.", "bigjax ") if __package__ == "bigjax.experiments" else text


def _help_row(flag: flags.Flag) -> tuple[str, str]:
    name = f"--{flag.name}" if flag.boolean else f"--{flag.name}=VALUE"
    has_default = flag.default is not None and not flag.boolean and flag.default != ""
    return name, f"{flag.help} (default {flag.default})" if has_default else flag.help
