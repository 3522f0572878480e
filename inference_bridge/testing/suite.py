# SPDX-License-Identifier: Apache-2.0
"""All groups of tests in one class."""

from __future__ import annotations

from .embeddings import Embeddings
from .generation.batches import Batches, Classifying
from .generation.context import Context, Turns
from .generation.deciding import Deciding
from .generation.prompts import Prompts
from .generation.results import Results
from .generation.sampling import Logprobs, Sampling
from .generation.streams import Streams
from .generation.text import Text
from .generation.tools import Reasoning, Schemas, Tools
from .lifecycle.closing import Closing
from .lifecycle.concurrency import Concurrency
from .lifecycle.processes import Processes
from .lifecycle.racing import Racing
from .refusals.arguments import Arguments
from .refusals.capabilities import Capabilities
from .refusals.failures import Failures


class InProcess(
    Prompts,
    Streams,
    Results,
    Arguments,
    Failures,
    Text,
    Concurrency,
    Sampling,
    Logprobs,
    Context,
    Capabilities,
    Schemas,
    Tools,
    Reasoning,
    Turns,
    Batches,
    Classifying,
    Deciding,
    Embeddings,
    Closing,
    Racing,
):
    """The groups that do not start processes."""


class ContractSuite(InProcess, Processes):
    """Tests every behaviour of the contract. Set `source`, or define `load`. `Contract` has the other attributes."""
