"""Theme, contrast, width of a phone, and the page by keyboard and for a screen reader."""

import pytest

from tests.serve_page.asking import answer_with, ask, asked, refuse_with, reload, until

pytestmark = [pytest.mark.timeout(180), pytest.mark.sweep("the page")]

GROUND = "getComputedStyle(document.body).backgroundColor"


def brightness(page) -> float:
    return sum(page.evaluate(f"{GROUND}.match(/\\d+/g).slice(0, 3).map(Number)")) / 765


@pytest.mark.usefixtures("new_page")
def test_the_theme_follows_the_system_until_one_is_chosen(page):
    page.emulate_media(color_scheme="dark")
    assert brightness(page) < 0.2
    page.emulate_media(color_scheme="light")
    assert brightness(page) > 0.9
    page.click("#theme")
    page.click("#theme")
    assert page.inner_text("#theme-name") == "Theme: dark" and brightness(page) < 0.2
    page.reload()
    assert brightness(page) < 0.2 and page.get_attribute("html", "data-theme") == "dark"
    page.click("#theme")
    assert brightness(page) > 0.9 and page.inner_text("#theme-name") == "Theme: system"


CONTRAST = """() => {
    const probe = document.body.appendChild(document.createElement("span"));
    const rgb = (colour) => {
        probe.style.color = "";
        probe.style.color = colour;
        const canvas = document.createElement("canvas");
        canvas.width = canvas.height = 1;
        const pen = canvas.getContext("2d");
        pen.fillStyle = getComputedStyle(probe).color;
        pen.fillRect(0, 0, 1, 1);
        return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
    };
    const light = (colour) => {
        const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        const [r, g, b] = rgb(colour).map((v) => linear(v / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ratio = (a, b) => {
        const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
        return (x + 0.05) / (y + 0.05);
    };
    const pairs = [
        ["ink", "ground"], ["ink", "raised"], ["ink", "accent-soft"], ["faint", "ground"], ["faint", "raised"],
        ["faint", "sunken"], ["accent", "raised"], ["accent", "accent-soft"], ["on-accent", "accent"],
        ["bad", "bad-soft"],
    ];
    const found = Object.fromEntries(pairs.map(([a, b]) => [`${a} on ${b}`, ratio(`var(--${a})`, `var(--${b})`)]));
    for (let hue = 0; hue < 360; hue += 3)
        found[`code of hue ${hue}`] = ratio(`hsl(${hue} var(--code-ink))`, `hsl(${hue} var(--code-fill))`);
    probe.remove();
    return found;
}"""


def test_all_text_has_enough_contrast(page):
    """4.5 to 1, what WCAG 2.2 asks of text (1.4.3)."""
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        found = page.evaluate(CONTRAST)
        assert {pair: round(ratio, 2) for pair, ratio in found.items() if ratio < 4.5} == {}, theme


@pytest.mark.usefixtures("new_page")
def test_both_ways_to_dark_have_the_same_colours(page):
    names = page.evaluate("""() => [...document.styleSheets[0].cssRules].find((rule) => rule.selectorText === ":root")
        .style.cssText.match(/--[\\w-]+/g)""")
    read = "(names) => names.map((name) => getComputedStyle(document.documentElement).getPropertyValue(name))"
    page.emulate_media(color_scheme="dark")
    by_system = page.evaluate(read, names)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(read, names)
    page.evaluate("document.documentElement.dataset.theme = 'dark'")
    assert page.evaluate(read, names) == by_system != light
    page.emulate_media(color_scheme="dark")
    page.evaluate("document.documentElement.dataset.theme = 'light'")
    assert page.evaluate(read, names) == light


def overflow(page) -> list[str]:
    """Elements that reach beyond the width of the page, and what can be scrolled sideways."""
    return page.evaluate("""() => [...document.querySelectorAll("body, body *")].filter((element) => {
        const {left, right, width} = element.getBoundingClientRect();
        if (!width || element.closest(".hidden, .skip, svg")) return false;
        const {overflowX, display} = getComputedStyle(element);
        const scrolls = element.scrollWidth > element.clientWidth + 1 && overflowX !== "hidden" && display !== "inline";
        return right > innerWidth + 0.5 || left < -0.5 || (scrolls && element.clientWidth > 0);
    }).map((element) => `${element.tagName}#${element.id}.${element.className}`)""")


def find_small_targets(page) -> list[str]:
    """What is less than 24 pixels a side, which WCAG 2.2 asks of targets (2.5.8)."""
    return page.evaluate("""() => [...document.querySelectorAll("button, input, textarea, a")].filter((element) => {
        const {width, height} = element.getBoundingClientRect();
        return width && !element.closest(".skip, .hidden") && (width < 24 || height < 24);
    }).map((element) => element.outerHTML.slice(0, 80))""")


