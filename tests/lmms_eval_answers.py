"""Ask a model class of lmms-eval, under lmms-eval's own Python; prints what it says as JSON.

python -m lmms_eval_answers MODEL CHECKPOINT ROWS.json      rows: [pictures, prompt]

Run by tests/lmms/test_lmms_eval.py.
"""

import json
import sys
from pathlib import Path

from causalmm.families.compat import watch_torchvision

watch_torchvision()

from lmms_eval.api.instance import Instance  # noqa: E402
from lmms_eval.models import get_model  # noqa: E402
from PIL import Image  # noqa: E402

TASK, SPLIT = "toy", "test"
GREEDY = {"max_new_tokens": 6, "temperature": 0.0, "until": ["\n\n"]}
DRAWN = {"max_new_tokens": 6, "temperature": 1.0, "do_sample": True}


class Hook:
    """Counts what a model puts into lmms-eval's cache."""

    def __init__(self):
        self.added = []

    def add_partial(self, kind, request, answer):
        self.added.append((kind, request, answer))


def messages(document):
    """As lmms-eval makes them of a task's pictures and text."""
    images, prompt = document
    content = [{"type": "image", "url": Image.open(path)} for path in images]
    return [{"role": "user", "content": [*content, {"type": "text", "text": prompt}]}]


def instance(number, prompt, decoding):
    return Instance(
        request_type="generate_until",
        arguments=(prompt, messages, dict(decoding), number, TASK, SPLIT),
        idx=0,
        metadata={"task": TASK, "doc_id": number, "repeats": 1},
    )


def main(name, checkpoint, file):
    rows = json.loads(Path(file).read_text(encoding="utf-8"))

    def load(arguments):
        model = get_model(name).create_from_arg_string(
            f"pretrained={checkpoint},{arguments}",
            # As the command gives them: its batch size is 1 unless said, the others None.
            {"batch_size": 1, "max_batch_size": None, "device": "cpu"},
        )
        model.task_dict[TASK] = {SPLIT: rows}
        return model

    everything = range(len(rows))

    def ask(model, decoding, numbers=everything):
        requests = [instance(number, rows[number][1], decoding) for number in numbers]
        return [result.text for result in model.generate_until(requests)]

    def refusal(call):
        try:
            call()
        except (NotImplementedError, ValueError) as error:
            return str(error)
        return None

    model = load("epsilon=0,batch_size=3")
    model.set_cache_hook(hook := Hook())
    results = model.generate_until([instance(n, rows[n][1], GREEDY) for n in everything])
    greedy = [result.text for result in results]
    stop = greedy[0].split()[2]
    found = {
        "greedy": greedy,
        "tokens": [result.token_counts.output_tokens for result in results],
        "cached": list(hook.added),
        "until": {"stop": stop, "answers": ask(model, GREEDY | {"until": [stop]})},
        "drawn": {
            "first": ask(model, DRAWN),
            "again": ask(model, DRAWN),
            "other_seed": ask(load("epsilon=0,batch_size=3,seed=1"), DRAWN),
            "repeats": ask(load("epsilon=0"), DRAWN, [0] * 5),
        },
        "loglikelihood": refusal(lambda: model.loglikelihood([])),
        "multi_round": refusal(lambda: model.generate_until_multi_round([])),
        "unknown": refusal(lambda: load("gama=1")),
        "unreadable": refusal(lambda: load("language_layers=1,2")),
    }
    model.clean()
    found["freed"] = model.session is None
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
