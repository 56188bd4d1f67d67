"""Laws of nested mappings: every value has one dotted name, and what lies above has its way."""

from typing import Any

import pytest

from emotune.core.nested import leaves, overlaid, settings


def test_a_leaf_has_the_names_of_all_that_holds_it_in_order() -> None:
    nested = {"sft": {"lora": {"rank": 16}, "epochs": 1}, "template": "in_inst"}
    assert list(leaves(nested)) == [("sft.lora.rank", 16), ("sft.epochs", 1), ("template", "in_inst")]


def test_lists_and_empty_mappings_are_leaves() -> None:
    assert list(leaves({"a": [{"b": 1}], "c": {}, "d": {"e": {}}})) == [("a", [{"b": 1}]), ("c", {}), ("d.e", {})]
    assert list(leaves({})) == []


@pytest.mark.parametrize(
    ("below", "above", "whole"),
    [
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}, {"a": {"b": 3, "c": 2}}),
        ({"a": 1}, {"b": {"c": 2}}, {"a": 1, "b": {"c": 2}}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"a": None}, {"a": {"b": 1}}, {"a": {"b": 1}}),
        # A list is a value, whole.
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"b": 1}}, {"a": {}}, {"a": {"b": 1}}),
    ],
)
def test_what_lies_above_has_its_way(below: dict[str, Any], above: dict[str, Any], whole: dict[str, Any]) -> None:
    assert overlaid(below, above) == whole


def test_neither_tree_is_changed() -> None:
    below, above = {"a": {"b": 1}}, {"a": {"c": 2}}
    overlaid(below, above)["a"]["b"] = 3
    assert (below, above) == ({"a": {"b": 1}}, {"a": {"c": 2}})


def test_a_setting_is_named_as_deep_as_the_tree_goes() -> None:
    whole = {"sft": {"lora": {"rank": 16}}, "judge": {"labels": None}}
    overlay = {"judge": {"labels": {"LABEL_0": "clean"}}, "sft": {"lora": {"rank": 8}}, "new": {"key": 1}}
    assert list(settings(overlay, whole)) == [
        ("judge.labels", {"LABEL_0": "clean"}),
        ("sft.lora.rank", 8),
        ("new", {"key": 1}),
    ]
