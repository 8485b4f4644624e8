"""The Space of a judge: `slm-judge app` in its tab Try, on the GGUF file and a CPU."""

import shlex
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import slm_judge
from slm_judge.errors import JudgeError
from slm_judge.recipe import Recipe
from slm_judge.version import METADATA, __version__

PORT = 7860
_EXTRAS = ("app", "gguf")
_STAGES = {"export", "model_card", "training"}  # which a Space does not run
_SHIPPED = {".css", ".html", ".jinja", ".js", ".py", ".typed"}
_CARD = """---
{header}---

Try [{model}](https://huggingface.co/{model}): paste a text, and see what the judge answers to the
questions of its rubric. Made by slm-judge {version}; the whole page also annotates:
`slm-judge app {model}{at} --items texts.csv`.

It runs on a free CPU. A private judge needs the secret `HF_TOKEN` in the settings of the Space.
"""
_DOCKERFILE = """FROM python:{python}-slim
RUN apt-get update && apt-get install --yes --no-install-recommends build-essential
RUN useradd --create-home --uid 1000 user
USER user
WORKDIR /home/user/app
COPY --chown=user requirements.txt .
RUN pip install --user --no-cache-dir --requirement requirements.txt
COPY --chown=user . .
CMD ["python", "app.py"]
"""
_APP = '''"""The page of {model}, for anybody."""

import os

from slm_judge.app.app import Settings, serve

options = {{"quantization": {quantization!r}}}
port = int(os.environ.get("PORT", "{port}"))
judge = {{"model": {model!r}, "revision": {revision!r}, "options": options}}
serve(Settings(host="0.0.0.0", port=port, public=True, **judge))
'''


def space_files(
    recipe: Recipe, quantization: str, user: str, revision: str | None = None
) -> dict[str, Path | bytes]:
    """What is in the Space of a run's judge: path -> local file, or content.

    Args:
        recipe: of the run.
        quantization: of the GGUF file that answers.
        user: user or organisation that has the judge.
        revision: branch, tag or commit of the judge; by default `main`.

    Raises:
        JudgeError: what the page needs is not installed here, so its versions are not known.
    """
    model = f"{user}/{recipe.name}-GGUF"
    header = {
        "title": recipe.name, "sdk": "docker", "app_port": PORT, "models": [model],
        "license": recipe.card.license or "other", "tags": ["slm-judge"],
    }  # fmt: skip
    facts = {
        "header": yaml.safe_dump(
            header, sort_keys=False, allow_unicode=True, default_flow_style=None
        ),
        "model": model, "port": PORT, "version": __version__, "quantization": quantization,
        "revision": revision, "at": f" --revision {shlex.quote(revision)}" if revision else "",
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
    }  # fmt: skip
    texts = {
        "README.md": _CARD.format(**facts),
        "Dockerfile": _DOCKERFILE.format(**facts),
        "app.py": _APP.format(**facts),
        "requirements.txt": "".join(f"{line}\n" for line in sorted(pinned(*_EXTRAS))),
    }
    package = Path(slm_judge.__file__).parent
    shipped = {
        f"slm_judge/{path.relative_to(package).as_posix()}": path
        for path in sorted(package.rglob("*"))
        if path.suffix in _SHIPPED and path.relative_to(package).parts[0] not in _STAGES
    }
    return {name: text.encode() for name, text in texts.items()} | METADATA | shipped


def pinned(*extras: str) -> Iterator[str]:
    """All that slm-judge with extras needs beside itself, at the versions that are installed here.

    Raises:
        JudgeError: one is not.
    """
    todo, seen = [("slm-judge", frozenset(extras))], set[tuple[str, frozenset[str]]]()
    lines: dict[str, str] = {}
    while todo:
        if (one := todo.pop()) in seen:
            continue
        seen.add(one)
        name, wanted = one
        try:
            found = distribution(name)
        except PackageNotFoundError as error:
            raise JudgeError(
                f"The Space needs {name}, which is not installed here: pip install "
                "'slm-judge[app,gguf]'."
            ) from error
        lines[name] = f"{name}=={found.version}"
        for line in found.requires or []:
            need = Requirement(line)
            if need.marker is None or any(
                need.marker.evaluate({"extra": e}) for e in ("", *wanted)
            ):
                todo.append((canonicalize_name(need.name), frozenset(need.extras)))
    del lines["slm-judge"]
    yield from lines.values()
