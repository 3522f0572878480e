# SPDX-License-Identifier: Apache-2.0
"""The contract suite over the correct model and over each faulty one. Run by tests/testing/test_faults.py.

For each fault: the group of tests that it breaks, and those of its tests that must fail. No others are run.
"""

from __future__ import annotations

from typing import Any

from inference_bridge import TextModel
from inference_bridge.testing import Contract, ContractSuite
from inference_bridge.testing.generation.batches import Batches
from inference_bridge.testing.generation.context import Context, Turns
from inference_bridge.testing.generation.prompts import Prompts
from inference_bridge.testing.generation.results import Results
from inference_bridge.testing.generation.sampling import Logprobs, Sampling
from inference_bridge.testing.generation.streams import Streams
from inference_bridge.testing.generation.text import Text
from inference_bridge.testing.generation.tools import Schemas
from inference_bridge.testing.lifecycle.closing import Closing
from inference_bridge.testing.lifecycle.concurrency import Concurrency
from inference_bridge.testing.lifecycle.processes import Processes
from inference_bridge.testing.lifecycle.racing import Racing
from inference_bridge.testing.refusals.arguments import Arguments
from inference_bridge.testing.refusals.capabilities import Capabilities
from inference_bridge.testing.refusals.failures import Failures

from . import closing as faulty_closing
from . import models as faulty

