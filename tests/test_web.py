"""The page of `export --format web`: its folder, and its pixels and answers in Node and Chromium beside Python's."""

import functools
import http.server
import io
import json
import re
import runpy
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import oracle
import pytest
from helpers import ROOT, commander, decode, encoded
from PIL import Image

import pydmobilenet
from pydmobilenet import catalog, web
from pydmobilenet.checkpoints import formats
from pydmobilenet.errors import MissingFileError, UnusableError, UserError

MODEL = "pyd-add-29-0.25"
# `make` installs it beside the packages of Python.
RUNTIME = Path(sys.prefix, "node_modules", "onnxruntime-web")
NODE = shutil.which("node")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_node = pytest.mark.skipif(not NODE, reason="Node is not here")
NO_RUNTIME = f"onnxruntime-web is not in {RUNTIME.parent}"


@pytest.fixture
def call(monkeypatch, capsys):
    return commander(monkeypatch, capsys)


def export(directory, **options):
    options = {"model": MODEL, "dataset": "digits", **options}
    pydmobilenet.export(options.pop("model"), directory, format="web", engine="onnxruntime", **options)
    return directory


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The page of the bundled digits, with onnxruntime-web in it."""
    if not RUNTIME.is_dir():
        pytest.skip(NO_RUNTIME)
    return export(tmp_path_factory.mktemp("web") / "site", runtime=RUNTIME)


def named(directory, classes, dataset="folder:/home/me/pictures"):
    """Write random weights that record these classes."""
    network = catalog.describe("pyd-add-11-0.25", "cifar10", len(classes))
    metadata = {"model": "pyd-add-11-0.25", "dataset": dataset, "classes": classes, "outputs": len(classes)}
    metadata.update(mean=(0.5,) * 3, std=(0.25,) * 3, image_size=32, decoding="draft")
    texts = {name: value if name in ("model", "dataset") else json.dumps(value) for name, value in metadata.items()}
    path = directory / "net.safetensors"
    path.write_bytes(formats.dump_safetensors(oracle.random_arrays(network), texts))
    return path


# The folder


def test_the_folder_has_the_network_its_labels_and_a_page_that_loads_a_pinned_runtime(tmp_path, call):
    site = tmp_path / "site"
    network = ["--model", MODEL, "--dataset", "digits", "--engine", "onnxruntime"]
    code, out, err = call("export", *network, "--format", "web", "--output", site)
    assert (code, err) == (0, "")
    assert f"wrote {site}: {MODEL} for Digits" in out
    assert out.splitlines()[-1] == f"to see it: python -m http.server --directory {site}"
    names = {"index.html", "labels.json", "net.onnx", "page.css", "page.js", "pixels.js"}
    assert {path.name for path in site.iterdir()} == names
    assert sum(path.stat().st_size for path in site.iterdir()) < 300_000
    labels = json.loads((site / "labels.json").read_text())
    assert labels["classes"] == list("0123456789")
    assert (labels["mean"], labels["std"], labels["image_size"]) == ([0.3054] * 3, [0.3753] * 3, 32)
    assert labels["parameters"] == catalog.describe(MODEL, "digits", 10).complexity((3, 32, 32)).parameters
    page = (site / "index.html").read_text()
    assert page.count(f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{web.VERSION}/dist/") == 3  # the policy, two files
    assert all(f'"{expected}"' in page for _, expected in web.RUNTIME.values())
    again = call("export", *network, "--format", "web", "--output", site)
    assert again[0] == 2
    assert "exists already" in again[2]


def test_the_hashes_are_those_of_npm_s_files(site):
    for name, expected in web.RUNTIME.values():
        assert web.integrity((RUNTIME / "dist" / name).read_bytes()) == expected
        assert (site / "runtime" / name).read_bytes() == (RUNTIME / "dist" / name).read_bytes()
    assert "https:" not in (site / "index.html").read_text()


def test_another_runtime_is_copied_with_its_own_hashes_and_a_warning(tmp_path):
    for name, _ in web.RUNTIME.values():
        (tmp_path / name).write_bytes(name.encode())
    with pytest.warns(UserWarning, match=f"is not of onnxruntime-web {web.VERSION}"):
        site = export(tmp_path / "site", runtime=tmp_path)
    page = (site / "index.html").read_text()
    assert all(f'["runtime/{name}", "{web.integrity(name.encode())}"]' in page for name, _ in web.RUNTIME.values())


def test_what_the_page_cannot_use_is_refused_before_any_work(tmp_path):
    with pytest.raises(UserError, match=r"uint8-input is for the format onnx.*: leave it out for web"):
        export(tmp_path / "site", uint8_input=True)
    with pytest.raises(UserError, match="runtime is for the format web: leave it out for onnx"):
        pydmobilenet.export(MODEL, tmp_path / "x.onnx", "digits", runtime=tmp_path)
    with pytest.raises(MissingFileError, match=r"has no ort\.wasm.* npm install onnxruntime-web@"):
        export(tmp_path / "site", runtime=tmp_path)
    with pytest.raises(UnusableError, match="cannot write a directory to /dev/stdout"):
        export("/dev/stdout")
    (tmp_path / "file").touch()
    with pytest.raises(UnusableError, match="cannot make the directory"):
        export(tmp_path / "file" / "site")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_s_path_stays_here_and_its_names_are_no_html(tmp_path):
    site = export(
        tmp_path / "site",
        model=None,
        dataset=None,
        weights=named(tmp_path, ["a", "</script>"], "folder:/my/<b>&"),
    )
    page = (site / "index.html").read_text()
    assert "<title>pyd-add-11-0.25 for &lt;b&gt;&amp;</title>" in page
    labels = json.loads((site / "labels.json").read_text())
    assert (labels["dataset"], labels["classes"]) == ("folder:<b>&", ["a", "</script>"])
    assert not any(b"/my/" in path.read_bytes() for path in site.iterdir())


# Its pixels


def node(directory, code, *images):
    """Run code with the page's functions as `pixels`, and images (H, W, 4) as `read(number)`; return what it prints."""
    shutil.copy(ROOT / "pydmobilenet" / "web" / "pixels.js", directory / "pixels.mjs")  # Node's name for a module
    for number, image in enumerate(images):
        image.tofile(directory / f"{number}.rgba")
    begin = """import fs from "node:fs"; import * as pixels from "./pixels.mjs";
        const read = (number) => new Uint8ClampedArray(fs.readFileSync(`${number}.rgba`));
        const see = (number, width, height, side, isJpeg) => {
            const band = (top, rows) => read(number).slice(4 * width * top, 4 * width * (top + rows));
            return pixels.toPixels(band, width, height, side, isJpeg).catch((error) => error.message);
        };"""
    (directory / "code.mjs").write_text(begin + f"console.log(JSON.stringify(await (async () => {{ {code} }})()))")
    answer = subprocess.run([NODE, "code.mjs"], cwd=directory, capture_output=True, text=True, timeout=100)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def seen(directory, images, side=32, is_jpeg=False):
    """What the page sees of images (H, W, 4): (3, side, side)."""
    sizes = json.dumps([(image.shape[1], image.shape[0]) for image in images])
    code = f"""const all = []; for (const [number, [width, height]] of {sizes}.entries()) {{
        const rgba = await see(number, width, height, {side}, {str(is_jpeg).lower()});
        all.push(typeof rgba === "string" ? rgba : Array.from(rgba)); }} return all;"""
    answers = node(directory, code, *images)
    return [
        rgba if isinstance(rgba, str) else np.reshape(rgba, (side, side, 4))[..., :3].transpose(2, 0, 1)
        for rgba in answers
    ]


