"""Tests on a real API server. A package, so that its servers stop after the last of these tests."""
