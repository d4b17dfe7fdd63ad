"""Downloads, from a server on this machine that can be made to fail."""

import gc
import gzip
import hashlib
import re
import resource
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lab import archives
from polyak_lab import data
from polyak_lab.data import catalogue
from polyak_lab.data.fetch import Download, download
from polyak_lab.errors import LabError

CONTENT = bytes(range(256)) * 5000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`, honours ranges, and hangs up after `server.cut` bytes."""

    def do_GET(self):
        content = self.server.files.get(self.path)
        self.server.ranges.append(self.headers.get("Range"))
        if content is None:
            return self.send_error(404)
        if isinstance(content, str):
            self.send_response(302)
            self.send_header("Location", content)
            return self.end_headers()
        start = self.range_start()
        if start >= len(content) > 0:
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if self.server.length is not None:
            self.send_header("Content-Length", self.server.length or str(len(content) - start))
        if start and self.server.shift is not None:
            start += self.server.shift
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start:][: self.server.cut])

    def range_start(self):
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        return int(found[1]) if found and self.server.resumes else 0

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.ranges, server.cut, server.resumes = {"/file.bin": CONTENT}, [], None, True
        server.shift = None  # bytes from where a download should resume to where it does
        server.length = ""  # as it is; another text is sent instead, and None is not sent
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def item(server, md5=MD5):
    return Download(f"{server.url}/file.bin", md5)


def test_file_arrives_whole_and_alone(server, tmp_path):
    seen = []
    path = download(item(server), tmp_path / "new" / "folder", lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "new" / "folder" / "file.bin"
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_file_address_works(tmp_path):
    source = tmp_path / "there" / "file.bin"
    source.parent.mkdir()
    source.write_bytes(CONTENT)
    assert download(Download(source.as_uri()), tmp_path).read_bytes() == CONTENT


def test_interrupted_download_goes_on_where_it_stopped(server, tmp_path):
    server.cut = 400_000
    with pytest.raises(LabError, match=r"ended after 400000 of 1280000 bytes\): try again to resume"):
        download(item(server), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin.part"]
    server.cut = None
    assert download(item(server), tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=400000-"]


def test_server_that_cannot_resume_starts_over(server, tmp_path):
    server.resumes = False
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    assert download(item(server), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("shift", [-1, 1, -4_000, 4_000])
def test_a_download_that_resumes_at_another_byte_starts_over(shift, server, tmp_path):
    """No checksum would tell, nor the number of lines."""
    content = b"1 3:1 9:1\n" * 2_000
    server.files, server.shift, server.length = {"/lines": content}, shift, None
    (tmp_path / "lines.part").write_bytes(content[:9_995])
    wanted = Download(f"{server.url}/lines", lines=2_000 - (shift // 10 if abs(shift) > 10 else 0))
    with pytest.raises(LabError, match=r"Cannot download .* \(the server sent another part of the file than .*\)"):
        download(wanted, tmp_path)
    assert download(Download(f"{server.url}/lines", lines=2_000), tmp_path).read_bytes() == content


def test_a_download_that_resumes_at_the_byte_asked_for(server, tmp_path):
    server.shift = 0
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    assert download(item(server), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("target", ["elsewhere/file.bin", "file.bin"])
def test_a_link_to_a_missing_file_is_left_alone(target, server, tmp_path):
    (tmp_path / "file.bin").symlink_to(target)
    with pytest.raises(LabError, match=r"file\.bin is a link to a file that is missing: delete the link .*\.$"):
        download(item(server), tmp_path)
    assert (tmp_path / "file.bin").is_symlink()
    assert server.ranges == []


def test_complete_part_is_taken_over(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert download(item(server), tmp_path).read_bytes() == CONTENT


def test_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(LabError, match=r"not the official file: its MD5 sum is \w{32} instead of 0000; .*try again"):
        download(item(server, md5="0000"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_right_file_is_not_downloaded_again(server, tmp_path):
    (tmp_path / "file.bin").write_bytes(CONTENT)
    download(item(server), tmp_path)
    assert server.ranges == []


def test_other_file_is_never_overwritten(server, tmp_path):
    (tmp_path / "file.bin").write_bytes(b"mine")
    with pytest.raises(LabError, match=r"file.bin is not the official file.*delete it to download it anew"):
        download(item(server), tmp_path)
    assert (tmp_path / "file.bin").read_bytes() == b"mine"


def test_missing_page_is_one_sentence(server, tmp_path):
    with pytest.raises(LabError, match=r"other.bin \(Not Found\).*save that file as /.*other.bin"):
        download(Download(f"{server.url}/other.bin"), tmp_path)


def test_no_network_is_one_sentence(tmp_path):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as closed:
        url = f"http://127.0.0.1:{closed.server_port}/file.bin"
    with pytest.raises(LabError, match="Connection refused") as error:
        download(Download(url), tmp_path)
    assert str(tmp_path / "file.bin") in str(error.value)


def test_full_disk_is_said_and_the_part_kept(server, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(LabError, match=r"Cannot write .*file.bin.part: File too large"):
            download(item(server), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not (tmp_path / "file.bin").exists()
    assert download(item(server), tmp_path).read_bytes() == CONTENT


@pytest.fixture
def small_mnist(server, tmp_path, monkeypatch):
    """Serve a small MNIST in the place of the official one."""
    served = archives.mnist(tmp_path / "served")
    server.files = {f"/{path.name}": path.read_bytes() for path in served.iterdir()}
    source = catalogue.SOURCES["mnist"]
    names = [f"/{official.name}" for official in source.downloads]
    downloads = tuple(Download(server.url + n, hashlib.md5(server.files[n]).hexdigest()) for n in names)
    monkeypatch.setitem(catalogue.SOURCES, "mnist", replace(source, downloads=downloads))
    return tmp_path / "root"


def test_fetched_data_set_loads(small_mnist, server):
    assert data.fetch("mnist", small_mnist) == small_mnist / "mnist"
    assert len(data.load("mnist", small_mnist).train.inputs) == 20
    data.fetch("mnist", small_mnist)
    assert len(server.ranges) == 4


def test_fetch_completes_a_folder(small_mnist, server):
    data.fetch("mnist", small_mnist)
    (small_mnist / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    data.fetch("mnist", small_mnist)
    assert len(server.ranges) == 5


def test_fetch_takes_what_is_unpacked_already(small_mnist, server):
    archives.mnist(small_mnist / "mnist", compressed=False)
    assert data.fetch("mnist", small_mnist) == small_mnist / "mnist"
    assert server.ranges == []


def test_fetch_refuses_a_page_that_is_no_data(server, tmp_path, monkeypatch):
    server.files["/mushrooms"] = gzip.compress(b"<html>moved</html>")
    source = replace(catalogue.SOURCES["mushrooms"], downloads=(Download(f"{server.url}/mushrooms"),))
    monkeypatch.setitem(catalogue.SOURCES, "mushrooms", source)
    with pytest.raises(LabError, match=r"mushrooms is damaged or not what its name says .*delete it"):
        data.fetch("mushrooms", tmp_path)


@pytest.mark.parametrize("name", ["digits", "separable-logistic"])
def test_nothing_to_fetch_is_said(name):
    with pytest.raises(LabError, match=f"{name!r} needs no download"):
        data.fetch(name)


MUSHROOMS = b"".join(b"%d %d:1 %d:1 \n" % (row % 2, row % 9 + 1, row % 7 + 20) for row in range(8124))


@pytest.mark.parametrize("cut", [1, 14, 30_000, len(MUSHROOMS) - 1, len(MUSHROOMS) - 14])
def test_a_download_cut_short_without_a_length_is_refused(cut, server, tmp_path, monkeypatch):
    """Every set has a checksum or a number of lines; the server here only closes the connection."""
    (official,) = catalogue.SOURCES["mushrooms"].downloads
    here = replace(official, url=f"{server.url}/mushrooms")
    source = replace(catalogue.SOURCES["mushrooms"], downloads=(here,))
    monkeypatch.setitem(catalogue.SOURCES, "mushrooms", source)
    server.files["/mushrooms"], server.length, server.cut = MUSHROOMS, None, cut
    with pytest.raises(LabError, match=r"is not the official file: it has [\d,]+ whole lines instead of 8,124"):
        data.fetch("mushrooms", tmp_path)
    server.cut = None
    assert data.fetch("mushrooms", tmp_path).is_dir()


def test_every_download_is_pinned():
    for source in catalogue.SOURCES.values():
        assert all(download.md5 or download.lines for download in source.downloads), source.name


@pytest.mark.parametrize("length", ["abc", "-5", "1e3", "9" * 5000, "²"])
def test_a_length_that_is_no_number_is_ignored(length, server, tmp_path):
    server.length = length
    assert download(item(server), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    "address",
    [
        "",
        "http://",
        "http://[",
        "http://a:b/",
        "ftp://nowhere.invalid/",
        "file:///etc/passwd",
        "gopher://x/",
        "//",
        "http://" + "a" * 100 + ".b/",
    ],
)
def test_a_malformed_redirect_is_said(address, server, tmp_path):
    server.files["/file.bin"] = address
    with pytest.raises(LabError) as error:
        download(item(server), tmp_path)
    assert str(error.value).startswith((f"Cannot download {server.url}/file.bin (", str(tmp_path)))
    assert "\n" not in str(error.value)
    del error
    gc.collect()  # a connection left open would warn


def test_a_redirect_that_never_ends_is_said(server, tmp_path):
    server.files["/file.bin"] = "/file.bin"
    with pytest.raises(LabError, match=r"Cannot download .*file\.bin \(.*redirect"):
        download(item(server), tmp_path)
