"""Tests, in folders that mirror the sources."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
