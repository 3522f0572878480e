# SPDX-License-Identifier: Apache-2.0
# Read by llama-cpp-python's build (CMAKE_PROJECT_llama_cpp_INCLUDE, set in the Makefile).
# It asks for llama.cpp's `common` library by a cache variable; a plain variable goes
# before that. Nothing in the Python package loads that library.
set(LLAMA_BUILD_COMMON OFF)