def random_rgba(height, width, opaque=True):
    pixels = np.random.default_rng(height + width).integers(0, 256, (height, width, 4), np.uint8)
    if opaque:
        pixels[..., 3] = 255
    return pixels


@needs_node
@pytest.mark.parametrize("side", [32, 40])
def test_the_page_resizes_as_pillow_bit_for_bit(side, tmp_path):
    images = [
        random_rgba(*size) for size in ((32, 32), (33, 40), (7, 100), (480, 640), (1, 1), (31, 1000), (1500, 1400))
    ]
    for image, found in zip(images, seen(tmp_path, images, side)):
        expected = Image.fromarray(image[..., :3]).resize((side, side), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(found, np.asarray(expected).transpose(2, 0, 1))


@needs_node
def test_transparency_is_composited_on_white_and_white_ink_refused(tmp_path):
    ink = np.full((40, 40, 4), 255, np.uint8)
    ink[:20, :, 3] = 0
    image = random_rgba(50, 70, opaque=False)
    found, message = seen(tmp_path, [image, ink])
    expected = decode(encoded(Image.fromarray(image), "PNG")).pixels
    assert abs(found - expected.astype(int)).max() <= 1
    assert message == "is drawn in white on transparency: give it a background"


def photo(width, height):
    """Return smooth colours with edges and some noise, as a photograph has."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    waves = [np.sin(9 * x + 5 * y), np.sin(14 * y - 3 * x), np.sign(np.sin(20 * x * y))]
    pixels = 128 + 70 * np.stack(waves, axis=2) + np.random.default_rng(0).normal(0, 8, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def full(content):
    """Decode a JPEG in full, as a browser does, to (H, W, 4)."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))


@needs_node
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_a_large_jpeg_is_averaged_as_a_draft_is_decoded(subsampling, tmp_path):
    sizes = [(128, 128), (640, 480), (300, 261), (1024, 768)]
    contents = [encoded(photo(*size), "JPEG", quality=90, subsampling=subsampling) for size in sizes]
    found = seen(tmp_path, [full(content) for content in contents], is_jpeg=True)
    apart = [abs(pixels - decode(content).pixels.astype(int)) for content, pixels in zip(contents, found)]
    # The JPEG library takes sparse colours as they are, where a browser has interpolated them before.
    assert max(values.max() for values in apart) <= (2 if subsampling == "4:4:4" else 8)
    assert max(values.mean() for values in apart) < 0.6


# Its answers


def digits():
    """Return the test images as PNGs, and their classes by `predict`."""
    images = pydmobilenet.get_dataset("digits", split="test").images.transpose(0, 2, 3, 1)
    answers = pydmobilenet.predict(np.ascontiguousarray(images), MODEL, "digits", engine="onnxruntime")
    return images, [answer.classes[0] for answer in answers]


@needs_node
def test_in_node_all_digits_have_the_classes_of_python(site, tmp_path):
    images, answers = digits()
    code = f"""const ort = await import({json.dumps((RUNTIME / "dist" / web.RUNTIME["script"][0]).as_uri())});
        const site = {json.dumps(str(site))};
        ort.env.wasm.wasmBinary = fs.readFileSync(`${{site}}/runtime/{web.RUNTIME["wasm"][0]}`);
        ort.env.wasm.numThreads = 1;
        const labels = JSON.parse(fs.readFileSync(`${{site}}/labels.json`));
        const session = await ort.InferenceSession.create(fs.readFileSync(`${{site}}/net.onnx`));
        const all = read(0), answers = [];
        for (let start = 0; start < all.length; start += 4096) {{
            const values = pixels.normalise(all.subarray(start, start + 4096), labels.mean, labels.std);
            const images = new ort.Tensor("float32", values, [1, 3, 32, 32]);
            answers.push(pixels.softmax((await session.run({{ images }})).logits.data)[0]);
        }} return answers;"""
    opaque = np.concatenate([images, np.full((*images.shape[:3], 1), 255, np.uint8)], axis=3)
    found = node(tmp_path, code, opaque)
    assert [label for label, _ in found] == [label for label, _, _ in answers]
    np.testing.assert_allclose([prob for _, prob in found], [prob for _, _, prob in answers], atol=1e-5)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM:
        pytest.skip("Chromium is not here")
    if not RUNTIME.is_dir():
        pytest.skip(NO_RUNTIME)
    with playwright.sync_playwright() as started:
        fake = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        yield started.chromium.launch(executable_path=CHROMIUM, args=fake)


class Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def visit(browser):
    """Serve a folder and open its page; nothing but this server may be asked, and nothing may fail.

    `cdn` are the files that stand at jsdelivr.net.
    """
    servers, problems, urls, allowed = [], [], [], []

    def open_page(site, ready="Ready after", cdn=None, **options):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=site))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        page = browser.new_page(**options)
        servers.append((server, page))
        allowed.extend((url, "blob:", "data:"))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: urls.append(request.url))
        if cdn:
            headers = {"Access-Control-Allow-Origin": "*"}
            page.route(
                f"{web.CDN}*",
                lambda route: route.fulfill(path=cdn / route.request.url.rpartition("/")[2], headers=headers),
            )
            allowed.append(web.CDN)
        page.goto(url)
        page.locator("#status", has_text=re.compile("Ready|cannot")).wait_for(timeout=60_000)
        assert ready in page.text_content("#status")
        return page

    yield open_page
    for server, page in servers:
        page.close()
        server.shutdown()
        server.server_close()
    assert problems == []
    assert [url for url in urls if not url.startswith(tuple(allowed))] == []


