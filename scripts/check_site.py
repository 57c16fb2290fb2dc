"""Open every page of the built site in Chromium, at the width of a desktop and of a phone.

    make check-docs
    python scripts/check_site.py site --shots docs/images/site

A page must have no error in the console, no missing image, no request to another host, and nothing wider than the
window. Needs Debian's packages chromium and chromium-driver, and ``pip install selenium``.
"""

import functools
import http.server
import json
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import tyro
from PIL import Image
from selenium import webdriver  # pyright: ignore
from selenium.webdriver.chrome.options import Options  # pyright: ignore
from selenium.webdriver.chrome.service import Service  # pyright: ignore

WIDTHS = {1280: False, 390: True}  # pixels -> whether the window is a phone's
HEIGHT = 900
# Pages shown in the repository, each at one width.
SHOTS = {
    'index': 1280,
    'tutorial/look_inside': 1280,
    'models/table': 1280,
    'reference/tresnet_jax': 1280,
    'howto/fine_tune': 390,
}
SHOT_COLOURS = 128

# What is wrong with the page, as a list of lines.
FAULTS = """
const faults = [];
if (document.documentElement.scrollWidth > window.innerWidth) {
    faults.push(`${document.documentElement.scrollWidth} pixels wide`);
}
for (const image of document.images) {
    if (!image.complete || image.naturalWidth === 0) faults.push(`missing image ${image.src}`);
}
return faults;
"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def start_browser() -> Any:
    """Return a headless Chromium that keeps its console and its requests."""
    options = Options()
    options.add_argument('--headless=new')
    options.add_argument('--no-sandbox')
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL', 'performance': 'ALL'})
    programs = {name: shutil.which(name) for name in ('chromium', 'chromedriver')}
    if None in programs.values():
        raise SystemExit('error: Chromium is not installed; run: apt-get install chromium chromium-driver')
    options.binary_location = str(programs['chromium'])
    return webdriver.Chrome(options=options, service=Service(programs['chromedriver']))


def faults_of(browser: Any, url: str) -> list[str]:
    """Open a page and return what is wrong with it."""
    browser.get(url)
    found = list(browser.execute_script(FAULTS))
    found += [entry['message'] for entry in browser.get_log('browser') if entry['level'] == 'SEVERE']
    host = url.split('/')[2]
    for entry in browser.get_log('performance'):
        message = json.loads(entry['message'])['message']
        if message['method'] == 'Network.requestWillBeSent':
            asked = message['params']['request']['url']
            if asked.startswith('http') and asked.split('/')[2] != host:
                found.append(f'asks {asked}')
    return found


def save_shot(browser: Any, path: Path) -> None:
    """Write what the window shows as a small PNG file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(path))
    Image.open(path).convert('RGB').quantize(SHOT_COLOURS).save(path, optimize=True)


def main(site: tyro.conf.Positional[Path], shots: Path | None = None) -> int:
    """Check every page.

    Args:
        site: the folder that `make docs` has built.
        shots: write images of five pages to this folder.
    """
    pages = sorted(path.relative_to(site) for path in site.rglob('*.html') if path.parts[len(site.parts)] != '_static')
    if not pages:
        print(f'error: {site}: has no pages; build them with make docs', file=sys.stderr)
        return 2
    handler = functools.partial(_Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser = start_browser()
    bad = 0
    try:
        for width, is_phone in WIDTHS.items():
            size = {'width': width, 'height': HEIGHT, 'deviceScaleFactor': 1, 'mobile': is_phone}
            browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
            for page in pages:
                for fault in faults_of(browser, f'http://127.0.0.1:{server.server_port}/{page}'):
                    print(f'{page} at {width} pixels: {fault}')
                    bad += 1
                name = str(page.with_suffix(''))
                if shots and SHOTS.get(name) == width:
                    save_shot(browser, shots / f'{name.replace("/", "_")}_{width}.png')
    finally:
        browser.quit()
        server.shutdown()
    print(f'{len(pages)} pages at {len(WIDTHS)} widths: {bad} faults')
    return int(bad > 0)


if __name__ == '__main__':
    sys.exit(tyro.cli(main))
