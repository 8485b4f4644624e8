"""A file of a release from the package index that pip or uv would ask, without a build backend.

pip cannot download a source distribution without running it. An index speaks the simple API,
here in HTML:
https://packaging.python.org/specifications/simple-repository-api/
"""

import ast
import base64
import hashlib
import os
import re
import ssl
import subprocess
import sys
from html import unescape
from http.client import HTTPException
from urllib.parse import unquote, urljoin, urlsplit
from urllib.request import HTTPSHandler, Request, build_opener

from slm_judge.errors import ModelError

DEFAULT = "https://pypi.org/simple"
SDIST, WHEEL = ".tar.gz", "-py3-none-any.whl"
"""How the names of files end."""
_LARGEST_PAGE, _LARGEST_FILE = 16 << 20, 512 << 20  # bytes
_SILENCE = 30  # seconds


class _UnavailableError(Exception):
    """Why an index does not give the file."""


def download(name: str, release: str, sha256: str | None, ending: str = SDIST) -> tuple[bytes, str]:
    """A file of a release, and the index that had it, without credentials.

    Args:
        name: of the package, normalised.
        release: its version.
        sha256: of the right file; None where the index's own word must do.
        ending: of the file's name: `SDIST` or `WHEEL`.

    Raises:
        ModelError: no index has the file, or it is not the right one.
    """
    reasons, settings, file = [], _settings(), f"{name}-{release}{ending}"
    for index in _indexes(settings):
        shown = re.sub(r"://\S*@", "://", index)
        try:
            link, said = _find(index, name, file, settings.get("cert"))
            if not (expected := sha256 or said):
                raise _UnavailableError("it gives no SHA-256 of the file")
            content, _ = _get(link, _LARGEST_FILE, settings.get("cert"))
        except (_UnavailableError, ValueError) as error:
            # The words of urllib may quote a password.
            why = str(error) if isinstance(error, _UnavailableError) else "it is not an address"
            reasons.append(f"{shown}: {why}")
            continue
        if (found := hashlib.sha256(content).hexdigest()) == expected:
            return content, shown
        raise ModelError(
            f"The file {file} that {shown} gives is not the right one: its SHA-256 is {found} and "
            f"should be {expected}. Nothing of it was used. Find out who changed it, or name "
            "another index in PIP_INDEX_URL."
        )
    raise ModelError(
        f"The file {file} cannot be fetched ({'; '.join(reasons)}). Check the network, and "
        "PIP_INDEX_URL or UV_DEFAULT_INDEX; then run the same command again."
    )


def _settings() -> dict[str, str]:
    """pip's, from its files where there is a pip, and from the environment."""
    command = [sys.executable, "-P", "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout  # noqa: S603
    pairs = re.findall(r"^global\.([\w-]+)=(.+)$", listed, re.MULTILINE)
    own = {key[4:].lower(): value for key, value in os.environ.items() if key.startswith("PIP_")}
    return {key: ast.literal_eval(value) for key, value in pairs} | {
        key.replace("_", "-"): value for key, value in own.items()
    }


def _indexes(settings: dict[str, str]) -> list[str]:
    """The indexes that pip or uv would ask, the main one first."""
    of_uv = os.environ.get("UV_DEFAULT_INDEX") or os.environ.get("UV_INDEX_URL")
    named = [of_uv or settings.get("index-url") or DEFAULT, settings.get("extra-index-url", "")]
    named += [os.environ.get(key, "") for key in ("UV_INDEX", "UV_EXTRA_INDEX_URL")]
    # Those of uv may have a name before them: name=address.
    found = [re.sub(r"^[\w.-]+=", "", one) for text in named for one in text.split()]
    return list(dict.fromkeys(found))


def _find(index: str, name: str, file: str, cert: str | None) -> tuple[str, str]:
    """The address of the file, and its SHA-256 if the index gives one."""
    address = f"{index.rstrip('/')}/{name}/"
    page, there = _get(address, _LARGEST_PAGE, cert)
    wanted = re.compile(re.escape(file).replace(r"\-", "[-_.]"), re.I)
    text = page.decode("utf-8", "replace")
    for href in re.findall(r"""<a\s[^>]*?href\s*=\s*["']([^"']+)""", text, re.I):
        link = urlsplit(urljoin(there, unescape(href)))
        if wanted.fullmatch(unquote(link.path.rpartition("/")[2])):
            digest = re.fullmatch(r"sha256=([0-9a-f]{64})", link.fragment)
            login, _, host = urlsplit(address).netloc.rpartition("@")
            if login and link.netloc == host:  # the index itself has the file, not another host
                link = link._replace(netloc=f"{login}@{host}")
            return link.geturl(), digest[1] if digest else ""
    raise _UnavailableError(f"it has no {file}")


def _get(address: str, most: int, cert: str | None) -> tuple[bytes, str]:
    """What is at an address, at most `most` bytes; and where it was after redirections."""
    parts = urlsplit(address)
    login, _, host = parts.netloc.rpartition("@")
    page = "index.html" if parts.scheme == "file" and parts.path.endswith("/") else ""
    plain = parts._replace(netloc=host, path=parts.path + page, fragment="").geturl()
    request = Request(plain, headers={"Accept": "text/html"})  # noqa: S310
    if login:  # a redirection to another host does not take it along
        coded = base64.b64encode(unquote(login).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {coded}")
    try:
        opener = build_opener(HTTPSHandler(context=ssl.create_default_context(cafile=cert)))
        with opener.open(request, timeout=_SILENCE) as response:
            content: bytes = response.read(most + 1)
            promised = int(response.headers.get("Content-Length") or 0)
    except OSError as error:
        raise _UnavailableError(str(error).strip("<>") or type(error).__name__) from None
    except HTTPException as error:  # whose words may be a part of the address
        raise _UnavailableError(f"it cannot be asked by HTTP ({type(error).__name__})") from None
    if len(content) > most:
        raise _UnavailableError("it sends more than it should")
    if len(content) < promised:
        raise _UnavailableError(f"it broke off after {len(content)} of {promised} bytes")
    return content, response.url
