"""The picture of a command in the documentation is what the command prints now."""

from support.terminal_picture import COMMAND, DOCS_PICTURE, drawn, picture


def test_the_picture_of_the_data_check_is_what_it_prints() -> None:
    assert picture(COMMAND) == DOCS_PICTURE.read_text(encoding="utf-8"), "run `make pictures`"


def test_a_picture_loads_nothing_and_keeps_colours() -> None:
    svg = drawn("edgetune <x>", "\x1b[32mlearned\x1b[0m")

    assert "url(http" not in svg
    assert "font-face" not in svg
    assert 'aria-label="edgetune &lt;x&gt;"' in svg
    assert "#98e024" in svg
