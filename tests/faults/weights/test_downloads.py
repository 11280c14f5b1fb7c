"""Downloads: by https, of a known digest, and nothing else that comes is taken for the file."""

import ast
import http.server
import json
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import kimiajax
import weights_convert
from faults.harness import files_of, nothing_changes, refused
from faults.weights.planting import MIB, block1, flip, largest
from kimiajax.io.files import sha256_file
from kimiajax.models.backbone import PublishedFile
from kimiajax.models.registry import BACKBONES

PUBLISHED = [file for backbone in BACKBONES.values() for file in backbone.published]


@pytest.mark.fault("downloads")
@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.name)
def test_what_is_fetched_comes_by_https_and_has_a_digest(file):
    assert file.url.startswith("https://")
    algorithm, digest = file.checksum.split(":")
    assert re.fullmatch({"md5": "[0-9a-f]{32}", "sha256": "[0-9a-f]{64}"}[algorithm], digest)
    assert file.size > MIB


def sources():
    for package in (kimiajax, weights_convert):
        for path in sorted(Path(package.__file__).parent.rglob("*.py")):
            yield path, ast.parse(path.read_text())


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


HARMLESS = {"pooch.os_cache", "pooch.file_hash", "pooch.get_logger", "pooch.HTTPDownloader"}
FETCHERS = {"urlopen", "urlretrieve", "HTTPConnection", "HTTPSConnection", "download_and_extract", "create_connection"}
CLIENTS = {"urllib", "requests", "http", "ftplib", "aiohttp", "httpx", "urllib3", "huggingface_hub"}


@pytest.mark.fault("downloads")
def test_no_other_line_of_the_source_fetches_anything():
    fetched, addresses = [], []
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [n.name for n in node.names]
                assert not CLIENTS & {module.split(".")[0] for module in modules if module != "urllib.parse"}, path
                assert isinstance(node, ast.Import) or node.module != "pooch", "it is called by its full name"
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                addresses += re.findall(r"\b(?:http|ftp)://\S+", node.value)
        for name, call in calls(tree):
            assert name.rsplit(".", 1)[-1] not in FETCHERS, (path, ast.unparse(call))
            if re.fullmatch(r"pooch\.\w+", name) and name not in HARMLESS:
                fetched.append((path.name, name, *map(ast.unparse, call.args[:2])))
    assert fetched == [("load.py", "pooch.retrieve", "file.url", "file.checksum")]
    assert addresses == [], "none goes without encryption"


class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.answer(self)

    def log_message(self, *_):
        pass


@pytest.fixture
def site(monkeypatch, vgg16):
    """Gives VGG16's file from this machine, which nothing leaves; returns what sets how it answers."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    url = f"http://127.0.0.1:{server.server_port}/vgg16_notop.h5"
    file = PublishedFile(url, vgg16.stat().st_size, f"sha256:{sha256_file(vgg16)}", top=False)
    monkeypatch.setitem(BACKBONES, "vgg16", replace(BACKBONES["vgg16"], published=(file,)))
    monkeypatch.setenv("NO_PROXY", "*")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def answers(answer):
        server.answer = answer
        return file

    yield answers
    server.shutdown()
    server.server_close()
    thread.join()


def gives(content, status=200, claimed=None, **headers):
    """An answer of the server's."""

    def answer(request):
        request.send_response(status)
        for name, value in {"Content-Length": len(content) if claimed is None else claimed, **headers}.items():
            request.send_header(name, str(value))
        request.end_headers()
        request.wfile.write(content)

    return answer


def hangs_up(request):
    request.connection.close()


def fetch(scans, cache, out):
    return block1(scans, "imagenet", out, "--cache", cache)


ANSWERS = {
    "another file": (gives(b"\x89HDF\r\n\x1a\n" + bytes(1000)), "its checksum is wrong"),
    "a web page": (gives(b"<!DOCTYPE html><html>sign in</html>"), "its checksum is wrong"),
    "nothing": (gives(b""), "its checksum is wrong"),
    "a part of it": (gives(bytes(1000), claimed=10**6), "the server cannot be reached"),
    "no such page": (gives(b"", status=404), "the server answers 404"),
    "no answer": (hangs_up, "the server cannot be reached"),
    "another address": (gives(b"", status=302, Location="http://127.0.0.1:9/"), "the server cannot be reached"),
}


@pytest.mark.fault("downloads")
@pytest.mark.parametrize("name", ANSWERS)
def test_another_answer_than_the_file_is_refused_with_the_digest_and_the_place(scans, tmp_path, site, name):
    answer, word = ANSWERS[name]
    file = site(answer)
    where = tmp_path / "cache" / "downloads" / file.name
    for _ in range(2):  # nor does a second attempt take what the first one left
        line = refused(fetch(scans, tmp_path / "cache", tmp_path / "out"), file.url, word, where, "SHA256")
        assert file.checksum.removeprefix("sha256:") in line
        assert f"{file.size:,} bytes" in line
        assert files_of(tmp_path) == {}


@pytest.mark.fault("downloads")
def test_an_interrupted_download_leaves_nothing_that_is_taken_for_the_file(scans, tmp_path, monkeypatch, site):
    file = site(gives(bytes(1000)))

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pooch.core.hash_matches", interrupted)
    assert fetch(scans, tmp_path / "cache", tmp_path / "out").status == 130
    assert not (tmp_path / "cache" / "downloads" / file.name).exists()
    assert not (tmp_path / "cache" / "weights").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("downloads")
@pytest.mark.parametrize("earlier", ["truncated", "other bytes"])
def test_what_lies_where_the_file_belongs_is_fetched_again_unless_it_is_the_file(scans, tmp_path, vgg16, site, earlier):
    whole = vgg16.read_bytes()
    file, downloads = site(hangs_up), tmp_path / "cache" / "downloads"
    downloads.mkdir(parents=True)
    left = whole[: len(whole) // 2] if earlier == "truncated" else whole[:-1] + bytes([whole[-1] ^ 1])
    (downloads / file.name).write_bytes(left)
    with nothing_changes(tmp_path):
        ended = fetch(scans, tmp_path / "cache", tmp_path / "out")
        refused(ended, file.url, "the server cannot be reached", downloads / file.name)
    site(gives(whole))
    ended = fetch(scans, tmp_path / "cache", tmp_path / "out")
    assert ended.status == 0, ended
    lineage = json.loads((tmp_path / "out" / "features.json").read_text())["weights"]
    assert (lineage["published"], f"sha256:{lineage['source_sha256']}") == (file.name, file.checksum)
    assert sha256_file(downloads / file.name) == sha256_file(vgg16)


@pytest.mark.fault("downloads")
def test_a_converted_copy_that_is_damaged_is_refused_until_it_is_removed(scans, tmp_path, vgg16, site):
    site(gives(vgg16.read_bytes()))
    assert fetch(scans, tmp_path / "cache", tmp_path / "before").status == 0
    (copy,) = (tmp_path / "cache" / "weights").iterdir()
    flip(largest(copy))
    with nothing_changes(tmp_path):
        refused(fetch(scans, tmp_path / "cache", tmp_path / "out"), copy, "remove that folder and convert again")
    shutil.rmtree(copy)
    site(hangs_up)
    assert fetch(scans, tmp_path / "cache", tmp_path / "out").status == 0, "the download itself was kept"
