# SPDX-License-Identifier: Apache-2.0
"""Exporters of metrics and traces: Prometheus and OpenTelemetry."""

from __future__ import annotations

from . import prometheus as prometheus
