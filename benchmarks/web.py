#!/usr/bin/env python3
"""Cold start and milliseconds an image of the page of `export --format web`, beside ONNX Runtime on one thread.

The page of each network is opened in this machine's Chromium, without a cache, and given images; then ONNX Runtime gets
as many, one at a time. Both take turns; medians, and the range of the rounds' medians. The runtime is served from this
machine, so a cold start has no way through a network in it.

    python benchmarks/web.py --runtime .venv/node_modules/onnxruntime-web
    python benchmarks/web.py --runtime .venv/node_modules/onnxruntime-web --dataset cifar10 --weights-dir DIR
"""

from __future__ import annotations

import argparse
import functools
import http.server
import io
import platform
import re
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

IMAGES, ROUNDS, WARM_UP = 50, 5, 20


class Handler(http.server.SimpleHTTPRequestHandler):
    """A server without a log."""

    def log_message(self, *_: object) -> None:
        pass


def in_browser(browser, url: str, pictures: list[dict]) -> tuple[float, float]:
    """Return the seconds until the page is ready, and the median ms an image."""
    page = browser.new_page()
    page.goto(url)
    page.locator("#status", has_text="Ready after").wait_for()
    seconds = float(re.search(r"[\d.]+", page.text_content("#status"))[0])
    page.set_input_files("#files", pictures)
    page.locator("article p:not(:empty)").nth(len(pictures) - 1).wait_for()
    times = page.locator("article p").evaluate_all("notes => notes.map((note) => parseFloat(note.textContent))")
    page.close()
    return seconds, float(np.median(times))


def in_python(path: Path, image: np.ndarray) -> float:
    """Return the median ms an image."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    times = []
    for _ in range(WARM_UP + IMAGES):
        start = time.perf_counter()
        session.run(None, {"images": image})
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times[WARM_UP:]))


def row(browser, directory: Path) -> str:
    """Return the table's cells of one page."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    pictures = [{"name": f"{number}.png", "mimeType": "", "buffer": file.getvalue()} for number in range(IMAGES)]
    normal = pixels.transpose(2, 0, 1)[None].astype(np.float32) / 255
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(directory)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/"
    net = directory / "net.onnx"
    rounds = np.array([(*in_browser(browser, url, pictures), in_python(net, normal)) for _ in range(ROUNDS)])
    server.shutdown()
    cells = [f"{np.median(values):.2f} ({min(values):.2f} to {max(values):.2f})" for values in rounds.T]
    return " | ".join([f"{net.stat().st_size / 1e6:.2f}", *cells])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", type=Path, required=True, metavar="DIR", help="npm's onnxruntime-web")
    parser.add_argument("--dataset", default="digits", metavar="NAME", help="digits (default): the bundled networks")
    parser.add_argument("--model", default="*", metavar="PATTERN", help="names or wildcards")
    parser.add_argument("--weights-dir", metavar="DIR", help="the authors' weights")
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    import pydmobilenet
    from pydmobilenet import catalog, checkpoints, machine
    from pydmobilenet.errors import MissingFileError

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    records = catalog.select([arguments.model], [arguments.dataset], records=[*catalog.RECORDS, *checkpoints.bundled()])
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as temporary:
        browser = playwright.chromium.launch(executable_path=chromium)
        print(f"Chromium {browser.version}, one thread of {machine.cpu_name()}, {platform.system()}\n")
        print("| model | MB | cold start, s | ms, browser | ms, ONNX Runtime |\n| --- | --: | --: | --: | --: |")
        for record in (record for record in records if record.filename):
            site = Path(temporary, record.model)
            weights_dir = None if arguments.dataset == "digits" else arguments.weights_dir
            named = {"dataset": arguments.dataset, "weights_dir": weights_dir}
            try:
                pydmobilenet.export(record.model, site, **named, format="web", runtime=arguments.runtime)
            except MissingFileError as error:
                print(f"{record.model} left out: {error}", file=sys.stderr)
                continue
            print(f"| {record.model} | {row(browser, site)} |", flush=True)
        browser.close()


if __name__ == "__main__":
    main()
