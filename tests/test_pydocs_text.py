"""Prose of docstrings and comments, and the masking of names: by hand-written examples."""

from __future__ import annotations

import pytest

from lit_sft.data.pydocs_text import comments, mask_names, prose


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        pytest.param(
            "Compute the thing.\n\n    It is done\n    in place.\n\n    Args:\n        x (int): a number.\n",
            "Compute the thing. It is done in place.",
            id="google",
        ),
        pytest.param(
            "\n    Compute the thing.\n\n    Parameters\n    ----------\n    x : int\n        A number.\n",
            "Compute the thing.",
            id="numpy",
        ),
        pytest.param("Compute the thing.\n\nNotes\n-----\nMuch more.\n", "Compute the thing.", id="notes"),
        pytest.param("Compute the thing.\n\n:param x: a number\n:returns: a thing", "Compute the thing.", id="sphinx"),
        pytest.param("Compute the thing.\n\n>>> f(1)\n2\n\nMore text.", "Compute the thing.", id="doctest"),
        pytest.param("Compute the thing.\n\nExample::\n\n    f(1)\n", "Compute the thing.", id="example"),
        pytest.param("Compute the thing. For example:\n\n>>> f(1)\n", "Compute the thing.", id="lead-in"),
        pytest.param(
            "Compute it.\n\nExplanation\n===========\n\nIt is short.\n\nExamples\n========\n\n>>> f(1)\n",
            "Compute it. It is short.",
            id="prose-heading",
        ),
        pytest.param(
            "Title of it\n===========\n\nCall it like so::\n\n    f(1)\n\nThen wait.\n",
            "Call it like so: Then wait.",
            id="literal-block",
        ),
        pytest.param(
            "Compute the :class:`~a.b.Thing` of ``x`` and :func:`run`, see `here <https://a.org>`_.",
            "Compute the Thing of x and run, see here.",
            id="markup",
        ),
        pytest.param(
            "Do it.\n\n.. note:: Only once,\n    please.\n\n.. math::\n    x = y\n\nThe end.",
            "Do it. Only once, please. The end.",
            id="directives",
        ),
        pytest.param("f(x, y=(1, 2)) -> z\n\nCompute the thing.", "Compute the thing.", id="signature"),
        pytest.param("Two ways:\n\n* the first,\n* the second one.", "Two ways: the first, the second one.", id="list"),
        pytest.param("x -- a number\ny -- another", "", id="entries-only"),
        pytest.param("Compute it.\n\nCopyright (C) 2001 Some Body.", "Compute it.", id="credit"),
        pytest.param("Compute it.\n\n```py\nf(1)\n```\n", "Compute it.", id="fence"),
        pytest.param("", "", id="empty"),
    ],
)
def test_prose_ends_where_reference_begins(docstring: str, expected: str) -> None:
    assert prose(docstring) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("PyTorch's torch.nn.Module", "PROJECT's PROJECT.nn.Module"),
        ("a LightningModule on the Hugging Face Hub", "a PROJECT on the PROJECT"),
        ("call hf_hub_download or nx.Graph", "call PROJECT or PROJECT.Graph"),
        ("HfApi, CPython, SymPy and __torch_function__", "PROJECT, PROJECT, PROJECT and PROJECT"),
        ("PyTorch Lightning and torchmetrics", "PROJECT and PROJECT"),
        ("the Python standard library", "the PROJECT"),
        ("plain hubs of a simple graph, a tensor and a metric", "plain hubs of a simple graph, a tensor and a metric"),
    ],
)
def test_names_are_masked_and_vocabulary_is_not(text: str, expected: str) -> None:
    assert mask_names(text) == expected


def test_comments_are_joined_by_block_and_code_is_left_out() -> None:
    source = '''#!/usr/bin/env python
# -*- coding: utf-8 -*-
# This block of two lines is one
# passage, as a reader would say.
x = "# this text stands inside a string literal"
"""
# and so does this one, inside of a longer string
"""
y = 1  # a comment behind code is not a passage at all
    # Another indent begins another passage of some words.
# if x == 1:
#     return y
#     z = x + y
# too short
'''
    assert list(comments(source)) == [
        "This block of two lines is one passage, as a reader would say.",
        "Another indent begins another passage of some words.",
    ]
