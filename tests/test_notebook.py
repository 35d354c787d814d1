"""The notebook runs from top to bottom and shows what the commands give."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from causalmm.__main__ import main

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"


def test_it_has_ten_cells_and_keeps_no_output():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) == 10
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
def test_it_shows_what_the_commands_give(capsys):
    asked = ["--image", str(EXAMPLES / "llava_300041_helped.png")]
    asked += ["--prompt", "What color is the mushroom?", "--model", "demo-llava"]
    assert main(["generate", *asked, "--compare", "--json"]) == 0
    wanted = json.loads(capsys.readouterr().out)

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    resources = {"metadata": {"path": str(EXAMPLES)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    answers, tokens, attention, evaluation = [
        (_printed(each), _pictures(each)) for each in code[1:]
    ]
    plain, adjusted = (line.partition(":")[2].strip() for line in answers[0].splitlines())
    assert [plain, adjusted] == [wanted["plain_answer"], wanted["answer"]]
    assert plain != adjusted
    assert f"changed -> {adjusted}" in tokens[0]
    first = wanted["tokens"][0]
    probabilities = f"factual {first['factual']:.3f}", f"adjusted {first['adjusted']:.3f}"
    assert any(all(each in line for each in probabilities) for line in tokens[0].splitlines())
    assert len(answers[1]) == len(attention[1]) == 1
    for words in ("differences to greedy", "causalmm+sample", "McNemar"):
        assert words in evaluation[0]


def _printed(cell) -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def _pictures(cell) -> list:
    return [output for output in cell.outputs if "image/png" in output.get("data", {})]
