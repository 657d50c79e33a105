"""The page of a preparation: what each rule kept and dropped, in the style of a report on runs, in a single file."""

from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from bigjax.science.report.page.tables import si

STYLE = """
table.plain th { padding: 6px 10px; color: var(--soft); font-weight: 600; }
table.plain th.numeric { text-align: right; }
.share { display: block; height: 5px; border-radius: 3px; background: var(--grid); min-width: 90px; margin-top: 5px; }
.share span { display: block; height: 100%; border-radius: 3px; background: var(--accent); }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: 3px 12px; font-size: 13px; }
.bars span { color: var(--soft); text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bars i { display: block; height: 6px; border-radius: 3px; min-width: 0; }
.bars i + i { margin-top: 3px; }
.read { background: var(--line); }
.written { background: var(--accent); }
.key i { display: inline-block; width: 22px; height: 8px; border-radius: 3px; margin: 0 6px 0 14px; }
h3 { font-size: 15px; margin: 18px 0 4px; }
"""


def write(found: dict[str, Any], path: Path, *, command: str, made: str) -> None:
    """Write the page of what `bigjax.prepare.manifest.report` found, whole or not at all.

    Args:
      command: what made it; made: when.
    """
    parts = resources.files("bigjax.science.report.page")
    page = (parts / "preparation.html").read_text(encoding="utf-8")
    sections = {
        "What is left": _overview(found),
        "Steps and rules": _rules(found),
        "Sizes": _sizes(found),
        "Values": _values(found),
        "Examples": _examples(found),
    }
    kept = {title: body for title, body in sections.items() if body}
    names = {title: title.lower().replace(" ", "-") for title in kept}
    for name, text in (
        ("style", (parts / "style.css").read_text(encoding="utf-8") + STYLE),
        ("nav", "".join(f'<a href="#{names[title]}">{title}</a>' for title in kept)),
        ("made", escape(made)),
        ("command", escape(command)),
        ("sections", "\n".join(f'<section id="{names[title]}">{body}</section>' for title, body in kept.items())),
    ):
        page = page.replace(f"<!--{name}-->", text, 1)
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)


def _overview(found: dict[str, Any]) -> str:
    dropped = found["records"] - found["kept"]
    repeats = {
        step["step"]: sum(records for records, _ in step["dropped"].values())
        for step in found["steps"]
        if step["step"] in ("exact_duplicates", "near_duplicates", "near_images")
    }
    cards = [
        (_share(found["kept"], found["records"]), f"of {found['records']:,} records kept"),
        (_share(found["kept_bytes"], found["bytes"]), f"of {found['bytes'] / 1e6:,.1f} MB kept"),
        (f"{dropped:,}", "records dropped"),
        *((f"{count:,}", name.replace("_", " ")) for name, count in repeats.items()),
        *((f"{records:,}", f"records in {side}/") for side, (records, _) in found["sides"].items()),
    ]
    shown = "".join(f'<div class="cardlet"><b>{value}</b><span>{escape(text)}</span></div>' for value, text in cards)
    notes = "".join(f'<li class="warn">{escape(text)}</li>' for text in found["warnings"])
    return (
        f"<h1>{escape(', '.join(found['sources']))}</h1>"
        f'<p class="source">Config {escape(found["fingerprint"])}</p>'
        f'<div class="cards">{shown}</div><ul class="notes">{notes}</ul>'
    )


def _rules(found: dict[str, Any]) -> str:
    rows = []
    for step in found["steps"]:
        lost = step["records"] - step["kept"]
        rows.append(
            [
                f"<b>{escape(step['step'])}</b>",
                f"{step['records']:,}",
                f"{lost:,}",
                _bar(lost, step["records"]),
                _size(step["bytes"] - step["kept_bytes"]),
                f"{step['changed']:,}" if step["changed"] else "",
            ]
        )
        for rule, (records, nbytes) in sorted(step["dropped"].items(), key=lambda item: -item[1][0]):
            rows.append(
                ["&emsp;" + escape(rule), "", f"{records:,}", _bar(records, step["records"]), _size(nbytes), ""]
            )
    heads = ["step and its rules", "records in", "dropped", "share of those in", "bytes lost", "changed"]
    return (
        "<h2>Steps and rules</h2>"
        + _table(heads, rows, numeric=(1, 2, 4, 5))
        + '<p class="hint">A record that breaks several rules counts for the first. Bytes lost are those of dropped '
        "records; in the line of a step also those that it took out of the records it kept.</p>"
    )


def _sizes(found: dict[str, Any]) -> str:
    read, written = (dict(map(tuple, found[key])) for key in ("read_histogram", "written_histogram"))
    if not read:
        return ""
    most = max(*read.values(), *written.values(), 1)
    rows = []
    for start in sorted(read | written):
        before, after = read.get(start, 0), written.get(start, 0)
        rows.append(
            f"<span>{_size(start)}</span><div>"
            f'<i class="read" style="width:{before / most:.2%}"></i>'
            f'<i class="written" style="width:{after / most:.2%}"></i></div>'
            f"<span>{before:,} → {after:,}</span>"
        )
    return (
        '<h2>Sizes</h2><p class="hint key">Records by size, from the one given to that of the next line: '
        '<i class="read"></i>read<i class="written"></i>kept</p>'
        f'<div class="bars">{"".join(rows)}</div>'
    )


def _values(found: dict[str, Any]) -> str:
    parts = []
    for step in found["steps"]:
        for name, counts in step["values"].items():
            if not counts:
                continue
            most = max(counts.values())
            shown = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
            rows = "".join(
                f'<span>{escape(value)}</span><div><i class="written" style="width:{count / most:.2%}"></i></div>'
                f"<span>{count:,}</span>"
                for value, count in shown[:20]
            )
            rest = f'<p class="hint">and {len(shown) - 20:,} other values</p>' if len(shown) > 20 else ""
            parts.append(f'<h3>{escape(name.strip("_"))}</h3><div class="bars">{rows}</div>{rest}')
    return "<h2>Values</h2>" + "".join(parts) if parts else ""


def _examples(found: dict[str, Any]) -> str:
    parts = []
    for step in found["steps"]:
        for name, examples in sorted(step["examples"].items(), key=lambda item: (item[0] == "kept", item[0])):
            parts.append(f"<details><summary><b>{escape(step['step'])}</b>: {escape(name)}</summary>")
            for example in examples:
                because = f'<p class="hint">{escape(example["because"])}</p>' if example.get("because") else ""
                before = f"<pre>{escape(example['before'])}</pre>became" if "before" in example else ""
                parts.append(f"{because}{before}<pre>{escape(example['text'])}</pre>")
            parts.append("</details>")
    return "<h2>Examples</h2>" + "".join(parts) if parts else ""


def _table(heads: list[str], rows: list[list[str]], numeric: tuple[int, ...]) -> str:
    def line(tag: str, cells: list[str]) -> str:
        kinds = ("numeric" if i in numeric else "text" for i in range(len(cells)))
        return "".join(f'<{tag} class="{kind}">{cell}</{tag}>' for kind, cell in zip(kinds, cells, strict=True))

    body = "".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f'<div class="table"><table class="plain"><thead><tr>{line("th", heads)}</tr></thead>{body}</table></div>'


def _bar(part: int, whole: int) -> str:
    share = part / whole if whole else 0.0
    if not part:
        return ""
    return f'{share:.1%}<span class="share"><span style="width:{share:.1%}"></span></span>'


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "0 %"


def _size(nbytes: int) -> str:
    return f"{'-' if nbytes < 0 else ''}{si(abs(nbytes))}B"
