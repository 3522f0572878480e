# SPDX-License-Identifier: Apache-2.0
"""A chat format registered by another package, which uses only the exports of `inference_bridge.authoring`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = '''
from inference_bridge.authoring import (
    AnswerTags, ChatFamily, NoCallError, Reader, Steps, Thinking, register_chat_format,
)


def read_call(reader: Reader) -> Steps[None]:
    """What follows @call: a name, a JSON object, and @end."""
    yield from reader.space()
    name = yield from reader.word()
    yield from reader.space()
    if (yield from reader.peek()) != "{":
        raise NoCallError
    reader.begin_call(name)
    yield from reader.stream_object()
    yield from reader.space()
    yield from reader.expect("@end")
    reader.drop()


register_chat_format(
    ChatFamily(
        "outside",
        [["@call", "@end"]],
        thinking=Thinking("@think", "@thought"),
        answer=[AnswerTags("@answer", "@done")],
        calls={"@call": read_call},
    )
)
'''
PROGRAM = """
import json
import inference_bridge

inference_bridge.names()  # which imports the plugins

from inference_bridge import Message, Tool
from inference_bridge.chat.markup import chat_output
from inference_bridge.chat.templates.template import ChatTemplate
from inference_bridge.types import join_tool_calls

SOURCE = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}@call {{ c.function.name }} {{ c.function.arguments | tojson }}@end{% endfor %}"
    "{% endfor %}"
)
tool = Tool("save", "Saves", {"type": "object", "properties": {"path": {"type": "string"}}})
template = ChatTemplate(SOURCE)
prompt = template.render([Message("user", "Q")], tools=[tool])
found = []
for output in (
    '@think Hm. @thought @call save {"path": "a\\\\n"} @end',
    "@answer Hello. @done",
    "@call save it @end",
):
    parser = chat_output(prompt.format, tools=[tool])
    tokens = [token for byte in output.encode() for token in parser.push(bytes([byte]))] + parser.finish()
    calls = join_tool_calls(token.tool_call for token in tokens if token.tool_call is not None)
    texts = ["".join(token.text for token in tokens if token.kind == kind) for kind in ("text", "reasoning")]
    found.append([*texts, [[call.name, call.arguments] for call in calls]])
template.close()
print(json.dumps([template.supports_tools, template.supports_tool_calls, found]))
"""


def test_a_package_that_is_a_plugin_teaches_a_format(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    (tmp_path / "outside_format.py").write_text(PLUGIN)
    described = tmp_path / "outside_format-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-format\nVersion: 1.0\n")
    (described / "entry_points.txt").write_text("[inference_bridge]\noutside = outside_format\n")
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tools, calls, (called, answered, not_called) = json.loads(done.stdout)
    assert (tools, calls) == (True, True)
    assert called == ["", "Hm.", [["save", {"path": "a\n"}]]]
    assert answered[0].strip() == "Hello."
    assert not_called == ["@call save it @end", "", []]