def choose(page, *files):
    """Choose files (name, content); return their cards once all are answered, in their order."""
    page.set_input_files("#files", [{"name": name, "mimeType": "", "buffer": content} for name, content in files])
    page.locator("article p:not(:empty)").nth(len(files) - 1).wait_for(timeout=100_000)
    return page.locator("article").all()[::-1]


def shown(card):
    """Return the pixels (3, H, W) that a card shows."""
    code = "canvas => [canvas.width, ...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"
    side, *values = card.locator("canvas").evaluate(code)
    return np.reshape(values, (side, side, 4))[..., :3].transpose(2, 0, 1)


@pytest.mark.slow
def test_in_chromium_all_digits_have_the_classes_of_python(site, visit):
    images, answers = digits()
    page = visit(site)
    cards = choose(
        page, *((f"{number}.png", encoded(Image.fromarray(image), "PNG")) for number, image in enumerate(images))
    )
    found = page.locator("article").evaluate_all("cards => cards.map((card) => card.querySelector('bdi').textContent)")
    assert found[::-1] == [name for _, name, _ in answers]
    assert cards[7].locator("li").count() == 3
    assert cards[7].locator("li").first.text_content() == f"{answers[7][1]}{100 * answers[7][2]:.1f} %"
    times = page.locator("article p").evaluate_all("notes => notes.map((note) => parseFloat(note.textContent))")
    print(f"{page.text_content('#status')}; {np.median(times):.1f} ms an image (median of {len(times)})")


