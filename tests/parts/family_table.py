# SPDX-License-Identifier: Apache-2.0
"""The table of model families in docs/structured-output.md, made by trying each family's form.

python -m tests.parts.family_table            print it
python -m tests.parts.family_table --write    put it between the markers of the page
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from inference_bridge.chat.markup import chat_output
from inference_bridge.chat.templates.template import ChatTemplate
from inference_bridge.types import Message, ToolCall, join_tool_calls
from tests.parts.chat_forms import FORMS, SAVE, Form, written

PAGE = Path(__file__).parents[2] / "docs" / "structured-output.md"
BEGIN, END = "<!-- families -->", "<!-- /families -->"
HEAD = ("family", "tools shown", "past calls", "calls read", "reasoning read")

_ARGUMENTS = {"path": "a.txt", "body": "one\n", "count": 3}
_ASKED = Message("user", "QUESTION")
_PAST = (
    _ASKED,
    Message("assistant", "", [ToolCall("call00001", "save", {"path": "PAST.txt"})]),
    Message("tool", "RESULT", tool_call_id="call00001", name="save"),
)


def source(form: Form) -> str:
    """A chat template that lists tools and writes calls as the family does.

    Calls in Python's notation no template writes: it has no filter that makes it.
    """
    call = form.call.replace("| json", "| tojson")
    in_template = "repr" not in call and form.marks != "none"
    name = "{% set name = c.function.name %}{% set arguments = c.function.arguments %}"
    calls = f"{{% for c in m.tool_calls or [] %}}{name}{call}{{% endfor %}}" if in_template else ""
    marks = "" if form.marks == "none" else "".join((form.marks, *form.reasoning, *form.answer))
    named = "" if in_template or form.marks == "none" else form.call
    return (
        f"{{% if false %}}{{% raw %}}{marks}{named}{{% endraw %}}{{% endif %}}"
        "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
        f"{{% for m in messages %}}[{{{{ m.role }}}}]{{{{ m.content }}}}{calls}{{% endfor %}}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )


def row(form: Form) -> tuple[str, ...]:
    """What of a family works: each cell is found out by doing it."""
    template = ChatTemplate(source(form))
    try:
        prompt = template.render([_ASKED], tools=[SAVE])
        past = template.render(_PAST, tools=[SAVE])
        tools = "by the template" if template.supports_tools else "by the generic prompt"
        if not all(word in past.text for word in ("PAST.txt", "RESULT")) or "save" not in prompt.text:
            tools = calls = "**no**"
        elif template.supports_tool_calls and template.supports_tools:
            calls = "by the template"
        else:
            calls = "as content" if template.supports_tools else "in the generic form"
        output = chat_output(prompt.format, tools=[SAVE])
        call = output.push(written(form, _ARGUMENTS).encode()) + output.finish()
        found = join_tool_calls(token.tool_call for token in call if token.tool_call is not None)
        read = "yes" if [(one.name, one.arguments) for one in found] == [("save", _ARGUMENTS)] else "**no**"
        opens, closes = form.reasoning
        thought = "–"
        if closes:
            output = chat_output(prompt.format, tools=[SAVE])
            tokens = output.push(f"{opens}Hm.{closes}{form.answer[0]}Yes.{form.answer[1]}".encode()) + output.finish()
            texts = ["".join(token.text for token in tokens if token.kind == kind) for kind in ("reasoning", "text")]
            thought = "yes" if texts == ["Hm.", "Yes."] else "**no**"
    finally:
        template.close()
    return tools, calls, read, thought


def table() -> str:
    rows = [HEAD, *((name, *row(form)) for name, form in FORMS.items())]
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([lines[0], "|---" * len(HEAD) + "|", *lines[1:]])


def on_page(page: str) -> str:
    """The table that a page has between its markers."""
    found = re.search(f"{BEGIN}\n(.*)\n{END}", page, re.DOTALL)
    if found is None:
        raise ValueError(f"the page has no {BEGIN} and {END}")
    return found[1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the table of model families.")
    parser.add_argument("--write", action="store_true", help=f"put it into {PAGE.name}")
    text = table()
    if not parser.parse_args().write:
        sys.stdout.write(f"{text}\n")
        return
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(page.replace(f"{BEGIN}\n{on_page(page)}\n{END}", f"{BEGIN}\n{text}\n{END}"), encoding="utf-8")


if __name__ == "__main__":
    main()
