"""Whatever is given as a picture becomes one, or one clear sentence."""

import base64
import http.server
import io
import os
import socket
import threading
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mlx_corematching.errors import InputError
from mlx_corematching.inputs import pictures
from mlx_corematching.inputs.pictures import load_picture

PIXELS = np.random.RandomState(0).randint(0, 256, (20, 30, 3)).astype(np.uint8)
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")


def encoded(kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **options)
    return file.getvalue()


def test_a_path_a_pil_picture_and_a_data_url_are_the_same_picture(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(encoded())
    url = "data:image/png;base64," + base64.b64encode(encoded()).decode()
    loaded = [load_picture(source) for source in (path, str(path), Image.open(path), url)]
    assert len({picture.digest for picture in loaded}) == 1
    assert np.array_equal(np.asarray(loaded[0].image), PIXELS)


def test_the_digest_tells_pictures_apart():
    turned = Image.fromarray(PIXELS.reshape(30, 20, 3))
    assert load_picture(turned).digest != load_picture(Image.fromarray(PIXELS)).digest


def test_standard_input(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(encoded("JPEG"))))
    assert load_picture("-").image.size == (30, 20)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(InputError, match="standard input is empty"):
        load_picture("-")


def bad_files(folder):
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("this is no picture")
    (folder / "cut.jpg").write_bytes(encoded("JPEG", quality=95)[:-200])
    (folder / "cut.png").write_bytes(encoded()[:-200])
    (folder / "heic.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    return {
        "no-such.png": "there is no picture",
        "": "^[^ ]* is a folder; name a picture in it$",
        "empty.png": "is empty",
        "text.jpg": "not a picture that can be read .its format is not known.",
        "cut.jpg": "damaged or cut short",
        "cut.png": "damaged or cut short",
        "heic.heic": "sips -s format jpeg",
        "nul\0byte.png": "cannot be read",
    }


def test_files_that_are_no_pictures(tmp_path):
    for name, message in bad_files(tmp_path).items():
        with pytest.raises(InputError, match=message) as caught:
            load_picture(f"{tmp_path}/{name}")
        assert "\n" not in str(caught.value)


def test_an_unreadable_file(tmp_path):
    path = tmp_path / "secret.png"
    path.write_bytes(encoded())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(InputError, match="cannot be read"):
        load_picture(path)


def test_an_animation_gives_its_first_frame_and_says_so(tmp_path):
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    said = []
    picture = load_picture(tmp_path / "a.gif", notice=said.append)
    assert picture.image.getpixel((4, 4)) == (255, 0, 0)
    assert len(said) == 1
    assert "first of its 3 frames" in said[0]


def png_header(width, height):
    """A PNG that claims a size and has no pixels to it."""

    def chunk(kind, data):
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", size + b"\x08\x02\0\0\0")
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(10_001, 10_000), (20_000, 20_000), (60_000, 60_000)])
def test_more_than_100_megapixels_are_refused_before_decoding(size, tmp_path, monkeypatch):
    (tmp_path / "large.png").write_bytes(png_header(*size))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(InputError, match="more than 100 million pixels"):
        load_picture(tmp_path / "large.png")


@pytest.mark.parametrize("source", [7, None, b"bytes", ["a.png"]])
def test_things_that_are_no_pictures(source):
    with pytest.raises(InputError, match="a path, a URL or a PIL picture"):
        load_picture(source)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///etc/hostname", "only http and https"),
        ("ftp://127.0.0.1/a.png", "only http and https"),
        ("data:image/png,abc", "has to be base64"),
        ("data:image/png;base64,%%%", "not valid base64"),
        ("http://", "does not answer"),
        ("http://127.0.0.1:1/a.png", "does not answer"),
    ],
)
def test_addresses_that_cannot_be_used(url, message):
    with pytest.raises(InputError, match=message):
        load_picture(url)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.strip("/")
        if name == "missing":
            self.send_error(404)
            return
        if name in ("moved", "to-file", "to-ftp"):
            self.send_response(302)
            target = {"moved": "/a.png", "to-file": "file:///etc/hostname"}
            self.send_header("Location", target.get(name, "ftp://127.0.0.1/a.png"))
            self.end_headers()
            return
        self.send_response(200)
        self.end_headers()
        if name == "text":
            self.wfile.write(b"<html>no picture</html>")
        elif name == "endless":
            try:
                while True:
                    self.wfile.write(b"\0" * 65536)
            except OSError:
                pass
        elif name != "nothing":
            self.wfile.write(encoded())

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{served.server_port}"
    served.shutdown()
    served.server_close()


@pytest.mark.parametrize("path", ["a.png", "moved"])
def test_a_url(server, path):
    assert np.array_equal(np.asarray(load_picture(f"{server}/{path}").image), PIXELS)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing", "answered 404"),
        ("text", "not a picture"),
        ("nothing", "is empty"),
        ("endless", "larger than 100 MB"),
        ("to-file", "answered 302|does not answer"),
        ("to-ftp", "does not answer|not http"),
    ],
)
def test_urls_that_give_no_picture(server, path, message):
    with pytest.raises(InputError, match=message):
        load_picture(f"{server}/{path}")


def test_a_url_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(pictures, "_CONNECT_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(InputError, match="does not answer"):
            load_picture(f"http://127.0.0.1:{silent.getsockname()[1]}/a.png")


def test_an_empty_clipboard_and_a_screen_that_is_not_there(monkeypatch):
    from PIL import ImageGrab

    monkeypatch.setattr(ImageGrab, "grabclipboard", lambda: None)
    with pytest.raises(InputError, match="holds no picture"):
        load_picture("clipboard")

    def refuse():
        raise OSError("X connection failed")

    monkeypatch.setattr(ImageGrab, "grab", refuse)
    with pytest.raises(InputError, match="screen cannot be read"):
        load_picture("screen")


def test_a_copied_picture(monkeypatch):
    from PIL import ImageGrab

    monkeypatch.setattr(ImageGrab, "grabclipboard", lambda: Image.fromarray(PIXELS))
    assert np.array_equal(np.asarray(load_picture("clipboard").image), PIXELS)


GOOD = {kind: encoded(kind) for kind in FORMATS}


@given(
    st.sampled_from(FORMATS),
    st.floats(0, 1),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
)
def test_damaged_files_are_refused_in_one_sentence_or_decoded(kind, share, flips):
    data = bytearray(GOOD[kind][: 1 + int(share * len(GOOD[kind]))])
    for place, value in flips:
        data[int(place * (len(data) - 1))] = value
    url = "data:image/x;base64," + base64.b64encode(bytes(data)).decode()
    try:
        picture = load_picture(url, notice=None)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert picture.image.mode == "RGB"
