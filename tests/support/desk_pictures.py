"""Pictures of the desk for the documents, from generated decisions: python tests/support/desk_pictures.py [FOLDER]"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from fraud_poc.desk import queries  # noqa: E402
from support import desk_server  # noqa: E402

PICTURES = (
    ("queue", "queue", 1280, 760, "light"),
    ("case", "case/{number}", 1280, 1130, "light"),
    ("trends", "trends", 1280, 1330, "dark"),
    ("phone", "case/{number}", 390, 844, "light"),
)
NOW = 1_767_002_400_000  # the pages' clock, so that pictures differ only when the pages do


def main(folder: Path) -> None:
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as home, sync_playwright() as driver:
        desk = desk_server.make_desk(Path(home), NOW, clock=lambda: NOW)
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        with desk_server.served(desk) as url:
            with desk.engine.connect() as connection:
                number = next(
                    n
                    for n in desk_server.open_numbers(desk.engine)
                    if len(
                        queries.linked_decisions(
                            connection, queries.find_decision(connection, n), desk.settings.columns.entities
                        )
                    )
                    > 1
                )
            for name, path, width, height, scheme in PICTURES:
                page = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme).new_page()
                page.goto(f"{url}/login")
                page.get_by_label("Account").fill("analyst-1")
                page.get_by_label("Password").fill(desk_server.PASSWORD)
                page.keyboard.press("Enter")
                page.wait_for_url("**/queue")
                page.goto(f"{url}/{path.format(number=number)}")
                if name == "queue":
                    page.keyboard.press("j")
                page.wait_for_timeout(1000)
                page.screenshot(path=folder / f"desk-{name}.png")
                print(f"{folder / f'desk-{name}.png'}: {(folder / f'desk-{name}.png').stat().st_size:,} bytes")
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images")
