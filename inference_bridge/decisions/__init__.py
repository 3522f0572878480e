# SPDX-License-Identifier: Apache-2.0
"""The arguments and results of `TextModel.decide`: typed questions about a text, and their answers."""

from __future__ import annotations

from .questions import Answer as Answer
from .questions import Choice as Choice
from .questions import ChoiceAnswer as ChoiceAnswer
from .questions import Content as Content
from .questions import Decision as Decision
from .questions import Noul as Noul
from .questions import NoulAnswer as NoulAnswer
from .questions import Question as Question
from .questions import Score as Score
from .questions import ScoreAnswer as ScoreAnswer
from .questions import confidence as confidence
from .questions import question as question
