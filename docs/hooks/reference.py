"""Pages of the reference that are made from the code when the site is built."""

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from bigjax.__main__ import commands, overview  # noqa: E402
from bigjax.config import Config, named  # noqa: E402
from bigjax.config.fields import describe, sections  # noqa: E402
from bigjax.config.fields import fields as declared  # noqa: E402
from bigjax.prepare.pipeline import Preparation  # noqa: E402
from bigjax.prepare.step import STEPS, load  # noqa: E402

FIRST = "---\nsearch:\n  boost: 4\n---\n\n"
"""What a page begins with that a search shows before the pages on Python."""

Pages = dict[str, str]
"""The text of pages by their place in docs/."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages into the navigation, below Reference."""
    if str(ROOT) not in sys.path:  # again: mkdocs restores the path when it has loaded the hooks
        sys.path.insert(0, str(ROOT))
    kinds = {
        "Config": ("config", of_config()),
        "Commands": ("commands", of_commands()),
        "Named configs": ("configs", of_named_configs()),
        "Python": ("python", of_python()),
    }
    below = [{kind: list(pages)} for kind, (_, pages) in kinds.items()]
    for entry in config.nav or []:
        if isinstance(entry, dict) and "Reference" in entry:
            entry["Reference"] = ["reference/index.md", *below]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for place, text in (of_config() | of_commands() | of_named_configs() | of_python()).items():
        files.append(File.generated(config, place, content=text))
    return files


# Config fields


@cache
def of_config() -> Pages:
    """Return a page for each section of the config and of a preparation, and first one that lists them."""
    found: dict[str, tuple[str, str, type]] = {"config": ("config", "", Config)}
    found |= {path: (path, f"{path}.", cls) for path, cls in sections(Config).items()}
    for kind, path, known in (("model.family", "model.{}", named.FAMILIES), ("train.objective", "task", named.TASKS)):
        for name in known:
            own = named.load(kind, name, known).fields
            if fields(own):
                prefix = path.format(name)
                title = f"{prefix} of {kind}={name}"
                found[prefix if "{}" in path else f"{prefix}-{name}"] = (title, f"{prefix}.", own)
    found["prepare"] = ("prepare", "", Preparation)
    for name in STEPS:
        if fields(options := load(name).fields):
            found[f"prepare-{name}"] = (f"{name} of a preparation", f"{name}.", options)
    rows = [
        f"- [`{title}`]({name}.md): {_first_sentence(inspect.getdoc(cls) or '')}"
        for name, (title, _, cls) in found.items()
    ]
    return {
        "reference/config/index.md": "\n".join(
            [
                "# Config fields",
                "",
                "A config has sections, and a section has fields. On the command line a field is changed by",
                "`--config.SECTION.FIELD=VALUE`. A field is *maths* if it changes the numbers that a run produces, and",
                "*plumbing* if it does not. The fingerprint of a run covers the maths only.",
                "",
                *rows,
            ]
        )
    } | {f"reference/config/{name}.md": _section_page(*what) for name, what in found.items()}


def _section_page(title: str, prefix: str, cls: type) -> str:
    said = meanings(cls)
    lines = [f"{FIRST}# {title}", "", inspect.getdoc(cls) or "", ""]
    for name, (annotation, _) in declared(cls).items():
        if is_dataclass(annotation):
            lines += [f"- [`{prefix}{name}`]({prefix}{name}.md) is a section of its own.", ""]
    for name, (annotation, field) in declared(cls).items():
        if is_dataclass(annotation):
            continue
        default = field.default if field.default is not MISSING else field.default_factory()
        kind = "plumbing" if "plumbing" in field.metadata else "maths"
        lines += [
            f"## {prefix}{name} {{ #{prefix}{name} }}",
            "",
            said.get(name, ""),
            "",
            f"{_capital(describe(annotation, field.metadata))}. Default: `{default!r}`. It is {kind}.",
            "",
        ]
    return "\n".join(lines)


