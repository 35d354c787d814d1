"""A conversation in the terminal about the pictures of a request.

The whole conversation goes through the chat template again at every turn, so that an answer is the
one that the same messages would get in a file. Tests: tests/inputs/test_inputs.py.
"""

import io
import sys
from collections.abc import Iterator

from causalmm.cli.flags import RESET
from causalmm.cli.session import Session
from causalmm.cli.terminal import complain
from causalmm.errors import RequestError
from causalmm.inputs.messages import check_prompt, text_part


def chat(session: Session) -> None:
    """Answer the lines of standard input, until an empty one or its end.

    A prompt that cannot be answered is complained about and forgotten.
    """
    [pictures] = session.request.messages
    history = []
    for prompt in _prompts():
        if prompt == RESET:
            history = []
            continue
        shown = [] if history else pictures["content"]
        turn = [*history, {"role": "user", "content": [*shown, text_part(prompt)]}]
        try:
            check_prompt(prompt)
            inputs = session.inputs(turn)
        except RequestError as error:
            complain(str(error))
            continue
        said = session.answer(inputs, session.request.config, out=sys.stdout)
        history = [*turn, {"role": "assistant", "content": [text_part(said.text)]}]


def _prompts() -> Iterator[str]:
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # what is no text is then complained about
    while sys.stdin is not None:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        yield line