@pytest.mark.slow
def test_in_chromium_pictures_have_the_pixels_of_predict(site, visit):
    turned = Image.Exif()
    turned[0x0112] = 6
    colours = Image.fromarray(random_rgba(90, 61, opaque=False))
    contents = {
        "transparent.png": encoded(colours, "PNG"),
        "palette.gif": encoded(colours.convert("RGB").quantize(20), "GIF"),
        "grey.png": encoded(photo(70, 50).convert("L"), "PNG"),
        "lossless.webp": encoded(photo(200, 300), "WebP", lossless=True),
        "small.jpg": encoded(photo(100, 80), "JPEG", quality=95, subsampling="4:4:4"),
        "large.jpg": encoded(photo(800, 600), "JPEG", quality=95, subsampling="4:4:4"),
        "turned.jpg": encoded(photo(800, 600), "JPEG", quality=95, subsampling="4:4:4", exif=turned),
    }
    cards = choose(visit(site), *contents.items())
    for card, (name, content) in zip(cards, contents.items()):
        apart = abs(shown(card) - decode(content).pixels.astype(int)).max()
        assert apart <= (2 if name in ("large.jpg", "turned.jpg") else 1), name  # those two are drafts


@pytest.mark.slow
def test_what_is_no_picture_is_said_on_its_card_and_the_next_one_is_answered(site, visit):
    ink = np.full((40, 40, 4), 255, np.uint8)
    ink[:20, :, 3] = 0
    two = (ROOT / "examples" / "digits" / "two.png").read_bytes()
    bad, white, good = choose(
        visit(site), ("<b>x", b"nothing"), ("ink.png", encoded(Image.fromarray(ink), "PNG")), ("2", two)
    )
    assert bad.inner_text().split("\n") == ["<b>x", "", "cannot be read as a picture by this browser"]
    assert "is drawn in white on transparency" in white.inner_text()
    assert good.locator("bdi").first.inner_text() == "2"


