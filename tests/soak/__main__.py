# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.soak stops|stress|kills`: long trials with a real model, each with one result."""

from __future__ import annotations

import argparse
import sys

from tests.soak import kills, stops, stress


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Try an engine with a real model.")
    parser.add_argument("--backend", default="llama_cpp", help="default: llama_cpp")
    parser.add_argument("--model", default="SmolLM2-135M-Instruct.Q4_1", help="a model that this backend loads")
    trials = parser.add_subparsers(dest="trial", required=True)
    trials.add_parser("stops", help="how long an event loop stands still beside costly operations")
    stressed = trials.add_parser("stress", help="many threads and tasks at once: wrong answers, and what is left")
    stressed.add_argument("--seconds", type=float, default=60.0)
    stressed.add_argument("--threads", type=int, default=64)
    stressed.add_argument("--tasks", type=int, default=200)
    killed = trials.add_parser("kills", help="kill programs with a managed server: processes that are left")
    killed.add_argument("--count", type=int, default=90)
    given = parser.parse_args()
    source = given.model if given.model.startswith("/") else f"{given.backend}:{given.model}"
    if given.trial == "stops":
        return stops.run(source, given.backend)
    if given.trial == "stress":
        return stress.run(source, given.backend, given.seconds, given.threads, given.tasks)
    return kills.run(given.model, given.count)


if __name__ == "__main__":
    sys.exit(main())
