from __future__ import annotations

import logging

import pytest

from distill.classes import match_classes
from utils.errors import UserError

COCO = ["person", "bicycle", "car", "traffic light", "dog"]


def test_by_name_whatever_the_order():
    classes = match_classes(["car", "person"], COCO, 2, 5)
    assert classes.student == (0, 1)
    assert classes.teacher == (2, 0)
    assert classes.teaches_all
    assert not classes.learns_all
    assert not classes.identical


def test_same_lists_are_identical():
    assert match_classes(COCO, COCO, 5, 5).identical
    assert not match_classes(COCO[::-1], COCO, 5, 5).identical


def test_the_mapping_is_logged(caplog):
    with caplog.at_level(logging.INFO):
        classes = match_classes(["dog", "helmet", "car"], COCO, 3, 5)
    assert "2 of 5 teacher classes are the student's; not taught: helmet" in caplog.text
    assert "teacher classes taught: dog -> dog, car -> car; ignored: person, bicycle, traffic light" in caplog.text
    assert not classes.teaches_all


@pytest.mark.parametrize(
    ("student", "teacher", "lines"),
    [
        (COCO, COCO, []),
        (
            ["Cat", "dog"],
            ["cat", "Dog"],
            ["2 of 2 teacher classes are the student's", "taught: cat -> Cat, Dog -> dog"],
        ),
        (["a", "b"], ["b", "a"], ["2 of 2 teacher classes are the student's", "taught: a -> a, b -> b"]),
        (["a", "b"], ["a"], ["1 of 1 teacher classes are the student's; not taught: b", "taught: a -> a"]),
        (["A", "a"], ["a", "b"], ["1 of 2 teacher classes are the student's", "taught: a -> A, a -> a; ignored: b"]),
    ],
)
def test_each_side_is_told_unless_both_are_the_same(student, teacher, lines, caplog):
    with caplog.at_level(logging.INFO):
        match_classes(student, teacher, len(student), len(teacher))
    assert [message.removeprefix("teacher classes ") for message in caplog.messages] == lines


def test_long_lists_are_cut(caplog):
    names = [f"c{index}" for index in range(30)]
    with caplog.at_level(logging.INFO):
        match_classes(names[:12], names, 12, 30)
    shown = ", ".join(f"c{index} -> c{index}" for index in range(10))
    hidden = ", ".join(names[12:22])
    assert caplog.messages[1] == f"teacher classes taught: {shown} and 2 more; ignored: {hidden} and 8 more"


def test_by_index_only_without_names_and_with_equal_counts(caplog):
    with caplog.at_level(logging.INFO):
        assert match_classes(None, COCO, 5, 5).identical
        assert match_classes(COCO, None, 5, 5).identical
    assert "taken in order" in caplog.text
    with pytest.raises(UserError, match=r"3 classes and the teacher 5, and the student has no class.*outputs: {}"):
        match_classes(None, COCO, 3, 5)


def test_names_decide_even_where_counts_are_equal():
    assert match_classes(["a", "b", "c"], ["c", "x", "a"], 3, 3).teacher == (2, 0)


def test_nothing_in_common_says_what_to_do():
    with pytest.raises(UserError, match=r"no class of the teacher .*helmet, vest.*features only"):
        match_classes(["helmet", "vest"], COCO, 2, 5)
