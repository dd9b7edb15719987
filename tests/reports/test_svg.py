"""A drawing is valid SVG that says itself what it looks like in either theme."""

import xml.etree.ElementTree as ElementTree

from rqa_ray.reports.svg import LEVELS, Drawing, level

NAME = "{http://www.w3.org/2000/svg}"


def drawn() -> ElementTree.Element:
    picture = Drawing(200, 100, "A & B")
    picture.note(10, 10, 80, 60, "1 < 2", "plain", "`file.py")
    picture.arrow([(90, 40), (110, 40)])
    picture.circle(150, 40, 5, "level0 ring")
    return ElementTree.fromstring(picture.svg())


def test_a_drawing_is_svg_with_a_title_and_text_that_stays_text():
    root = drawn()
    assert root.find(f"{NAME}title").text == "A & B"
    assert [text.text for text in root.iter(f"{NAME}text")] == ["1 < 2", "plain", "file.py"]
    assert root.find(f"{NAME}rect").get("class") == "ground edge", "a ground of its own, whatever the page's"


def test_every_class_has_a_color_in_both_themes():
    root = drawn()
    light, dark = root.find(f"{NAME}style").text.split("@media (prefers-color-scheme:dark)")
    shapes = [element for element in root.iter() if element.get("class")]
    for name in {name for shape in shapes for name in shape.get("class").split()} - {"ring", "code", "bold"}:
        assert f".{name}{{" in light and f".{name}{{" in dark, name


def test_a_level_is_the_share_of_the_way_from_the_lowest_value_to_the_highest():
    assert [level(value, 0.5, 1.0) for value in (0.5, 0.59, 0.61, 1.0)] == ["level0", "level0", "level1", "level4"]
    assert level(0.7, 0.7, 0.7) == f"level{LEVELS - 1}", "of one value"
