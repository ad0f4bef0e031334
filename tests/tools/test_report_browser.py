from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from shared.metrics import METRICS
from tests.tools.report_page import browse, browser, measured

needs_browser = pytest.mark.skipif(browser() is None, reason="needs Chromium or Chrome")


@needs_browser
def test_console_messages_are_seen(tmp_path):
    """Without this, a page without errors would prove nothing."""
    (tmp_path / "bad.html").write_text("<!DOCTYPE html><body><script>undefined_name()</script></body>")
    _, console = browse(tmp_path / "bad.html", 800, 600, "--dump-dom")
    assert "undefined_name" in "".join(console)


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["chain_page", "strategies_page"])
def test_page_in_a_browser(request, tmp_path, which, scheme, width):
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    picture = tmp_path / "page.png"
    _, console = browse(request.getfixturevalue(which), width, 2400, f"--screenshot={picture}", *dark)
    assert console == []
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape == (2400, width, 3)
    # The corner is the page's own colour; enough of the page is something else, in many colours.
    assert (pixels[0, 0].mean() > 200) == (scheme == "light")
    assert (pixels != pixels[0, 0]).any(-1).mean() > 0.2
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
@pytest.mark.parametrize("which", ["chain_page", "strategies_page"])
def test_nothing_sticks_out_sideways(request, which, width):
    path = request.getfixturevalue(which)
    assert measured(path, width, "[innerWidth, document.documentElement.scrollWidth]") == f"{width},{width}"


@needs_browser
@pytest.mark.slow
def test_tabs_change_the_panel_without_a_script_of_the_page(chain_page):
    shown = "[...document.querySelectorAll('#cases .panel')].map(p => p.offsetHeight > 0 ? 1 : 0)"
    click = "document.querySelectorAll('#cases .tabs > label')[2].click()"
    assert measured(chain_page, 1280, shown) == ",".join(str(int(i == 0)) for i in range(len(METRICS)))
    assert measured(chain_page, 1280, shown, click) == ",".join(str(int(i == 2)) for i in range(len(METRICS)))
