"""Pictures of the report, for people to look at: python tests/report/screenshots.py HADAL DIRECTORY"""

import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from synthetic import Run


def main(hadal, out):
    muon = Run(steps=4000, pace=1.3, spike_at=1500).train().write(out / "runs" / "nano-muon")
    adamw = Run(steps=4000, seed=2, lr=2e-3).train().write(out / "runs" / "nano-adamw")
    pages = {"one": [muon], "two": [muon, adamw]}
    for name, runs in pages.items():
        subprocess.run([hadal, "report", *runs, "-o", out / f"{name}.html"], check=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        for size, width, scheme in [
            ("light", 1280, "light"), ("dark", 1280, "dark"), ("phone", 390, "light"),
        ]:
            context = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=scheme, device_scale_factor=1
            )
            page = context.new_page()
            for name in pages:
                page.goto((out / f"{name}.html").as_uri())
                page.wait_for_timeout(300)
                page.screenshot(path=out / f"{name}-{size}.png", full_page=True)
                plot = page.locator("figure.chart svg[role=img]").first
                box = plot.bounding_box()
                page.mouse.move(box["x"] + 0.36 * box["width"], box["y"] + 80)
                page.screenshot(path=out / f"{name}-{size}-hover.png")
            if size == "light":
                page.goto((out / "one.html").as_uri())
                page.pdf(path=out / "one.pdf", format="A4")
            context.close()
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]).resolve())
