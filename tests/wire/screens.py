"""A page on the screens of a desk and of a phone, light and dark."""

import pathlib

from devtools import Page

# The screens of a desk and of a phone.
SCREENS = {"wide": (1280, 900), "phone": (390, 844)}
SCHEMES = ("light", "dark")


def fits(page: Page, element: str, where: str) -> None:
    """Nothing in the element, which is an expression, is wider than it is."""
    wide, room = page.value(f"(({{scrollWidth, clientWidth}}) => [scrollWidth, clientWidth])({element})")
    assert wide <= room, f"{where}: {wide} px in {room} px"


def everywhere(page: Page, name: str, element: str, pictures: pathlib.Path) -> None:
    """On each screen, light and dark: it fits, and a picture is taken."""
    for screen, size in SCREENS.items():
        for scheme in SCHEMES:
            page.look(*size, scheme)
            # Two frames: the first may still be of before.
            page.value("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))")
            fits(page, element, f"{name}, {screen}, {scheme}")
            fits(page, "document.documentElement", f"the page behind {name}, {screen}, {scheme}")
            assert (nameless := page.nameless()) == [], f"{name}: without a name: {nameless}"
            page.picture(str(pictures / f"{name}-{screen}-{scheme}.png"))
    page.look(*SCREENS["wide"], "light")
