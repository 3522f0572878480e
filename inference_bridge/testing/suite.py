# SPDX-License-Identifier: Apache-2.0
"""All groups of tests in one class."""

from __future__ import annotations

from .arguments import Arguments
from .batches import Batches, Classifying
from .capabilities import Capabilities
from .concurrency import Concurrency
from .context import Context, Turns
from .deciding import Deciding
from .embeddings import Embeddings
from .failures import Failures
from .lifecycle import Closing
from .processes import Processes
from .prompts import Prompts
from .racing import Racing
from .results import Results
from .sampling import Logprobs, Sampling
from .streams import Streams
from .text import Text
from .tools import Reasoning, Schemas, Tools


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
    """The groups that need no process of their own."""


class ContractSuite(InProcess, Processes):
    """Every behaviour of the contract. Set `source`, or define `load`; see `Contract` for what else there is to say."""
