"""Archives come from a server on this machine: whole, resumed, damaged and hostile."""

import http.server
import threading
import zipfile
from pathlib import Path

import pytest

from benchmarks.download import Options, fetch, file_hash, main


def make_archive(path: Path, root: str = "", extra: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for scene in ("garden", "room"):
            for name in ("images_4/a.JPG", "images/a.JPG", "sparse/0/cameras.bin"):
                file.writestr(f"{root}{scene}/{name}", f"{scene} {name}" * 500)
        if extra:
            file.writestr(extra, "x")
    return path


class _Handler(http.server.BaseHTTPRequestHandler):
    content = b""
    asked: list[str | None] = []  # noqa: RUF012 - one list for all requests is the point.

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        _Handler.asked.clear()
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/360_v2.zip"
        running.shutdown()


def test_scenes_are_unpacked_without_what_is_not_needed(tmp_path, server):
    _Handler.content = make_archive(tmp_path / "source.zip").read_bytes()
    out = tmp_path / "data"
    assert main(Options("mipnerf360", out, url=server)) == 0
    files = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert files == [
        "checksums.json",
        "garden/images_4/a.JPG",
        "garden/sparse/0/cameras.bin",
        "room/images_4/a.JPG",
        "room/sparse/0/cameras.bin",
    ]


def test_a_download_goes_on_where_it_stopped(tmp_path, server):
    _Handler.content = make_archive(tmp_path / "source.zip").read_bytes()
    partial = tmp_path / "360_v2.zip.partial"
    partial.write_bytes(_Handler.content[:1000])
    fetch(server, tmp_path / "360_v2.zip")
    assert _Handler.asked == ["bytes=1000-"]
    assert (tmp_path / "360_v2.zip").read_bytes() == _Handler.content
    assert not partial.exists()


def test_a_changed_archive_is_refused_and_removed(tmp_path, capsys):
    source = make_archive(tmp_path / "360_v2.zip")
    out, url = tmp_path / "data", source.as_uri()
    assert main(Options("mipnerf360", out, url=url, sha256=file_hash(source))) == 0
    make_archive(source, extra="garden/images_4/b.JPG")
    assert main(Options("mipnerf360", out, url=url)) == 2
    assert "was expected" in capsys.readouterr().err
    assert not (out / "360_v2.zip").exists()
    assert not (out / "garden" / "images_4" / "b.JPG").exists()


def test_scenes_below_a_folder_of_the_archive(tmp_path):
    source = make_archive(tmp_path / "tandt_db.zip", root="tandt/", extra="db/x/images/a.JPG")
    out = tmp_path / "data"
    assert main(Options("tanks-and-temples", out, url=source.as_uri())) == 0
    assert (out / "room" / "images" / "a.JPG").is_file()
    assert not (out / "db").exists()
    assert not (out / "room" / "images_4").exists()


@pytest.mark.parametrize(
    ("suite", "url", "sentence"),
    [
        ("llff", None, "cannot be fetched"),
        ("mipnerf360", "http://127.0.0.1:9/none.zip", "could not be fetched"),
        ("mipnerf360", "text", "is no zip file"),
        ("mipnerf360", "hostile", "leads out of its folder"),
        ("mipnerf360", "empty", "holds no scene"),
    ],
)
def test_mistakes_get_a_sentence(tmp_path, capsys, suite, url, sentence):
    file = tmp_path / "file.zip"
    if url == "text":
        file.write_text("no zip")
    elif url == "hostile":
        make_archive(file, extra="../escape/images_4/x")
    elif url == "empty":
        make_archive(file, root="elsewhere/deeper/")
    known = url if url is None or url.startswith("http") else file.as_uri()
    assert main(Options(suite, tmp_path / "data", url=known)) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "escape").exists()
