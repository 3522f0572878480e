# SPDX-License-Identifier: Apache-2.0
"""Malformed inputs for each parser of external bytes.

A target takes any bytes and raises where the parser breaks a promise: an exception that it
does not document, an answer of another type, another answer for the same bytes cut
elsewhere. The inputs grow out of a small corpus, always the same for the same seed.

`tests/project/test_fuzz.py` runs a few hundred for each; for longer, by hand:

    python -m tests.fuzz             what there is
    python -m tests.fuzz gguf --seconds 60

An input that shows a defect is put into the corpus with the fix: each run begins there.
"""
