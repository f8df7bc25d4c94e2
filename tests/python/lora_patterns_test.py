"""paperlab.lora: regular expressions of files, which anybody may have written."""

import json
import re
import shutil

import lora_cases as cases
import pytest
from paperlab import lora
from paperlab.lora import _expressions

LONG = "a" * 40
# Each takes `re` 2^40 tries or more for such a name; here they take milliseconds.
HEAVY = [
    f"({LONG[:9]}|a+)+$",
    "(a+)+b",
    "(.*)*(.*)*(.*)*(.*)*=",
    "((a?){40}){40}b",
    r"(\w|a|[a-z])*-",
]


@pytest.mark.parametrize("pattern", HEAVY)
def test_a_pattern_cannot_take_long(pattern):
    matcher = _expressions.Matcher()
    for name in (LONG + "!", f"model.{LONG}.{LONG}!"):
        assert not matcher.fullmatch(pattern, name)
        assert matcher.first("rank", [pattern], name) is None


def test_patterns_of_a_file_cannot_take_long(tmp_path, monkeypatch):
    """With names as `re` needs hours for."""
    name = "adapter_model.safetensors"
    shutil.copy(cases.GOLDEN / name, tmp_path / name)
    monkeypatch.setattr(_expressions, "_MOST_STEPS", 2000)
    heavy = "(?:" * 40 + r"[\w.]*" + ")*" * 40 + "=" + "|.*"
    many = {f"({i})?x": 2 for i in range(4000)}
    for settings in ({"rank_pattern": {heavy: 2}}, {"alpha_pattern": many}):
        config = json.loads((cases.GOLDEN / "adapter_config.json").read_text()) | settings
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"json: patterns must take at most 2000 steps"):
            lora.load(cases.base(), tmp_path)


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(q|v)_proj", r"(?!.*layers\.0).*mlp.*", r"(?:model\.)?.*?[^k](?<=[qo])_proj$",
        r"(?i).*Q_PROJ", r".*\.\d{1,2}\.\w+\.o_(?=proj)proj", r"^\D*[0-1]\.\S+\bup_proj\b",
        ".*head|", "(?s:.)*gate_proj", "q_proj", ".*", "", r"(.+\.){4}[a-m]\w*",
    ],
)  # fmt: skip
def test_patterns_fit_what_re_says(pattern):
    names = cases.base().linear_names()
    matcher = _expressions.Matcher()
    _expressions.check(pattern, is_whole=True)
    assert [matcher.fullmatch(pattern, name) for name in names] == [
        re.fullmatch(pattern, name) is not None for name in names
    ]
    if "(?i)" in pattern or "(?x)" in pattern:  # flags begin the whole expression alone
        return
    _expressions.check(pattern, is_whole=False)
    assert [matcher.first("rank", [pattern], name) is not None for name in names] == [
        re.match(rf"(.*\.)?({pattern})$", name) is not None for name in names
    ]