FAULTS: dict[type[faulty.Sound], tuple[type[Contract], str]] = {
    faulty.SplitsCharacters: (Text, "test_text_is_whole_characters"),
    faulty.LeaksTheStopString: (Text, "test_a_stop_string_never_shows test_stop_strings_in_a_conversation"),
    faulty.LeaksPartOfAStopString: (Text, "test_a_stop_string_never_shows"),
    faulty.HoldsBackForEver: (Text, "test_what_only_begins_a_stop_string_shows"),
    faulty.YieldsTheEnd: (Text, "test_the_end_of_the_text_is_not_yielded test_a_stop_token_is_counted_and_not_yielded"),
    faulty.AsynchronousIgnoresStop: (Text, "test_a_stop_string_never_shows[async]"),
    faulty.ShowsThinkTags: (Prompts, "test_a_conversation_is_answered"),
    faulty.ForgetsEarlierTurns: (Prompts, "test_every_turn_reaches_the_model"),
    faulty.LosesATokenOfANeighbour: (Streams, "test_a_half_read_stream_holds_up_nobody[sync]"),
    faulty.StartsEarly: (Streams, "test_nothing_runs_before_a_stream_is_read[sync]"),
    faulty.CanBeReadTwice: (Streams, "test_a_stream_is_used_once[sync]"),
    faulty.CloseDoesNothing: (Streams, "test_closing_ends_a_stream[sync] test_leaving_with_ends_a_stream[sync]"),
    faulty.AsyncLeavesItsStream: (Streams, "test_closing_ends_a_stream[async]"),
    faulty.KeepsASlotForEver: (Streams, "test_closing_ends_a_stream test_dropping_ends_a_stream"),
    faulty.FailsAfterACancelledOne: (Streams, "test_closing_ends_a_stream test_leaving_with_ends_a_stream"),
    faulty.FailsBesideOthers: (Results, "test_concurrent_callers_see_their_own"),
    faulty.WaitsForTheConsumer: (Streams, "test_a_half_read_stream_holds_up_nobody"),
    faulty.LastComeFirstServed: (Concurrency, "test_what_waits_is_served_in_order"),
    faulty.ErrorsWithoutPartial: (Failures, "test_an_error_keeps_what_was_generated[sync]"),
    faulty.PartialOfNothing: (Failures, "test_partial_has_every_token_until_then[sync]"),
    faulty.IgnoresTimeouts: (Failures, "test_time_that_is_over_is_an_error"),
    faulty.SwapsMetrics: (Results, "test_interleaved_streams_see_their_own[sync]"),
    faulty.SwapsFinishReasons: (Results, "test_interleaved_streams_see_their_own[sync]"),
    faulty.CountsOneTooMany: (Results, "test_metrics_add_up"),
    faulty.CachesMoreThanThereIs: (Results, "test_metrics_add_up"),
    faulty.AlwaysSaysStop: (Results, "test_why_it_ended_is_told_at_the_end test_max_tokens_is_the_limit"),
    faulty.ForgetsFailuresInStats: (Results, "test_stats_count_every_operation"),
    faulty.IgnoresTopK: (Sampling, "test_cutting_all_but_the_likeliest_is_greedy[sync-top_k-1]"),
    faulty.NotSeeded: (Sampling, "test_a_seed_repeats"),
    faulty.SharesItsChance: (Sampling, "test_a_seed_repeats_whatever_the_neighbours[sync]"),
    faulty.TakesTheSecondBest: (Sampling, "test_greedy_is_the_likeliest_token"),
    faulty.NeighboursMatter: (Sampling, "test_neighbours_change_no_number"),
    faulty.DropsWhatItLacks: (Arguments, "test_an_option_is_honoured_or_refused[top_p]"),
    faulty.TakesAnyName: (Arguments, "test_an_unknown_option_is_a_type_error_that_names_the_nearest[generate]"),
    faulty.CutsThePrompt: (Context, "test_a_prompt_over_the_context_is_an_error_with_both_numbers"),
    faulty.TellsAnOverflowAtTheCall: (Context, "test_a_prompt_over_the_context_is_an_error_with_both_numbers"),
    faulty.ReusesTheWrongPrefix: (Turns, "test_reuse_is_never_a_wrong_answer[sync]"),
    faulty.DeclaresJSON: (Schemas, "test_json_is_as_the_schema_says"),
    faulty.DeclaresLogprobs: (Logprobs, "test_log_probabilities"),
    faulty.DeclaresNoIds: (Capabilities, "test_ids_are_declared"),
    faulty.DeclaresNoStats: (Capabilities, "test_isinstance_agrees"),
    faulty.DeclaresNoChat: (Capabilities, "test_chat_is_declared"),
    faulty.ScoresThatSumToTwo: (Capabilities, "test_labels"),
    faulty.OneFailureFailsAll: (Context, "test_one_prompt_of_a_batch[sync]"),
    faulty.ResultsOutOfOrder: (Batches, "test_results_are_in_the_prompts_order[sync]"),
    faulty.ReadsAllPromptsFirst: (Batches, "test_prompts_are_read_only_as_they_are_needed[sync]"),
    faulty.WorksAfterClose: (Closing, "test_calls_are_refused"),
    faulty.StreamsOutliveIt: (Closing, "test_streams_that_run_end_with_it"),
    faulty.IsKeptForEver: (Closing, "test_a_dropped_model_is_freed"),
    faulty_closing.UsesWhatIsFreed: (Racing, "test_threads_beside_close"),
    faulty_closing.CountsNothingOnceClosed: (Racing, "test_threads_beside_close"),
    faulty_closing.CountsAfterClosing: (Racing, "test_threads_beside_close test_tasks_beside_close"),
    faulty_closing.CancelsItsCallers: (Racing, "test_tasks_beside_close"),
    faulty_closing.HangsInATaskOnceClosed: (Racing, "test_tasks_beside_close"),
    faulty_closing.RanksWhatIsFreed: (Racing, "test_threads_beside_close"),
    faulty_closing.InfillsAfterClosing: (Racing, "test_threads_beside_close test_tasks_beside_close"),
    faulty.LeavesAThread: (Processes, "test_nothing_is_left[model.close()]"),
    faulty.LeavesAFile: (Processes, "test_nothing_is_left[model.close()]"),
    faulty.LeavesATemporaryFile: (Processes, "test_nothing_is_left[model.close()]"),
    faulty.LeavesAProcess: (
        Processes,
        "test_nothing_is_left[model.close()] test_a_program_that_never_closes_ends_at_once[end]",
    ),
    faulty.HangsAtExit: (Processes, "test_a_program_that_never_closes_ends_at_once[end]"),
    faulty.LivesOnAfterAFork: (Processes, "test_a_forked_child_is_refused_and_the_parent_goes_on"),
}

_FACTS: dict[str, Any] = {"characters": "さくら さくら やよい", "reuses_prefixes": False, "temperature": 2.0}
HANGING = {model for model, (group, _) in FAULTS.items() if group is Processes}
HANGING |= {faulty.KeepsASlotForEver, faulty.WaitsForTheConsumer, faulty.IsKeptForEver}
"""With these models a test lasts until `hang_timeout`, so they have a short one."""


def _suite(model: type[faulty.Sound], group: type[Contract], **facts: Any) -> type[Contract]:
    def load(cls: type[Contract]) -> TextModel:
        return model()

    body = {"__module__": __name__, "load": classmethod(load), **_FACTS, **facts}
    return type(f"Test{model.__name__}", (group,), body)


TestSound = _suite(faulty.Sound, ContractSuite)
for _model, (_group, _names) in FAULTS.items():
    _facts: dict[str, Any] = {"queues": _model is faulty.LastComeFirstServed}
    if _model in HANGING:
        _facts["hang_timeout"] = 0.5
    if _model is faulty_closing.HangsInATaskOnceClosed:
        _facts["hang_timeout"] = 5.0
    _facts |= {name: None for name in dir(_group) if name.startswith("test_") and name not in _names}
    globals()[f"Test{_model.__name__}"] = _suite(_model, _group, **_facts)
