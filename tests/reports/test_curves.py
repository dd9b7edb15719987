"""A number over steps is a picture that says its ends."""

import xml.etree.ElementTree as ET

from rqa_ray.reports.curves import curve


def test_a_curve_has_the_values_and_steps_at_its_ends_and_marks_the_chosen_step():
    text = curve("loss & more", [(5, 1.5), (10, 0.5)], chosen=10).decode()
    ET.fromstring(text)
    words = [element.text for element in ET.fromstring(text).iter("{http://www.w3.org/2000/svg}text")]
    assert {"loss & more", "1.5", "0.5", "step 5", "step 10"} <= set(words)
    assert text.count("ring") > curve("loss", [(5, 1.5), (10, 0.5)]).decode().count("ring")


def test_one_point_and_equal_values_are_drawn():
    for points in ([(0, 1.0)], [(0, 1.0), (3, 1.0)]):
        ET.fromstring(curve("loss", points).decode())