STROKES = {  # in a square of 100
    "0": [[50, 5, 22, 25, 20, 55, 28, 85, 50, 95, 72, 85, 80, 55, 78, 25, 50, 5]],
    "1": [[38, 25, 55, 5, 55, 95]],
    "2": [[25, 22, 45, 6, 70, 15, 70, 38, 25, 93, 78, 93]],
    "3": [[25, 12, 55, 5, 75, 22, 50, 46, 75, 70, 55, 93, 22, 88]],
    "4": [[48, 5, 20, 62, 80, 62], [62, 40, 58, 95]],
    "5": [[75, 6, 30, 6, 28, 45, 60, 42, 75, 65, 60, 90, 25, 92]],
    "6": [[62, 5, 35, 30, 25, 65, 40, 93, 68, 88, 72, 65, 50, 55, 28, 68]],
    "7": [[22, 8, 76, 8, 55, 50, 42, 95], [30, 52, 72, 48]],
    "8": [[68, 15, 45, 5, 32, 22, 50, 45, 70, 70, 55, 94, 32, 82, 38, 60, 66, 35, 68, 15]],
    "9": [[70, 30, 50, 8, 30, 25, 40, 48, 68, 40, 70, 28, 66, 65, 50, 94]],
}


@pytest.mark.slow
def test_digits_drawn_with_the_mouse_are_right(site, visit):
    expect = pytest.importorskip("playwright.sync_api").expect
    page = visit(site)
    canvas = page.locator("#ink").bounding_box()
    for digit, strokes in STROKES.items():
        size = 0.5 + 0.4 * (int(digit) % 2)
        for stroke in strokes:
            points = np.reshape(stroke, (-1, 2)) / 100 * size + (1 - size) / 2
            points = (points * (canvas["width"], canvas["height"]) + (canvas["x"], canvas["y"])).tolist()
            page.mouse.move(*points[0])
            page.mouse.down()
            for point in points[1:]:
                page.mouse.move(*point, steps=3)
            page.mouse.up()
        page.wait_for_timeout(150)  # a later stroke's answer follows that of the one before
        expect(page.locator("article bdi").first).to_have_text(digit)
        page.click("#clear")
        assert page.locator("article").count() == 0


HOSTILE = ["<img src=x onerror=alert(1)>", "\u202eevil\u202c", "a\nb", "&lt;b&gt;", "x" * 300, "\udc80", "'\"`${1}"]


@pytest.mark.slow
def test_hostile_names_are_shown_as_text(visit, tmp_path):
    weights = named(tmp_path, HOSTILE, f"folder:/x/{HOSTILE[0]}")
    page = visit(export(tmp_path / "site", model=None, dataset=None, weights=weights, runtime=RUNTIME))
    assert page.title() == page.locator("h1").inner_text() == f"pyd-add-11-0.25 for {HOSTILE[0]}"
    pictures = [(f"<i>{number}</i>.png", encoded(photo(32 + number, 40), "PNG")) for number in range(6)]
    choose(page, *pictures)
    assert page.locator("article h2").all_text_contents()[::-1] == [name for name, _ in pictures]
    names = page.locator("bdi").all_text_contents()
    assert len(names) == 18
    assert set(names) <= {name.replace("\udc80", "\ufffd") for name in HOSTILE} | {"\udc80"}
    assert page.locator("img, i, b, script:not([src]):not([type='application/json'])").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
def test_even_a_script_of_the_page_cannot_send_anything_elsewhere(site, visit):
    page = visit(site)
    send = "url => fetch(url, { mode: 'no-cors', method: 'POST', body: 'x' }).then(() => 'sent', () => 'refused')"
    assert page.evaluate(send, page.url) == "sent"
    assert page.evaluate(send, page.url.replace("127.0.0.1", "localhost")) == "refused"


