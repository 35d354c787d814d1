"""The benchmark that docs/add-a-benchmark.md adds can be read and scored as it stands there."""

import json
import re
import textwrap
from pathlib import Path
from types import ModuleType

from answered import answered

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add-a-benchmark.md"


def test_the_page_works_to_the_letter(tmp_path):
    [code] = re.findall(r"^ +```python\n(.*?)^ +```$", PAGE.read_text("utf-8"), re.DOTALL | re.M)
    module = ModuleType("signs")
    exec(compile(textwrap.dedent(code), str(PAGE), "exec"), module.__dict__)
    benchmark = module.BENCHMARK
    assert f'the line `"{benchmark.name}",`' in PAGE.read_text("utf-8")
    files = {
        "queries": [{"id": at, "image": "a.jpg", "query": f"Is it {at}?"} for at in (1, 2)],
        "annotations": [{"id": 1, "truth": "yes"}, {"id": 2, "truth": "no"}],
    }
    given = {name: tmp_path / f"{name}.json" for name in files}
    for name, rows in files.items():
        given[name].write_text(json.dumps(rows), encoding="utf-8")
    questions = benchmark.read(**given)
    report = benchmark.score(questions, answered(questions, ["Yes", "Yes"]))
    assert report.scores[0].metrics["accuracy"].value == 50
    assert benchmark.files(**given) == list(given.values())
    assert list(benchmark.flags) == ["queries", "annotations", "images"]
