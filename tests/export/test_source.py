"""The converter is a program from outside: it is the right one, or it does not run."""

import base64
import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from importlib.metadata import version
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from slm_judge.export import gguf as export_gguf

from slm_judge.errors import ModelError
from slm_judge.offline import llama_source, package_index
from slm_judge.offline.llama_source import cache_folder, llama_cpp_source
from tests.conftest import LIMIT

RELEASE = "9.9.9"  # which this slm-judge cannot know
CONVERTER = "vendor/llama.cpp/convert_hf_to_gguf.py"
FILES = {
    CONVERTER: b"print('the converter')\n",
    "vendor/llama.cpp/conversion/__init__.py": b"",
    "vendor/llama.cpp/src/left-out.cpp": b"//\n",
    "pyproject.toml": b'[build-system]\nrequires = []\nbuild-backend = "b"\nbackend-path = ["."]\n',
    "b.py": b"open('/nonexistent/the-build-backend-ran', 'w')\n",
}


def sdist(files=FILES) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"llama_cpp_python-{RELEASE}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


class Index(http.server.ThreadingHTTPServer):
    """A package index on the loopback interface."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Pages)
        self.url = f"http://127.0.0.1:{self.server_port}/simple"
        self.archive = sdist()
        self.digest: str | None = hashlib.sha256(self.archive).hexdigest()
        self.files = ".."  # where its links lead
        self.login = ""
        self.promise = 0  # bytes more than are sent
        self.seen: list[tuple[str, str]] = []


class Pages(http.server.BaseHTTPRequestHandler):
    server: Index

    def do_GET(self):
        index, path = self.server, urlsplit(self.path).path
        given = self.headers.get("Authorization", "")
        index.seen.append((f"{self.headers['Host'].partition(':')[0]}{path}", given))
        known = base64.b64encode(index.login.encode()).decode()
        if path == "/moved/llama-cpp-python/":
            self.send_response(302)
            self.send_header("Location", f"{index.url}/llama-cpp-python/")
            self.end_headers()
        elif index.login and given != f"Basic {known}" and "elsewhere" not in path:
            self.send_error(401)
        elif path == "/simple/llama-cpp-python/":
            name = f"llama_cpp_python-{RELEASE}.tar.gz"
            digest = f"#sha256={index.digest}" if index.digest else ""
            links = f'<a href="../x-1.tar.gz">x</a><A data-y HREF="{index.files}/{name}{digest}">{name}</A>'
            self.answer(f"<!DOCTYPE html><html><body>{links}</body></html>".encode())
        elif path.endswith(f"/llama_cpp_python-{RELEASE}.tar.gz"):
            self.answer(index.archive)
        else:
            self.send_error(404)

    def answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content) + self.server.promise))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def index(monkeypatch, tmp_path):
    """The only index that is configured; the cache is empty, and llama-cpp-python is new."""
    for name in os.environ:
        if name.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("SLM_JUDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(llama_source, "version", lambda _: f"{RELEASE}+cu124")
    server = Index()
    monkeypatch.setenv("PIP_INDEX_URL", server.url)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(LIMIT)


def know(monkeypatch, archive: bytes, digest: str = "0" * 64) -> None:
    known = {RELEASE: (hashlib.sha256(archive).hexdigest(), digest)}
    monkeypatch.setattr(llama_source, "_KNOWN", known)


def nothing_kept(cache: Path) -> bool:
    return not cache.exists() or not list(cache.iterdir())


def test_an_unknown_release_is_checked_against_the_index_and_said(index, capsys):
    source = llama_cpp_source()
    found = {str(p.relative_to(source.parents[1])) for p in source.rglob("*") if p.is_file()}
    assert found == {CONVERTER, "vendor/llama.cpp/conversion/__init__.py"}  # what is used, no more
    assert cache_folder().stat().st_mode & 0o777 == 0o700
    said = capsys.readouterr().err
    assert f"older than llama-cpp-python {RELEASE}" in said
    assert index.url in said.replace("\n", "")
    asked = len(index.seen)
    assert llama_cpp_source() == source
    assert len(index.seen) == asked  # the cache is enough
    assert not capsys.readouterr().err


def test_the_release_at_hand_is_known():
    """Its digests are in the code: what the tests convert with was checked against them."""
    release = version("llama-cpp-python")
    if release not in llama_source._KNOWN:  # which is no reason for a build to fail
        pytest.skip(f"add the digests of {release} to `_KNOWN`")
    _, digest = llama_source._KNOWN[release]
    assert llama_cpp_source().parents[1].name.endswith(digest)


@pytest.mark.parametrize("known", [True, False])
def test_another_file_than_the_right_one_is_not_used(index, monkeypatch, known):
    if known:  # the index gives the digest of its own, false file
        know(monkeypatch, b"the real one")
    else:
        index.digest = hashlib.sha256(b"the real one").hexdigest()
    with pytest.raises(ModelError, match="is not the right one") as caught:
        llama_cpp_source()
    assert hashlib.sha256(b"the real one").hexdigest() in str(caught.value)
    assert nothing_kept(cache_folder())


def test_a_known_release_needs_no_digest_of_the_index(index, monkeypatch, capsys):
    digest = llama_cpp_source().parents[1].name.rpartition("-")[2]
    know(monkeypatch, index.archive, digest)
    monkeypatch.setenv("SLM_JUDGE_CACHE", f"{cache_folder()}-2")
    index.digest = None
    capsys.readouterr()
    assert (llama_cpp_source() / "convert_hf_to_gguf.py").read_bytes() == FILES[CONVERTER]
    assert not capsys.readouterr().err


def test_an_unknown_release_without_any_digest_is_refused(index):
    index.digest = None
    with pytest.raises(ModelError, match="gives no SHA-256"):
        llama_cpp_source()


def change(source: Path) -> None:
    (source / "convert_hf_to_gguf.py").write_text("print('mine')\n")


def add_module(source: Path) -> None:
    (source / "torch.py").write_text("print('mine')\n")


def add_bytecode(source: Path) -> None:
    (source / "conversion" / "__pycache__").mkdir()
    (source / "conversion" / "__pycache__" / "__init__.cpython-311.pyc").write_bytes(b"mine")


def link_folder(source: Path) -> None:
    (source / "torch").symlink_to("/tmp", target_is_directory=True)


def link_file(source: Path) -> None:
    file = source / "conversion" / "__init__.py"
    file.rename(file.with_name("moved"))
    file.symlink_to("moved")


@pytest.mark.parametrize("tamper", [change, add_module, add_bytecode, link_folder, link_file])
def test_a_cache_that_was_tampered_with_is_refused(index, tamper):
    tamper(llama_cpp_source())
    with pytest.raises(ModelError, match=r"not as it was fetched.*delete the folder"):
        llama_cpp_source()


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_cache_in_which_others_can_write_is_refused(index, mode):
    folder = llama_cpp_source().parents[2]
    folder.chmod(mode)
    with pytest.raises(ModelError, match=rf"chmod 700 {folder}"):
        llama_cpp_source()


def test_a_cache_that_cannot_be_made_is_a_sentence(index, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SLM_JUDGE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match="SLM_JUDGE_CACHE"):
        llama_cpp_source()


@pytest.mark.parametrize(
    "name",
    [
        "vendor/llama.cpp/conversion/../../../../../escaped.py",
        "vendor/llama.cpp/common//../../../../x",
    ],
)
def test_a_member_that_leads_outside_is_refused(index, tmp_path, name):
    index.archive = sdist({**FILES, name: b"mine"})
    index.digest = hashlib.sha256(index.archive).hexdigest()
    with pytest.raises(ModelError, match=r"cannot be used: .*outside"):
        llama_cpp_source()
    assert nothing_kept(cache_folder())
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.parametrize(
    ("archive", "complaint"),
    [
        (sdist({"setup.py": b""}), f"it has no {CONVERTER}"),
        (sdist()[:-60], "cannot be used"),
        (b"<html>a login page</html>", "cannot be used"),
    ],
)
def test_an_archive_that_cannot_be_used_is_a_sentence(index, archive, complaint):
    index.archive, index.digest = archive, hashlib.sha256(archive).hexdigest()
    with pytest.raises(ModelError, match=complaint) as caught:
        llama_cpp_source()
    assert "pip install llama-cpp-python==" in str(caught.value)
    assert nothing_kept(cache_folder())


def test_sizes_are_bounded(index, monkeypatch):
    monkeypatch.setattr(package_index, "_LARGEST_FILE", len(index.archive) - 1)
    with pytest.raises(ModelError, match="sends more than it should"):
        llama_cpp_source()
    monkeypatch.setattr(package_index, "_LARGEST_FILE", len(index.archive))
    monkeypatch.setattr(llama_source, "_LARGEST", 10)
    with pytest.raises(ModelError, match="unpacks to more than"):
        llama_cpp_source()


def test_a_download_that_breaks_off_is_a_sentence(index):
    index.promise = 100
    with pytest.raises(ModelError, match="broke off after"):
        llama_cpp_source()


CHILD = f"""
import sys
from slm_judge.offline import llama_source
def refuse(event, arguments):
    asked = event == "subprocess.Popen" and arguments[1][1:] == ["-P", "-m", "pip", "config", "list"]
    if event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.system") and not asked:
        raise SystemExit(f"a program was run: {{event}} {{arguments}}")