def test_a_phone_never_scrolls_sideways_and_what_a_finger_meets_is_large_enough(open_page):
    page = open_page(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    assert overflow(page) == []
    answer_with(page, {"content": "x" * 300})
    ask(page, "y" * 300)
    page.unroute_all()
    for words, make in (("a cat", "image"), ("hello there", "audio"), ("a cat", "video")):
        ask(page, words, make)
        assert find_small_targets(page) == []
    refuse_with(page, 401)
    ask(page, "hello")
    page.fill("#question", "z" * 200 + "\n" * 30)
    assert overflow(page) == []
    assert page.locator("#send").bounding_box()["y"] < 640  # a long question does not push the button away
    page.click("#open-settings")
    assert overflow(page) == []
    page.click("#settings [data-close]")
    page.click(".answer .action:has-text('Codes') >> nth=0")
    page.wait_for_selector(".stack img[src]")
    assert overflow(page) == []


def test_tab_reaches_everything_and_the_focus_can_be_seen(page):
    ask(page, "a cat", "image")
    ask(page, "hello there", "audio")
    wanted = page.evaluate("""() => {
        const all = [...document.querySelectorAll("button, input, textarea, a[href]")];
        const seen = all.filter((e) => e.checkVisibility({visibilityProperty: true}) && !e.closest(".hidden"));
        const stops = seen.filter((e) => e.type !== "radio" || e.checked); // arrows go on within a group
        stops.forEach((element, i) => (element.dataset.stop = i));
        return stops.length;
    }""")
    page.evaluate("document.activeElement.blur()")
    page.focus(".skip")
    reached, unseen = set(), []
    for _ in range(2 * wanted):
        state = page.evaluate("""() => {
            const element = document.activeElement;
            const ring = (e) => e && getComputedStyle(e).outlineStyle !== "none";
            const shown = ring(element) || ring(element.nextElementSibling) || ring(element.parentElement);
            return [element.dataset.stop ?? null, shown, element.outerHTML.slice(0, 80)];
        }""")
        reached.add(state[0])
        if state[0] is not None and not state[1]:
            unseen.append(state[2])
        page.keyboard.press("Tab")
    assert len(reached - {None}) == wanted and unseen == []


def test_every_control_has_a_name(page):
    ask(page, "a cat", "image")
    ask(page, "hello there", "audio")
    page.click(".answer .action:has-text('Codes') >> nth=0")
    page.wait_for_selector(".cell")
    controls = "button, input, textarea, a, img, [role=option]"
    nameless = page.evaluate(
        """(controls) => [...document.querySelectorAll(controls)].filter((e) => {
        if (e.classList.contains("hidden") || (e.tagName === "IMG" && e.hasAttribute("alt"))) return false;
        const label = e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.[0]?.textContent.trim();
        return !label;
    }).map((e) => e.outerHTML.slice(0, 80))""",
        controls,
    )
    assert nameless == []


def test_a_screen_reader_hears_a_whole_answer_and_errors(page):
    log = page.locator("#log")
    assert log.get_attribute("role") == "log" and log.get_attribute("aria-live") == "polite"
    ask(page, "a cat", "image", wait=False)
    page.wait_for_selector(".answer[aria-busy=true]")  # not read out word by word
    assert page.inner_text("#status[role=status]") == "Writing the answer"
    page.wait_for_selector(".answer:not([aria-busy])")
    assert page.text_content("#status") == "Answer finished"
    assert page.get_attribute(".answer img", "alt") == "picture: a cat"


def test_dialogs_give_the_focus_back(page):
    page.focus("#open-settings")
    page.keyboard.press("Enter")
    assert page.locator("#settings").is_visible()
    page.fill("#temperature", "-1")
    page.press("#temperature", "Enter")
    assert page.locator("#settings").is_visible()  # a wrong number is not taken
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "open-settings"
    assert page.evaluate("localStorage.getItem('unimodal.temperature')") is None


@pytest.mark.usefixtures("new_page")
def test_settings_are_sent_and_kept(page):
    page.click("#open-settings")
    assert "2" in page.get_attribute("#guidance", "placeholder")
    for name, value in (("temperature", "0.7"), ("guidance", "2.5"), ("seed", "11")):
        page.fill(f"#{name}", value)
    page.select_option("#voice", "joe")
    page.click("text=Done")
    reload(page)
    answer_with(page, {"content": "so"})
    body = asked(page, lambda: ask(page, "a cat", "image"))
    assert (body["temperature"], body["guidance"], body["seed"]) == (0.7, 2.5, 11) and body["modalities"] == ["image"]
    assert "audio" not in body
    body = asked(page, lambda: ask(page, "a sunny day", "audio"))
    assert body["audio"] == {"voice": "joe", "format": "wav"}
    page.click("#open-settings")
    page.click("text=Reset")
    page.click("text=Done")
    assert "audio" not in asked(page, lambda: ask(page, "a sunny day", "audio"))
    body = asked(page, lambda: ask(page, "a cat", "image"))
    assert "temperature" not in body and "guidance" not in body and body["seed"] != 11


def test_without_animations_a_clip_waits(page):
    page.emulate_media(reduced_motion="reduce")
    ask(page, "a cat", "video")
    page.wait_for_timeout(300)
    assert page.evaluate("document.querySelector('.answer video').paused")
    page.click(".answer .action:has-text('Play')")
    until(page, "!document.querySelector('.answer video').paused")
