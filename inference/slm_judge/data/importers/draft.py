"""A rubric to begin with: what a table shows, and questions about what it cannot show."""

import re

import yaml

from .export import clean_name
from .long import Asked, Long

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_ -]*[A-Za-z0-9]|[A-Za-z]")
_WORDS = {"true", "false", "null", "yes", "no", "on", "off"}
_WIDTH = 96


def draft(table: Long, name: str) -> str:
    """YAML that `Rubric.from_file` reads; each line with `# ?` asks the user something."""
    fields = ", ".join(table.texts)
    lines = [
        "# A draft: what the annotations show. Each '# ?' is a question to you. It is valid as it",
        "# is; `slm-judge rubric check` shows the prompt that it makes.",
        f"name: {clean_name(name)}",
        "# ? What were the annotators told about the task as a whole?",
        f"instructions: Read the {fields.replace('_', ' ')} and answer each question.",
        f"fields: [{fields}]",
        "dimensions:",
    ]
    for asked in table.asked:
        lines += _dimension(asked)
    return "\n".join(lines) + "\n"


def _dimension(asked: Asked) -> list[str]:
    lines = [f"  - name: {asked.name}", f"    type: {asked.kind}"]
    if asked.ordered and asked.kind == "choice":
        lines.append("    level_of_measurement: ordinal")
    if asked.range:
        lines += ["    level_of_measurement: interval", f"    range: {[*asked.range]}"]
    for doubt in asked.doubts:
        lines += [f"    # {'?' if not i else ' '} {part}" for i, part in enumerate(_wrapped(doubt))]
    if asked.text.strip():
        lines.append(f"    instructions: {_scalar(' '.join(asked.text.split()))}")
    else:
        lines.append("    # ? The question, as the annotators read it.")
        lines.append(f"    instructions: {_scalar(asked.name.replace('_', ' ') + '?')}")
    if asked.kind == "noul":
        yes, no = asked.counts["true"], asked.counts["false"]
        return [*lines, f"    # true {yes:,} times, false {no:,} times"]
    lines += ["    # ? What were the annotators told about each option? Write it behind the colon.",
              "    options:"]  # fmt: skip
    for option, meaning in asked.options.items():
        key = option if asked.kind == "score" else _scalar(option)
        behind = f" {_scalar(meaning)}" if meaning else ""
        code = f", {asked.codes[option]} in the export" if option in asked.codes else ""
        times = "" if asked.range else f"  # {asked.counts[option]:,} times{code}"
        lines.append(f"      {key}:{behind}{times}")
    return lines


def _wrapped(text: str) -> list[str]:
    """A comment in lines; no line break of the data can end it."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        if line and len(line) + len(word) > _WIDTH - 8:
            lines, line = [*lines, line], ""
        line = f"{line} {word}".strip()
    return [*lines, line]


def _scalar(text: str) -> str:
    """A text as YAML; one that could be read as anything else is quoted."""
    if _PLAIN.fullmatch(text) and text.casefold() not in _WORDS:
        return text
    return yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10**9).strip()