def meanings(cls: type) -> dict[str, str]:
    """Return what stands under each field of a dataclass, as a string, by the field's name."""
    [body] = ast.parse(inspect.cleandoc("\n" + inspect.getsource(cls))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for node, after in zip(body.body, body.body[1:], strict=False):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            said = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
            if isinstance(said, str):
                found[node.target.id] = inspect.cleandoc(said)
    return found


# Commands


@cache
def of_commands() -> Pages:
    """Return a page for the help of each command and of each of its sub-commands."""
    pages = {"reference/commands/index.md": f"# Commands\n\n{_block(overview())}"}
    for name in commands():
        module = importlib.import_module(f"bigjax.experiments.{name}")
        file = Path(module.__file__ or "")
        if "cli.main" not in file.read_text() and file.name != "__init__.py":  # a program without flags
            pages[f"reference/commands/{name}.md"] = f"# {name}\n\n```python\n{file.read_text()}```\n"
            continue
        pages[f"reference/commands/{name}.md"] = f"{FIRST}# {name}\n\n{_as_page(help_of(name))}"
        for sub in _sub_commands(name, file):
            pages[f"reference/commands/{name}-{sub}.md"] = f"{FIRST}# {name} {sub}\n\n{_as_page(help_of(name, sub))}"
    return pages


def help_of(*words: str) -> str:
    """Return what `bigjax WORDS --help` says."""
    command = [sys.executable, "-m", "bigjax", *words, "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _as_page(said: str) -> str:
    """Return a help text with its sentences as such, unless lines of them are aligned, and its flags as they are."""
    sentences, _, flags = said.partition("\nFlags:\n")
    if not flags or any(line.startswith(" ") for line in sentences.splitlines()):
        return _block(said)
    return f"{sentences}\n{_block('Flags:' + chr(10) + flags)}"


def _sub_commands(name: str, file: Path) -> Iterator[str]:
    if file.name == "__init__.py":
        examples = getattr(importlib.import_module(f"bigjax.experiments.{name}.__main__"), "EXAMPLES", ())
        yield from examples if isinstance(examples, Mapping) else ()


# Named configs


@cache
def of_named_configs() -> Pages:
    """Return a page for each config that comes with bigjax, and first one that lists them."""
    pages: Pages = {}
    rows = []
    for file in sorted((ROOT / "configs").rglob("*.py")):
        name = file.relative_to(ROOT / "configs").with_suffix("").as_posix()
        if file.name == "__init__.py":
            continue
        module = importlib.import_module(f"configs.{name.replace('/', '.')}")
        question, _, rest = (inspect.getdoc(module) or "").partition("\n\n")
        arguments = getattr(module, "ARGUMENTS", ())
        takes = [f"Arguments: {', '.join(f'`{name}:{argument}`' for argument in arguments)}.", ""] if arguments else []
        pages[f"reference/configs/{name}.md"] = "\n".join([f"# {name}", "", f"*{question}*", "", *takes, rest, ""])
        rows.append(f"- [`{name}`]({name}.md): {' '.join(question.split())}")
    presets = [f"- `presets/{path.stem}`" for path in sorted((ROOT / "configs" / "presets").glob("*.json"))]
    head = ["# Named configs", "", "`--config=NAME` takes each of these by its name, `--config=NAME:ARGUMENT` too.", ""]
    layouts = ["", "Layouts of `llama:8b`, written by hand:", "", *presets]
    return {"reference/configs/index.md": "\n".join([*head, *rows, *layouts])} | pages


# Python


@cache
def of_python() -> Pages:
    """Return a page for each package, with the public functions and classes of its modules."""
    pages: Pages = {}
    rows = []
    for folder in sorted({path.parent for path in (ROOT / "bigjax").rglob("*.py")}):
        files = sorted(path for path in folder.glob("*.py") if path.stem != "__init__")
        package = ".".join(folder.relative_to(ROOT).parts)
        if package in ("bigjax.configs", "bigjax.experiments"):
            continue  # where installed configs and commands are found
        doc = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
        options = ("show_root_heading: false", "show_root_toc_entry: false", "members: false")
        root = [f"::: {package}", "    options:", *(f"      {option}" for option in options), "", *_handed_on(package)]
        modules = [f"::: {package}.{file.stem}" for file in files]
        pages[f"reference/python/{package}.md"] = "\n".join([f"# {package}", "", *root, "\n\n".join(modules), ""])
        rows.append(f"- [`{package}`]({package}.md): {_first_sentence(doc)}")
    head = ["# Python", "", "Each page is a package. Read its first lines, then look for the name that you need.", ""]
    return {"reference/python/index.md": "\n".join([*head, *rows])} | pages


def _handed_on(package: str) -> list[str]:
    """Return a line with what a package offers of its modules, and where each of these names stands."""
    room = importlib.import_module(package)
    found = [(name, getattr(room, name)) for name in getattr(room, "__all__", ()) if not name.startswith("_")]
    places = {name: f"{value.__module__}.{value.__qualname__}" for name, value in found if _is_own(value)}
    # The commands are no part of the package in a clone: what it hands on of them stands here.
    places = {
        name: place.removeprefix("bigjax.") if ".experiments." in place else place for name, place in places.items()
    }
    links = [f"[`{name}`][{place}]" for name, place in places.items()]
    own = [f"::: {place}" for place in places.values() if place.startswith("experiments.")]
    return [f"From here you get {', '.join(links)}.", "", *own, ""] if links else []


def _is_own(value: object) -> bool:
    return callable(value) and str(value.__module__).startswith("bigjax.")


def _block(text: str) -> str:
    return f"```text\n{text.rstrip()}\n```\n"


def _first_sentence(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