sys.addaudithook(refuse)
llama_source.version = lambda _: "{RELEASE}"
print(llama_source.llama_cpp_source())
"""


def test_processes_at_once_without_pip_run_no_program(index, tmp_path):
    """No build backend; and whoever comes second takes what the first one made.

    A module that is in the way of pip's stands for an environment without pip.
    """
    (tmp_path / "pip.py").write_text("raise ImportError('no pip')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD], stdout=-1, stderr=-1, text=True, env=env)
        for _ in range(3)
    ]
    results = [child.communicate(timeout=LIMIT) for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], results
    assert len({out for out, _ in results}) == 1
    assert [path.name for path in cache_folder().iterdir()] == [Path(results[0][0]).parts[-3]]


# --- which index, and its credentials ---

SECRET = "p%40ss:w0rd"


def with_login(url: str) -> str:
    return url.replace("://", f"://me:{SECRET}@")


def test_credentials_go_to_their_index_alone_and_are_never_shown(index, monkeypatch, capsys):
    index.login = "me:p@ss:w0rd"
    index.files = f"http://localhost:{index.server_port}/elsewhere"
    monkeypatch.setenv("PIP_INDEX_URL", with_login(index.url))
    llama_cpp_source()
    assert [given != "" for _, given in index.seen] == [True, False]
    assert "w0rd" not in capsys.readouterr().err


def test_an_index_that_moved_is_followed_with_its_files_behind_the_same_login(index, monkeypatch):
    index.login = "me:p@ss:w0rd"
    monkeypatch.setenv("UV_DEFAULT_INDEX", with_login(index.url))
    assert llama_cpp_source()
    index.login = ""
    monkeypatch.setenv("SLM_JUDGE_CACHE", f"{cache_folder()}-2")
    monkeypatch.setenv("UV_DEFAULT_INDEX", index.url.replace("/simple", "/moved/"))
    assert llama_cpp_source()


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        ("http://127.0.0.1:9", "refused"),
        ("http://127.0.0.1:{port}/nothing", "404"),
        ("http://127.0.0.1:{port}/simple", "401"),
        ("http://[bad", "not an address"),
        ("gopher://127.0.0.1", "unknown url type"),
        ("http://127.0.0.1:x1", "InvalidURL"),
        ("file:///nowhere", "No such file"),
    ],
)
def test_an_index_out_of_reach_is_a_sentence_without_credentials(
    index, monkeypatch, address, complaint
):
    index.login = "other:one" if complaint == "401" else ""
    url = with_login(address.format(port=index.server_port))
    monkeypatch.setenv("PIP_INDEX_URL", url)
    with pytest.raises(ModelError, match=f"cannot be fetched.*{complaint}") as caught:
        llama_cpp_source()
    assert "Check the network" in str(caught.value)
    assert "w0rd" not in str(caught.value)
    assert "PIP_INDEX_URL" in str(caught.value)


def test_where_pip_and_uv_look(index, monkeypatch, tmp_path):
    def found():
        return package_index._indexes(package_index._settings())

    monkeypatch.delenv("PIP_INDEX_URL")
    assert found() == [package_index.DEFAULT]
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nindex-url = https://a/simple\nextra-index-url =\n  https://b\n  https://c\n"
    )
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("UV_INDEX", "mine=https://d https://e")
    assert found() == [f"https://{x}" for x in ("a/simple", "b", "c", "d", "e")]
    monkeypatch.setenv("PIP_INDEX_URL", "https://first")
    assert found()[0] == "https://first"
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://uv")
    assert found()[0] == "https://uv"


def test_the_next_index_is_asked_and_a_folder_can_be_one(index, monkeypatch, tmp_path):
    folder = tmp_path / "simple" / "llama-cpp-python"
    folder.mkdir(parents=True)
    name = f"llama_cpp_python-{RELEASE}.tar.gz"
    (folder / name).write_bytes(index.archive)
    (folder / "index.html").write_text(f'<a href="{name}#sha256={index.digest}">{name}</a>')
    monkeypatch.setenv("PIP_INDEX_URL", f"{index.url}/empty")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"http://127.0.0.1:9 {folder.parent.as_uri()}")
    assert llama_cpp_source()


# --- how it is run ---

RECORD = """
import gguf, json, os, sys
place = sys.argv[sys.argv.index("--outfile") + 1]
names = ("HF_TOKEN", "HF_HUB_OFFLINE", "PYTHONSTARTUP", "NO_LOCAL_GGUF")
found = {"gguf": gguf.__file__, "cwd": os.getcwd(), **{name: os.environ.get(name) for name in names}}
open(place, "w").write(json.dumps(found))
"""


def test_the_converter_sees_no_token_and_no_module_of_the_place(tmp_path, monkeypatch):
    source, here, model = (tmp_path / name for name in ("source", "here", "model"))
    for folder in (source / "gguf", here, model):
        folder.mkdir(parents=True)
    (source / "convert_hf_to_gguf.py").write_text(RECORD)
    (source / "gguf" / "__init__.py").write_text("import json")
    for name in ("gguf", "json", "torch", "sitecustomize"):
        (here / f"{name}.py").write_text("raise SystemExit('a module of the place was run')")
    monkeypatch.setattr(export_gguf, "llama_cpp_source", lambda: source)
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}{here}")  # an empty part is the place, too
    for name in ("HF_TOKEN", "PYTHONSTARTUP", "NO_LOCAL_GGUF"):
        monkeypatch.setenv(name, "x")
    output = export_gguf.convert(model, Path("out.gguf"), "bf16", "m")
    found = json.loads((here / output).read_text())
    assert found == {
        "gguf": str(source / "gguf" / "__init__.py"),
        "cwd": str(source),
        "HF_HUB_OFFLINE": "1",
        **dict.fromkeys(("HF_TOKEN", "PYTHONSTARTUP", "NO_LOCAL_GGUF")),
    }
    assert not list(source.rglob("*.pyc"))  # which would change the sources


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("config.json", {"auto_map": {"AutoConfig": "x.X"}}, "auto_map in config.json"),
        (
            "tokenizer_config.json",
            {"a": {"auto_map": ["x.X", None]}},
            "auto_map in tokenizer_config",
        ),
        ("modeling_x.py", {}, "modeling_x.py"),
    ],
)
def test_a_folder_with_code_is_not_converted(tmp_path, monkeypatch, name, content, complaint):
    """llama.cpp's converter loads tokenizers with `trust_remote_code=True`."""
    monkeypatch.setattr(export_gguf, "llama_cpp_source", lambda: pytest.fail("it would be run"))
    text = json.dumps(content).replace("auto_map", "auto\\u005fmap")  # as JSON may spell it
    (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=complaint):
        export_gguf.convert(tmp_path, tmp_path / "out.gguf", "bf16", "m")
