# SPDX-License-Identifier: Apache-2.0
"""The command `stats`: how fast models answered. The llm plugin adds these figures to each answer in llm's log."""

from __future__ import annotations

import json
import os
import sqlite3
import statistics
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from . import tables


def report(days: float | None, as_json: bool) -> None:
    answers: dict[str, list[dict[str, Any]]] = {}
    for model, metrics in _logged(days):
        answers.setdefault(model, []).append(metrics)
    summaries = [_summary(model, told) for model, told in sorted(answers.items())]
    if as_json:
        tables.show_json(summaries)
        return
    if not summaries:
        click.echo(f"The log of llm ({_log_path()}) has no answers from models of inference-bridge.", err=True)
        return
    head = ["MODEL", "ANSWERS", "PROMPT", "CACHED", "GENERATED", "FIRST TOKEN", "PREFILL", "DECODE"]
    tables.show(head, [_row(one) for one in summaries])


def _row(one: dict[str, Any]) -> list[object]:
    return [
        one["model"],
        one["answers"],
        one["prompt_tokens"],
        f"{one['cached_share']:.0%}",
        one["generated_tokens"],
        f"{one['time_to_first_token']:.2f} s",
        f"{one['prefill_tokens_per_second']:.0f} tok/s",
        f"{one['decode_tokens_per_second']:.1f} tok/s",
    ]


def _summary(model: str, told: Sequence[dict[str, Any]]) -> dict[str, Any]:
    read = sum(one["prompt_tokens"] for one in told)
    return {
        "model": model,
        "answers": len(told),
        "prompt_tokens": read,
        "cached_share": sum(one["cached_tokens"] for one in told) / read if read else 0.0,
        "generated_tokens": sum(one["generated_tokens"] for one in told),
        **{
            name: statistics.median([one[name] for one in told if one[name] > 0] or [0.0])
            for name in ("time_to_first_token", "prefill_tokens_per_second", "decode_tokens_per_second")
        },
    }


def _log_path() -> Path:
    """Return the path of the database in which llm logs answers.

    Source: `llm.user_dir` and `llm.cli.logs_db_path`.
    """
    return Path(os.environ.get("LLM_USER_PATH") or click.get_app_dir("io.datasette.llm")).absolute() / "logs.db"


def _logged(days: float | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the model and the metrics of each answer, from the table that llm has had since 0.32."""
    path = _log_path()
    if not path.exists():
        return
    since = ""
    if days is not None:
        with suppress(OverflowError):  # more days than the calendar has: the whole log
            since = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        try:
            rows = database.execute(
                "select model, response_json from turns where datetime_utc >= ? and response_json like '%\"metrics\"%'",
                [since],
            ).fetchall()
        except sqlite3.OperationalError:  # nothing was logged yet, or by an older llm
            return
    for model, text in rows:
        metrics = json.loads(text).get("metrics")
        if isinstance(metrics, dict) and "decode_tokens_per_second" in metrics:
            yield model, metrics
