"""torchvision becomes importable beside a CPU build of torch, and nothing else is touched."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = (
    "import causalmm",
    "import llava_causalmm",
    "import qwen2vl_causalmm",
    "from causalmm import CausalMMConfig",
)
THEIRS = (
    "from transformers import AutoProcessor",
    "from transformers import pipeline",
    "import qwen_vl_utils",
    "import torchvision",
    "import torchvision.transforms.v2",
)
# What Python does with every .pth file of site-packages at its start.
INSTALLED = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n" + "".join(
    f"exec({line!r})\n"
    for line in (ROOT / "env" / "torchvision.pth").read_text(encoding="utf-8").splitlines()
    if line.startswith("import ")
)
USE = """
from PIL import Image
from transformers import AutoProcessor
processor = AutoProcessor.from_pretrained({folder!r})
content = [{{"type": "image"}}, {{"type": "text", "text": "what?"}}]
text = processor.apply_chat_template([{{"role": "user", "content": content}}])
inputs = processor(images=Image.new("RGB", (30, 20), "red"), text=text, return_tensors="pt")
print((inputs["input_ids"] == processor.image_token_id).sum().item())
print(inputs["pixel_values"].std().item() > 0)
"""
# Of a red picture of 30 x 20: LLaVA's is cropped to 112 x 112 and cut into patches of 14.
IMAGE_TOKENS = {"demo-llava": 8 * 8, "demo-qwen2vl": 5 * 4}


def run(code: str, *flags: str, folder: Path = ROOT) -> str:
    done = subprocess.run(
        [sys.executable, *flags, "-c", code],
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# -- with the torchvision that is installed ----------------------------------------------------


def test_processors_are_built_and_used_after_an_import_of_ours():
    checkpoints = ROOT / "causalmm" / "toyworld" / "checkpoints"
    uses = [USE.format(folder=str(checkpoints / demo)) for demo in IMAGE_TOKENS]
    said = run("import causalmm\n" + "".join(uses))
    assert said.split() == [x for tokens in IMAGE_TOKENS.values() for x in (str(tokens), "True")]


@pytest.mark.slow
@pytest.mark.parametrize("theirs", THEIRS)
@pytest.mark.parametrize("ours", OURS)
def test_what_needs_torchvision_imports_after_ours(ours, theirs):
    run(f"{ours}\n{theirs}")


@pytest.mark.slow
@pytest.mark.parametrize("theirs", THEIRS)
@pytest.mark.parametrize("ours", OURS)
def test_what_needs_torchvision_imports_before_ours_where_we_are_installed(ours, theirs):
    run(f"{INSTALLED}\n{theirs}\n{ours}")


# -- with packages that stand for it -----------------------------------------------------------

# A Python in which nothing has imported causalmm, whatever its environment has installed.
BARE = f"""
import sys
sys.meta_path[:] = [x for x in sys.meta_path if type(x).__module__ != "causalmm.families.compat"]
for name in [name for name in sys.modules if name.startswith("causalmm")]:
    del sys.modules[name]
sys.path[:0] = [".", {str(ROOT)!r}]
"""
UNTOUCHED = """
from causalmm.families import compat
assert not compat._declared
assert "torch" not in sys.modules
"""
# Stops as torchvision 0.28 does where its compiled operators do not load.
WITHOUT_OPERATORS = {
    "torchvision/__init__.py": "import torch\nfrom . import extension\n"
    "from torchvision import _meta_registrations, transforms\nready = True\n",
    "torchvision/extension.py": "",
    "torchvision/_meta_registrations.py": "import torch\n"
    "@torch.library.register_fake('torchvision::nms')\n"
    "def nms(dets, scores, iou_threshold): return dets\n"
    "@torch.library.register_fake('torchvision::qnms')\n"
    "def qnms(dets, scores, iou_threshold): return dets\n",
    "torchvision/transforms/__init__.py": "",
}


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "before",
    [
        "import causalmm",
        "try: import torchvision\nexcept RuntimeError: import causalmm\nelse: raise AssertionError",
    ],
    ids=["first", "after an import that stopped"],
)
def test_operators_are_declared_where_they_are_missing(tmp_path, before):
    write(tmp_path, WITHOUT_OPERATORS)
    code = f"""{BARE}
{before}
import torch
import torchvision.transforms
assert torchvision.ready and sys.modules["torchvision"] is torchvision
assert torchvision.extension is sys.modules["torchvision.extension"]
assert torch.ops.torchvision.nms and torch.ops.torchvision.qnms
print(type(torchvision.__spec__.loader).__name__, type(torchvision.__loader__).__name__)
"""
    assert run(code, folder=tmp_path) == "SourceFileLoader SourceFileLoader"


def test_a_torchvision_that_imports_is_left_alone(tmp_path):
    write(tmp_path, {"torchvision/__init__.py": "ready = __spec__.loader", "torchvision/x": "data"})
    code = f"""{BARE}
import causalmm, importlib.util, pkgutil
print(pkgutil.get_data("torchvision", "x").decode(), importlib.util.find_spec("torchvision").name)
import torchvision
assert torchvision.ready is torchvision.__spec__.loader is torchvision.__loader__
print(type(torchvision.ready).__name__)
{UNTOUCHED}"""
    assert run(code, folder=tmp_path).split() == ["data", "torchvision", "SourceFileLoader"]


def test_another_failure_is_left_to_whoever_imports_torchvision(tmp_path):
    write(tmp_path, {"torchvision/__init__.py": "raise RuntimeError('something else')"})
    code = f"""{BARE}
import causalmm
try:
    import torchvision
except RuntimeError as error:
    print(error, "torchvision" in sys.modules)
{UNTOUCHED}"""
    assert run(code, folder=tmp_path) == "something else False"


def test_no_torchvision_is_no_torchvision(tmp_path):
    code = f"""{BARE}
import causalmm
try:
    import torchvision
except ModuleNotFoundError as error:
    print(error)
{UNTOUCHED}"""
    # -S: without site-packages.
    assert run(code, "-S", folder=tmp_path) == "No module named 'torchvision'"


def test_importing_loads_nothing_and_adds_one_finder():
    code = f"""{BARE}
before = set(sys.modules)
import causalmm, llava_causalmm, qwen2vl_causalmm
from causalmm.families.compat import watch_torchvision
watch_torchvision()
print(sorted(name for name in set(sys.modules) - before if "causalmm" not in name))
print(sum(type(finder).__module__ == "causalmm.families.compat" for finder in sys.meta_path))
"""
    loaded, finders = run(code, "-S").splitlines()
    assert finders == "1"
    # The two model packages hint with typing; causalmm itself loads what costs nothing.
    assert "torch" not in loaded
    code = code.replace(", llava_causalmm, qwen2vl_causalmm", "")
    assert run(code, "-S").splitlines()[0] == "['__future__']"


def test_python_starts_without_us_where_our_sources_are_gone(tmp_path):
    code = INSTALLED.replace(str(ROOT), str(tmp_path))
    code += "print('causalmm' in sys.modules)"
    # -I: without this checkout, wherever the environment names it.
    assert run(code, "-I", "-S", folder=tmp_path) == "False"