@pytest.mark.slow
def test_pictures_of_ten_thousand_pixels_and_a_thousand_classes_are_answered(visit, tmp_path):
    weights = named(tmp_path, [f"class {number}" for number in range(1000)])
    page = visit(export(tmp_path / "site", model=None, dataset=None, weights=weights, runtime=RUNTIME))
    large = photo(500, 125).resize((10_000, 2_500), Image.Resampling.NEAREST)
    path = tmp_path / "large.jpg"
    large.save(path, subsampling="4:4:4")
    contents = [path.read_bytes(), encoded(large.resize((10_000, 7)), "PNG")]
    cards = choose(page, *zip(("square", "flat"), contents))
    (answer,) = pydmobilenet.predict(path, weights=weights, top=1, engine="onnxruntime")
    assert cards[0].locator("bdi").first.inner_text() == answer.classes[0][1]
    for card, content in zip(cards, contents):
        assert abs(shown(card) - decode(content).pixels.astype(int)).max() <= 2


@pytest.mark.slow
def test_without_a_runtime_the_page_loads_the_cdn_s_and_refuses_another(visit, tmp_path):
    site = export(tmp_path / "site")
    page = visit(site, cdn=RUNTIME / "dist")
    assert choose(page, ("x.png", encoded(photo(40, 40), "PNG")))[0].locator("bdi").count() == 3
    for name, _ in web.RUNTIME.values():
        (tmp_path / name).write_bytes((RUNTIME / "dist" / name).read_bytes() + b" ")
    visit(site, f"{web.CDN}{web.RUNTIME['script'][0]} is not reachable, or another file", cdn=tmp_path)


@pytest.mark.slow
def test_a_changed_runtime_is_not_run(site, visit, tmp_path):
    for kind, (name, _) in web.RUNTIME.items():
        changed = shutil.copytree(site, tmp_path / kind)
        with open(changed / "runtime" / name, "ab") as file:
            file.write(b" ")
        page = visit(changed, ready="The network cannot be loaded")
        assert page.locator("article").count() == 0


@pytest.mark.slow
def test_the_camera_is_answered_until_it_is_stopped(site, visit):
    page = visit(site)
    page.click("#camera")
    page.locator("article bdi").first.wait_for()
    assert page.locator("#camera").get_attribute("aria-pressed") == "true"
    assert page.locator("article").get_attribute("aria-live") == "off"
    page.click("#camera")
    assert page.locator("video").is_hidden()
    assert not page.evaluate("Boolean(document.getElementById('video').srcObject)")


@pytest.mark.slow
def test_the_keyboard_reaches_everything_and_a_phone_shows_all_of_it(site, visit):
    page = visit(site, viewport={"width": 320, "height": 640}, color_scheme="dark", is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 27)"
    focused = []
    for _ in range(3):
        page.keyboard.press("Tab")
        focused.append(page.evaluate("[document.activeElement.id, document.activeElement.type]"))
    assert focused == [["clear", "button"], ["files", "file"], ["camera", "button"]]  # which Enter and Space press


@pytest.mark.slow
def test_the_docs_have_a_network_to_try_served_by_mkdocs(browser, tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("pdoc")
    make = runpy.run_path(str(ROOT / "docs" / "make.py"))
    make["gather"].__globals__["SOURCE"] = tmp_path / "pages"
    make["gather"]()
    make["write_demo"](RUNTIME)
    config = (ROOT / "docs" / "mkdocs.yml").read_text(encoding="utf-8")
    (tmp_path / "mkdocs.yml").write_text(config.replace("../build/", ""), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "mkdocs", "serve", "--no-livereload", "--dev-addr", address]
    server = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    try:
        assert any("Serving on" in line for line in server.stderr)
        page = browser.new_page()
        page.goto(f"http://{address}/index.html")
        page.click("text=Try it")
        page.locator("#status", has_text="Ready after").wait_for()
        page.set_input_files("#files", ROOT / "examples" / "digits" / "two.png")
        assert page.locator("article bdi").first.inner_text() == "2"
        page.close()
    finally:
        server.kill()
        server.communicate()
